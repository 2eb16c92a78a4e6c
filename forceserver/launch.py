"""The supervisor: i-PI and its force servers as one thing that starts, is watched, is resumed and ends cleanly.

i-PI 3.3 may hang for good when a client dies on it. So a server that was killed ends i-PI as well (SIGTERM: it writes RESTART),
and both go on from there; one that closed its connections in order is only replaced. Whatever fails is tried again as long as
the run gets further; `retries` failures without a single step between them end it.
"""

from __future__ import annotations

import logging
import select
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from forceserver.attempt import Attempt, ServerCommand
from forceserver.errors import ForceServerError, UsageError
from forceserver.progress import PropertiesTail
from forceserver.restart import (
    RunFiles,
    Start,
    choose_start,
    finished_before,
    forget_run,
    note_finished,
    note_origins,
    read_run_files,
)
from forceserver.run_folder import check_addresses, disk_errors_named, locked
from forceserver.signals import StopRequest

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
LEAST_PATIENCE_SECONDS = 60.0  # with an i-PI that was given a new server
LONGEST_TMPDIR = 60  # characters; the name of a unix socket has at most 107
NO_STATE = "no checkpoint was written", "Add a <checkpoint> to <output>"
HALF_A_STATE = (
    "the only checkpoint is cut short, for i-PI was killed while it wrote it",
    "<checkpoint overwrite='False'> keeps all of them",
)
ROUNDED = " (its state is rounded: <simulation floatformat='%24.16e'> would continue it to the last bit)"

Watcher = Callable[[int, PropertiesTail], None]


@dataclass(frozen=True)
class LaunchOptions:
    servers: ServerCommand
    retries: int = 2  # failures in a row without a single step between them
    time_limit_seconds: float | None = None
    stall_seconds: float | None = None  # without a new row of output, after which the run counts as hung
    fresh: bool = False  # start from the input, whatever stands in the folder


class Ending(Enum):
    FINISHED = "finished"
    INTERRUPTED = "interrupted"  # by a signal or the time limit: RESTART continues it
    FAILED = "failed"


class Pulse:
    """When the run last wrote a row of output, and whether it has been silent for too long.

    An i-PI that loses a server in order goes on with the next one, but where both meet in the wrong moment it hangs. So after a
    server was replaced the run may be silent for three times as long as it ever took to a row, loading the model included. What
    it takes from row to row is not known before an attempt has written two: until then it may be silent for as long as it likes.
    """

    def __init__(self, limit_seconds: float | None) -> None:
        self.is_suspect = False  # a server was replaced, and no row has come since
        self._limit = limit_seconds
        self._longest = 0.0  # to a row, of all attempts
        self._knows_its_pace = False
        self.start()

    def start(self) -> None:
        """An attempt begins."""
        self._last = self._last_row = time.monotonic()
        self._has_row = self.is_suspect = False

    @property
    def silence(self) -> float:
        return time.monotonic() - self._last

    def beat(self) -> None:
        now = time.monotonic()
        self._longest = max(self._longest, now - self._last_row)
        self._knows_its_pace |= self._has_row  # i-PI writes the row of step 0 before it does any
        self._last = self._last_row = now
        self._has_row, self.is_suspect = True, False

    def expect_a_beat(self) -> None:
        """A server was replaced: the run should go on as soon as the new one has loaded its model."""
        self._last, self.is_suspect = time.monotonic(), True

    def has_stopped(self) -> bool:
        limits = [] if self._limit is None else [self._limit]
        if self.is_suspect and self._knows_its_pace:
            limits.append(max(LEAST_PATIENCE_SECONDS, 3.0 * self._longest))
        return bool(limits) and self.silence > min(limits)


class Supervisor:
    """Runs attempts until the simulation has all its steps, or there is no point in going on.

    Args:
        input_path: the i-PI input; the run lives in its folder.
        options: see `LaunchOptions`.
        stop: asked whether a signal wants us to end.
        watch: told the present step and the output, several times a second.
    """

    def __init__(self, input_path: Path, options: LaunchOptions, stop: StopRequest, watch: Watcher) -> None:
        self.reason = ""  # why it ended as it did, for the user
        self._input_path = input_path
        self._options = options
        self._stop = stop
        self._watch = watch
        self._furthest = -1  # step; -1: not a single evaluation so far
        self._n_failures = 0  # since the furthest step was reached
        self._pulse = Pulse(options.stall_seconds)
        limit = options.time_limit_seconds
        self._deadline = None if limit is None else time.monotonic() + limit

    @property
    def n_steps(self) -> int:
        """Of i-PI, as far as is known: by its rows of output and by what it saved."""
        return max(self._furthest, 0)

    def run(self) -> Ending:
        """
        Raises:
            UsageError: the folder is in use or holds another run, a port is in use, a server refuses the input.
            ForceServerError: i-PI does, or the folder takes no more.
        """
        files = read_run_files(self._input_path)
        if self._options.stall_seconds is not None and not files.properties:
            raise UsageError(
                f"--stall needs a <properties> output in {self._input_path}: there is nothing else to see a step by"
            )
        with disk_errors_named(self._input_path.parent), locked(self._input_path.parent) as lock:
            if self._options.fresh:
                forget_run(self._input_path)
            while True:
                start = choose_start(self._input_path)
                if start.step >= files.total_steps:
                    self.reason = f"all {files.total_steps} steps are done"
                    return Ending.FINISHED
                if why := finished_before(self._input_path):
                    self.reason = why
                    return Ending.FINISHED
                ending = self._attempt(start, files, lock)
                if saved := files.furthest_state().step:
                    self._note_step(saved)  # rows of output may be rarer than saved states
                if ending is not Ending.FAILED or self._n_failures > self._options.retries:
                    return ending
                log.warning("%s; going on from the last state that was saved", self.reason)

    def _attempt(self, start: Start, files: RunFiles, lock: int) -> Ending:
        if start.step:
            self._furthest = max(self._furthest, start.step)
            precision = "" if files.is_exact else ROUNDED
            log.info("continuing from step %d of %d%s", start.step, files.total_steps, precision)
        elif self._furthest > 0:
            log.warning("%s: starting again from step 0. %s", *(HALF_A_STATE if files.states() else NO_STATE))
        check_addresses(self._input_path)
        note_origins(self._input_path, self._options.servers.model)
        where = None if len(tempfile.gettempdir()) <= LONGEST_TMPDIR else "/tmp"
        with tempfile.TemporaryDirectory(prefix="forceserver-", dir=where) as sockets:
            attempt = Attempt(start, self._input_path.parent, f"{sockets}/", self._options.servers, lock)
            try:
                return self._watch_over(attempt, files)
            finally:
                attempt.end()

    def _watch_over(self, attempt: Attempt, files: RunFiles) -> Ending:
        tail = PropertiesTail(files.properties[0]) if files.properties else None
        pulse = self._pulse
        pulse.start()
        while attempt.ipi.poll() is None and not attempt.all_servers_said_goodbye():
            select.select([self._stop], [], [], POLL_SECONDS)
            if self._stop.reason or (self._deadline is not None and time.monotonic() > self._deadline):
                self.reason = self._stop.reason or "the time limit is reached"
                attempt.end()
                return Ending.INTERRUPTED
            if tail is not None and tail.refresh():
                pulse.beat()
                self._note_step(tail.step if "step" in tail.row else 0)
                self._watch(tail.step, tail)
            if tail is not None and pulse.has_stopped():
                self._fail(f"no step was written for {pulse.silence:.0f} s")
                attempt.end(servers_answer=pulse.is_suspect)  # it is i-PI that is suspected then
                return Ending.FAILED
            for number, code in attempt.failed_servers():
                if attempt.ipi.poll() is not None:
                    break
                if not self._replace_server(attempt, number, code):
                    attempt.end(servers_answer=False)
                    return Ending.FAILED
                pulse.expect_a_beat()
        return self._judge(attempt, files)

    def _note_step(self, step: int) -> None:
        if step > self._furthest:
            self._furthest, self._n_failures = step, 0

    def _fail(self, reason: str) -> None:
        self.reason = reason
        self._n_failures += 1

    def _replace_server(self, attempt: Attempt, number: int, code: int) -> bool:
        """A server has ended before i-PI: put another in its place, if i-PI can take it.

        Raises:
            UsageError: the server refuses its command line or the input; another would as well.
        """
        reason = attempt.why_server_ended(number, code)
        if code == UsageError.exit_code:
            raise UsageError(reason)
        self._fail(reason)
        if code < 0 or self._n_failures > self._options.retries:
            return False
        log.warning("%s; starting another", reason)
        attempt.replace_server(number)
        return True

    def _judge(self, attempt: Attempt, files: RunFiles) -> Ending:
        """i-PI has ended by itself. Its exit code says little: the steps that it has done say more."""
        attempt.wait_for_farewell()
        reached = files.furthest_state().step
        if reached >= files.total_steps:
            self.reason = f"all {files.total_steps} steps are done"
            return Ending.FINISHED
        if attempt.ipi.returncode == 0 and (farewell := attempt.farewell_of_ipi()):
            words, is_success = farewell
            if not is_success:
                self._fail(f"i-PI reports a problem: {words}")
                return Ending.FAILED
            self.reason = f"i-PI has finished at step {reached}: {words}"
            note_finished(self._input_path, self.reason)
            return Ending.FINISHED
        if attempt.ipi.returncode == 0:
            self.reason = f"i-PI ended by itself at step {reached} of {files.total_steps} (signal, EXIT file, time limit)"
            return Ending.INTERRUPTED
        if self._furthest < 0 and attempt.ipi.returncode > 0:
            raise ForceServerError(f"{attempt.why_ipi_ended()}. All that it said is in i-pi.log")
        self._fail(attempt.why_ipi_ended())
        return Ending.FAILED


def check_ending(ending: Ending, reason: str) -> None:
    """Raises:
    ForceServerError: the run failed.
    """
    if ending is Ending.FAILED:
        raise ForceServerError(f"the run failed: {reason}")


def check_devices(devices: Sequence[str], n_servers: int) -> None:
    """Raises:
    UsageError: more devices than servers: some would stand idle, which is not what anybody types them for.
    """
    if len(devices) > n_servers:
        raise UsageError(
            f"--devices names {len(devices)} devices for {n_servers} servers; add --servers {len(devices)}"
        )
