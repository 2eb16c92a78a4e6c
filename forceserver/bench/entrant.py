"""The processes of one contender in one case: i-PI (or the bare model) under orders, and the force providers beside it.

Between its turns the whole contender is at rest: i-PI is frozen (SIGSTOP) between two steps, when it is owed nothing, because its
polling threads would go on; its force providers wait for it in a system call.
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forceserver.bench.cases import Case
from forceserver.bench.contenders import BARE, REPORT, STEPPER, Plan, Setting
from forceserver.bench.control import Control
from forceserver.bench.inputs import STRUCTURE, input_text
from forceserver.bench.memory import Memory, memory_of, processor_seconds
from forceserver.errors import ForceServerError, UsageError
from forceserver.processes import last_lines, start_process, stop_process, wait_for
from forceserver.signals import StopRequest

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 600.0  # without an answer, loading a model included
FAREWELL_SECONDS = 10.0
REST_POLL_SECONDS = 0.05  # longer than a tick of the clock by which the system counts processor time
REST_SECONDS = 60.0
HANDSHAKE = "Handshaking was successful"
SEED = 20251


class EntrantFailed(ForceServerError):
    """A contender broke down; the message holds the last lines that it said."""


class Interrupted(ForceServerError):
    """A signal wants the bench to end."""


@dataclass
class Child:
    """A process, where its words go, and how it takes orders, if it does."""

    what: str
    process: subprocess.Popen[bytes]
    log: Path
    control: Control | None = None


class Entrant:
    """One contender in one case.

    Args:
        case: what is simulated.
        plan: which processes that takes.
        setting: what is the same for all.
        structure: the file to start from, as an extended xyz.
        folder: for inputs, outputs and logs.
        sockets: prefix of unix sockets that nobody else uses.
        stop: whether to end early; looked at whenever there is something to wait for.
    """

    def __init__(
        self, case: Case, plan: Plan, setting: Setting, structure: Path, folder: Path, sockets: str, stop: StopRequest
    ) -> None:  # fmt: skip
        self.plan = plan
        self.introduction: Mapping[str, Any] = {}  # what the first process said of itself
        self._case = case
        self._setting = setting
        self._structure = structure
        self._folder = folder
        self._sockets = sockets
        self._stop = stop
        self._steppers: list[Child] = []
        self._providers: list[Child] = []

    def start(self) -> None:
        """i-PI first, because its drivers do not wait for a socket; then who serves it.

        Raises:
            EntrantFailed: a process ends or is silent for too long. So do all the following.
            Interrupted: a signal came. So do all the following.
        """
        self._folder.mkdir(parents=True)
        if self.plan.is_bare:
            self._start_bare()
        else:
            for sim in range(1, self._case.n_simulations + 1):
                self._start_simulation(sim)
        self.introduction = self._answers()[0]
        for number, (sim, command) in enumerate(self.plan.commands, start=1):
            folder = self._folder / str(sim) if sim else self._folder
            log = self._folder / f"forces-{number}.log"
            process = start_process(self._in_environment(command), folder=folder, log=log)
            self._providers.append(Child(f"force provider {number}", process, log))

    def _start_bare(self) -> None:
        passes = [[count, sorted(kinds)] for count, kinds in self.plan.passes]
        words = {"model": self._setting.model, "device": self._setting.device, "passes": passes}
        words["structure"] = str(self._structure.resolve())
        self._start_stepper((*BARE, json.dumps(words)), self._folder, "the model", self.plan.threads)

    def _start_simulation(self, sim: int) -> None:
        folder = self._folder / str(sim)
        folder.mkdir()
        (folder / STRUCTURE).write_bytes(self._structure.read_bytes())
        text = input_text(self._case, self.plan.force_field, f"{self._sockets}{sim}-", SEED + sim)
        (folder / "input.xml").write_text(text)
        n_threads = self.plan.threads if self.plan.force_field.tag == "ffdirect" else 1
        self._start_stepper((*STEPPER, "input.xml"), folder, f"i-PI {sim}", n_threads)

    def _start_stepper(self, command: Sequence[str], folder: Path, what: str, n_threads: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = (*command, str(theirs.fileno()))
            log = folder / "i-pi.log" if not self.plan.is_bare else folder / "model.log"
            process = start_process(
                self._in_environment(command, n_threads),
                folder=folder,
                log=log,
                descriptors=(theirs.fileno(),),
            )
        self._steppers.append(Child(what, process, log, Control(ours)))

    def _in_environment(self, command: Sequence[str], n_threads: int | None = None) -> tuple[str, ...]:
        count = n_threads or self.plan.threads
        return (
            "env",
            "PYTHONUNBUFFERED=1",
            *(f"{name}_NUM_THREADS={count}" for name in ("OMP", "MKL")),
            *command,
        )

    def look(self) -> Mapping[str, Any]:
        """Have the forces of the first geometry evaluated: {potential_eV, force (eV/A, modulus; None of the bare model)}."""
        return self._order("look")[0]

    def warm_up(self, n_steps: int) -> list[list[float]]:
        """Run until everybody has joined, who comes when his model is loaded, and then so many steps more, which are told."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._everybody_joined():
            if time.monotonic() > deadline:
                raise EntrantFailed(f"not all of its clients have joined i-PI in {PATIENCE_SECONDS:.0f} s")
            self.run(1)
        return self.run(n_steps)

    def _everybody_joined(self) -> bool:
        return all(
            stepper.log.read_text(errors="replace").count(HANDSHAKE) >= self.plan.n_connections
            for stepper in self._steppers
            if self.plan.n_connections
        )

    def run(self, n_steps: int) -> list[list[float]]:
        """So many steps of each simulation, all at once: for each when the first began and each of them ended (s)."""
        return [list(answer["ended"]) for answer in self._order("run", steps=n_steps)]

    def dissect(self, n_steps: int) -> Mapping[str, float]:
        """Of the bare model: seconds of one step by what is done."""
        seconds: Mapping[str, float] = self._order("dissect", steps=n_steps)[0]["seconds"]
        return seconds

    def freeze(self) -> None:
        """To rest, from which `thaw` wakes it."""
        for stepper in self._steppers:
            stepper.process.send_signal(signal.SIGSTOP)
        pids = [child.process.pid for child in self._providers]
        deadline, before, used = time.monotonic() + REST_SECONDS, -1.0, processor_seconds(pids)
        while used is not None and used > before:
            if time.monotonic() > deadline:
                raise EntrantFailed(
                    f"its force providers are busy {REST_SECONDS:.0f} s after i-PI came to rest"
                )
            time.sleep(REST_POLL_SECONDS)
            before, used = used, processor_seconds(pids)

    def thaw(self) -> None:
        for stepper in self._steppers:
            stepper.process.send_signal(signal.SIGCONT)

    def processor_seconds(self) -> float | None:
        """Used so far by all processes, i-PI included."""
        return processor_seconds(child.process.pid for child in [*self._steppers, *self._providers])

    def memory(self) -> Memory | None:
        """Of the processes that hold the model: i-PI counts where it is one of them."""
        return memory_of(child.process.pid for child in self._providers or self._steppers)

    def report(self) -> Mapping[str, Any] | None:
        """What our server counted so far; None of others."""
        if not self.plan.writes_report:
            return None
        path = self._folder / REPORT
        n_before = _count_lines(path)
        self._providers[0].process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + FAREWELL_SECONDS
        while _count_lines(path) == n_before:
            if time.monotonic() > deadline:
                raise EntrantFailed(f"the server wrote no report in {FAREWELL_SECONDS:.0f} s")
            self._wait(0.01)
        report: Mapping[str, Any] = json.loads(path.read_text().splitlines()[-1])
        return report

    def ask_to_end(self) -> None:
        """Several that are to end can do so at the same time; `end` must follow."""
        for stepper in self._steppers:
            with contextlib.suppress(OSError):
                stepper.process.send_signal(signal.SIGCONT)
                if stepper.control is not None:
                    stepper.control.send(do="end")

    def end(self) -> None:
        """End all processes. Never fails, whatever state they are in."""
        was_sound = self._is_sound()
        self.ask_to_end()
        if was_sound:
            wait_for([child.process for child in [*self._steppers, *self._providers]], FAREWELL_SECONDS)
        # A client that hangs holds up i-PI, so clients go first.
        stop_process(*(child.process for child in self._providers), seconds=1.0)
        for stepper in self._steppers:
            stepper.process.kill()
            stepper.process.wait()
            if stepper.control is not None:
                stepper.control.close()
            for segment in Path("/dev/shm").glob(
                f"ipi_shm_{stepper.process.pid}_*"
            ):  # of an i-PI that was killed
                segment.unlink(missing_ok=True)
        self._steppers, self._providers = [], []

    def _is_sound(self) -> bool:
        """Whether all will end by themselves when i-PI does: none has failed, and nothing is cut short."""
        return not self._stop.reason and not any(
            child.process.poll() for child in [*self._steppers, *self._providers]
        )

    def _order(self, do: str, **words: Any) -> list[Mapping[str, Any]]:
        for stepper in self._steppers:
            assert stepper.control is not None
            with contextlib.suppress(
                OSError
            ):  # who is gone gives no answer, and that is told with its last words
                stepper.control.send(do=do, **words)
        return self._answers()

    def _answers(self) -> list[Mapping[str, Any]]:
        """One from each stepper, in their order."""
        answers: dict[int, Mapping[str, Any]] = {}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(answers) < len(self._steppers):
            open_controls = [
                each.control
                for place, each in enumerate(self._steppers)
                if place not in answers and each.control
            ]
            ready = self._wait(POLL_SECONDS, open_controls)
            for place, stepper in enumerate(self._steppers):
                if stepper.control in ready and stepper.control is not None:
                    answers[place] = self._hear(stepper, stepper.control)
            self._check_providers()
            if time.monotonic() > deadline:
                raise EntrantFailed(f"no answer for {PATIENCE_SECONDS:.0f} s; {self._last_words()}")
        return [answers[place] for place in range(len(self._steppers))]

    def _hear(self, stepper: Child, control: Control) -> Mapping[str, Any]:
        answer = control.receive()
        if answer is None:
            wait_for([stepper.process], 5.0)
            raise EntrantFailed(f"{stepper.what} ended: {last_lines(stepper.log)}")
        if "error" in answer:
            kind = UsageError if answer["exit_code"] == UsageError.exit_code else EntrantFailed
            raise kind(answer["error"])
        return answer

    def _check_providers(self) -> None:
        for child in self._providers:
            if child.process.poll() is not None:
                raise EntrantFailed(
                    f"{child.what} ended with code {child.process.returncode}: {last_lines(child.log)}"
                )

    def _last_words(self) -> str:
        return "; ".join(
            f"{child.what}: {last_lines(child.log, 1)}" for child in [*self._steppers, *self._providers]
        )

    def _wait(self, seconds: float, controls: Sequence[Control] = ()) -> Sequence[Control]:
        waited_for: list[Control | StopRequest] = [self._stop, *controls]
        ready, _, _ = select.select(waited_for, [], [], seconds)
        if self._stop.reason:
            raise Interrupted(f"{self._stop.reason}: the bench was stopped")
        return [control for control in controls if control in ready]


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
