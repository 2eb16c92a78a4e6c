"""The tour: its stops, two at a time where there are cores for it, supervised as by `forceserver launch`, in a folder of ours.

An interrupted tour is continued by the same command, and so is a stop that failed: what killed it may be gone. A finished tour is
made afresh, except a long one: hours are not thrown away, and nor is what an interrupted tour of other settings has done.
Times in ps and fs, wall times in seconds.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from forceserver.attempt import ServerCommand
from forceserver.demo.costs import runs_at_once
from forceserver.demo.stops import STOPS, Stop
from forceserver.errors import ForceServerError, UsageError
from forceserver.inputfile import read_input
from forceserver.launch import Ending, LaunchOptions, Supervisor
from forceserver.own_folder import claim, remove
from forceserver.potentials import load_potential, require
from forceserver.potentials.specification import anchored
from forceserver.preflight import check_simulation
from forceserver.progress import PropertiesTail, Show, show_runs
from forceserver.restart import fingerprint_of_model, read_record, step_of
from forceserver.run_folder import LOCK, locked
from forceserver.signals import StopRequest, stop_on_signals
from forceserver.structures import DEFAULT_MODEL, ForceRole

MARKER = "forceserver-demo"  # a folder with this file in it is ours to replace
ENDED = "ended.json"  # beside the outputs of a stop, once all of its steps are done
STATES = ("RESTART", "demo.checkpoint")  # of i-PI, in the folder of a stop
LONG_PS = 1.0  # from which on a finished tour is kept
WARM_UP = 0.2  # of the rows: what TorchScript takes to specialise its code is no cost of a long run


class Interrupted(ForceServerError):
    """Somebody ended the tour; the same command continues it."""

    exit_code = 75


@dataclass(frozen=True)
class Tour:
    """What was asked for."""

    model: str
    time_ps: float  # of the first stop; the others take their share
    device: str = "cpu"  # of torch

    @property
    def is_long(self) -> bool:
        """Whether it takes what nobody wants to lose."""
        return self.time_ps >= LONG_PS

    def identity(self) -> str:
        """Equal for tours that may be continued by each other: other weights make another one, another device does not."""
        stops = [asdict(stop) for stop in STOPS]
        return json.dumps([fingerprint_of_model(anchored(self.model)), self.time_ps, stops])

    def steps_left(self, folder: Path) -> list[tuple[Stop, int]]:
        """Of the stops that have not ended in a folder, by the states that i-PI saved there."""
        runs = self.runs(folder)
        if _tour_in(folder) != self.identity():
            return [(run.stop, run.n_steps) for run in runs]
        return [(run.stop, run.n_steps - run.saved_step()) for run in runs if not run.recall()]

    def runs(self, folder: Path) -> list[_Run]:
        """One for each stop."""
        return [
            _Run(stop, self.time_ps, folder / f"{number}-{stop.folder_name}", may_fail=number > 1)
            for number, stop in enumerate(STOPS, start=1)
        ]


@dataclass(frozen=True)
class Outcome:
    """One stop after its run."""

    stop: Stop
    folder: Path
    n_steps: int
    seconds_per_fs: float  # of simulated time; nan where too little was seen
    failure: str = ""  # why it ended early, in one line


def run_tour(tour: Tour, folder: Path) -> list[Outcome]:
    """Run what is left of the tour.

    Raises:
        UsageError: the folder holds something that is not this tour, is in use, or cannot be written; the model cannot be served.
        Interrupted: by a signal.
        ForceServerError: the first stop failed, conservative as it is: so would the others.
    """
    require(tour.model)
    if _tour_in(folder) != tour.identity():
        _check_model(tour)
    claim(folder, MARKER)
    with locked(folder):
        _take_folder(tour, folder)
        return _run_stops(tour, folder)


def _run_stops(tour: Tour, folder: Path) -> list[Outcome]:
    n_at_once, n_threads = runs_at_once(tour.device)
    servers = ServerCommand(
        anchored(tour.model), devices=(tour.device,), options=("--threads", str(n_threads))
    )
    runs = tour.runs(folder)
    for run in runs:
        run.prepare()
    with (
        stop_on_signals() as stop_request,
        show_runs() as add,
        ThreadPoolExecutor(n_at_once, thread_name_prefix="stop") as pool,
    ):
        pending = [
            pool.submit(run.outcome, servers, stop_request, add(run.stop.title, run.n_steps)) for run in runs
        ]
        try:
            for each in as_completed(pending):
                each.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            if not stop_request.reason:
                stop_request.request("another run of the tour has failed")
            raise
    return [each.result() for each in pending]


def finish(tour: Tour, folder: Path) -> None:
    """The tour is over: the next one starts afresh, except after a long one."""
    if not tour.is_long:
        (folder / MARKER).write_text("")


def _check_model(tour: Tour) -> None:
    """Load it once, as each server will: what cannot be served is refused before anything is removed.

    Raises:
        UsageError: it cannot be loaded, or lacks what one of the stops wants.
    """
    models = {DEFAULT_MODEL: load_potential(tour.model, device=tour.device)}
    with tempfile.TemporaryDirectory(prefix="forceserver-") as folder:
        for stop in STOPS:
            path = stop.input_file(tour.time_ps).write(Path(folder) / stop.folder_name / "input.xml")
            check_simulation(read_input(path), models, ForceRole(), "own")


def _tour_in(folder: Path) -> str:
    """The identity of the tour that has not ended there, or that was a long one."""
    marker = folder / MARKER
    return marker.read_text() if marker.is_file() else ""


def _take_folder(tour: Tour, folder: Path) -> None:
    known, asked = _tour_in(folder), tour.identity()
    if known == asked:
        return
    if known and any(step_of(run / name) for run in folder.iterdir() for name in STATES):
        raise UsageError(
            f"{folder} holds another tour, unfinished or long, which its own command continues; name another folder with -o, "
            "or remove it"
        )
    _empty(folder)
    (folder / MARKER).write_text(asked)


def _empty(folder: Path) -> None:
    """Remove what is in a folder of ours, but not its marker: without it, what an interruption left would seem not to be ours.

    Nor the lock, which we hold.
    """
    for entry in list(folder.iterdir()):
        if entry.name not in (MARKER, LOCK):
            remove(entry)


@dataclass(frozen=True)
class _Run:
    """One stop in its folder."""

    stop: Stop
    time_ps: float  # of the tour
    folder: Path
    may_fail: bool

    @property
    def n_steps(self) -> int:
        return self.stop.n_steps(self.time_ps)

    def prepare(self) -> None:
        """Write its input, if it is not there: before threads, for i-PI judges it, which takes stdout for itself meanwhile."""
        if not (self.folder / "input.xml").exists():
            self.stop.input_file(self.time_ps).write(self.folder / "input.xml")

    def saved_step(self) -> int:
        """From which i-PI would go on."""
        return max(step_of(self.folder / name) or 0 for name in STATES)

    def outcome(self, servers: ServerCommand, stop_request: StopRequest, show: Show) -> Outcome:
        """What it gave, if all of its steps are done; else run it, or the rest of it.

        Raises:
            Interrupted: by a signal, or because another run has failed.
            ForceServerError: it failed, and may not.
        """
        outcome = self.recall() or self._carry_out(servers, stop_request, show)
        if outcome.failure and not self.may_fail:
            raise ForceServerError(f"{self.stop.title}: {outcome.failure}. See the logs in {self.folder}")
        show(outcome.n_steps, {})
        return outcome

    def recall(self) -> Outcome | None:
        """The outcome of a stop that an interrupted tour had finished."""
        known = read_record(self.folder / ENDED)
        if not known:
            return None
        seconds = known["seconds_per_fs"]
        return Outcome(self.stop, self.folder, self.n_steps, math.nan if seconds is None else seconds)

    def _carry_out(self, servers: ServerCommand, stop_request: StopRequest, show: Show) -> Outcome:
        rows: list[tuple[int, float]] = []  # (step, seconds), as they appear

        def watch(step: int, tail: PropertiesTail) -> None:
            rows.append((step, time.monotonic()))
            show(step, tail.row)

        supervisor = Supervisor(self.folder / "input.xml", LaunchOptions(servers), stop_request, watch)
        ending = Ending.INTERRUPTED if stop_request.reason else supervisor.run()
        if ending is Ending.INTERRUPTED:
            raise Interrupted(
                f"the tour was interrupted ({stop_request.reason or supervisor.reason}); what was done is in "
                f"{self.folder.parent}, and the same command continues it"
            )
        seconds = seconds_per_step(rows) / self.stop.timestep_fs
        if ending is Ending.FAILED:
            return Outcome(self.stop, self.folder, supervisor.n_steps, seconds, supervisor.reason)
        record = {"seconds_per_fs": None if math.isnan(seconds) else seconds}
        (self.folder / ENDED).write_text(json.dumps(record) + "\n")
        return Outcome(self.stop, self.folder, self.n_steps, seconds)


def seconds_per_step(rows: Sequence[tuple[int, float]]) -> float:
    """Wall time between the first and the last row that count: without what it takes to start.

    Args:
        rows: (step, seconds) of every row that was seen.
    """
    counted = rows[math.ceil(WARM_UP * len(rows)) :]
    steps = counted[-1][0] - counted[0][0] if counted else 0
    return (counted[-1][1] - counted[0][1]) / steps if steps else math.nan
