"""i-PI and its servers as child processes between one start and one end, ended in the right order.

An i-PI that is asked to end writes its RESTART at once, whatever it waits for, unless a client holds it up in the middle of a
message. So i-PI is asked first, as long as its servers answer; where they do not, they go first. All of it fits into the 30 s
that a batch system leaves between SIGTERM and SIGKILL.
"""

from __future__ import annotations

import logging
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from forceserver.processes import TAIL_BYTES, find_program, last_lines, start_process, stop_process, wait_for
from forceserver.restart import Start

log = logging.getLogger(__name__)

CLEAN_END_SECONDS = 10.0  # for i-PI to write its RESTART with its servers alive, and once more without them
FAREWELL_SECONDS = 3.0  # for servers to end after i-PI's EXIT, or after SIGTERM
SPINNING = "Unexpected getforce reply: b''"  # what i-PI 3.3 says in a loop to a client that died while it promised forces
FAREWELL = re.compile(
    r"Soft exit has been requested with message: '(.*?)\s*I-PI reports (success|a problem)\."
)
ORDERLY = "Exiting cleanly"  # after its last step, and after an EXIT file or its time limit as well
ERROR_LINE = re.compile(r"\b\w*(Error|Exception)\b")


@dataclass(frozen=True)
class ServerCommand:
    """How each server is started."""

    model: str
    n_servers: int = 1
    devices: tuple[str, ...] = ("cpu",)  # dealt out to the servers in turn
    options: tuple[str, ...] = ()  # handed on to `forceserver run`


class Attempt:
    """One i-PI with its servers. Leave it with `end`, which is harmless on what has ended already.

    Args:
        start: the file that i-PI reads.
        folder: where the run lives; the logs go there.
        sockets: prefix of unix sockets, in a place of its own, so that nobody else can be met there.
        command: what to serve, and how often.
        lock: of the folder, held by i-PI as well: where we are killed, it still writes its RESTART.
    """

    def __init__(self, start: Start, folder: Path, sockets: str, command: ServerCommand, lock: int) -> None:
        self.start = start
        self._folder = folder
        self._sockets = sockets
        self._command = command
        ipi, self._program = find_program("i-pi"), find_program("forceserver")
        self._log_began = self._ipi_log.stat().st_size if self._ipi_log.exists() else 0
        self._exit_file.unlink(missing_ok=True)  # of an earlier end: i-PI would leave at once
        # Servers wait for their socket; an i-PI without a server would wait as well, but hold its port meanwhile.
        self.servers = [self._start_server(number) for number in range(command.n_servers)]
        self.ipi = start_process(
            [ipi, "-S", sockets, start.path.name],
            folder=folder,
            log=self._ipi_log,
            descriptors=(lock,),
        )

    @property
    def _ipi_log(self) -> Path:
        return self._folder / "i-pi.log"

    @property
    def _exit_file(self) -> Path:
        return self._folder / "EXIT"

    def server_log(self, number: int) -> Path:
        return self._folder / f"server-{number + 1}.log"

    def _start_server(self, number: int) -> subprocess.Popen[bytes]:
        device = self._command.devices[number % len(self._command.devices)]
        command = [
            self._program, "run", self._command.model, "-i", self.start.path.name, "-S", self._sockets,
            "--device", device, *self._command.options,
        ]  # fmt: skip
        return start_process(command, folder=self._folder, log=self.server_log(number))

    def replace_server(self, number: int) -> None:
        self.servers[number] = self._start_server(number)

    def failed_servers(self) -> Iterator[tuple[int, int]]:
        """Servers that ended otherwise than by i-PI's EXIT, as (number, exit code)."""
        for number, server in enumerate(self.servers):
            code = server.poll()
            if code:
                yield number, code

    def all_servers_said_goodbye(self) -> bool:
        return all(server.poll() == 0 for server in self.servers)

    def why_server_ended(self, number: int, code: int) -> str:
        """In one line."""
        if code < 0:
            return f"server {number + 1} was killed by {signal.Signals(-code).name}"
        said = last_lines(self.server_log(number), 1).removeprefix("forceserver: ")
        return f"server {number + 1} ended with code {code}: {said}"

    def why_ipi_ended(self) -> str:
        """In one line; i-PI says more after its error, so the error is looked for."""
        code = self.ipi.returncode
        if code < 0:
            return f"i-PI was killed by {signal.Signals(-code).name}"
        lines = last_lines(self._ipi_log, 40).splitlines()
        errors = [line for line in lines if ERROR_LINE.search(line)]
        return f"i-PI ended with code {code}: {(errors or lines)[-1].strip()}"

    def farewell_of_ipi(self) -> tuple[str, bool] | None:
        """What i-PI said when it ended the run for good, as an optimisation that has converged, and whether that was success.

        None where there are steps to go: it was told to end, or did not say why (at verbosity `quiet` it never does).
        """
        with self._ipi_log.open("rb") as log:
            log.seek(max(self._log_began, log.seek(0, 2) - TAIL_BYTES))
            found = FAREWELL.search(log.read().decode(errors="replace"))
        if found is None or ORDERLY in found[1]:
            return None
        return found[1].strip(" .@#"), found[2] == "success"

    def end(self, *, servers_answer: bool = True) -> None:
        """End all that still runs, so that i-PI writes its RESTART.

        Args:
            servers_answer: False where a server is dead or hangs: i-PI may then be stuck on it, and is freed first.
        """
        if not servers_answer:
            stop_process(*self.servers, seconds=0.0)
        if self.ipi.poll() is None:
            # No signal: who stopped us may have signalled i-PI as well, and it drops everything on a second one.
            try:
                self._exit_file.touch()
            except OSError:  # a full disk
                self.ipi.terminate()
            wait_for([self.ipi], CLEAN_END_SECONDS)
        stop_process(*self.servers, seconds=FAREWELL_SECONDS)
        if self.ipi.poll() is None and SPINNING not in last_lines(self._ipi_log, 3):
            log.warning(
                "i-PI does not end; its servers are gone, so it is given %.0f s more", CLEAN_END_SECONDS
            )
            wait_for([self.ipi], CLEAN_END_SECONDS)
        self.ipi.kill()
        self.ipi.wait()
        self._exit_file.unlink(missing_ok=True)

    def wait_for_farewell(self) -> None:
        """After i-PI's EXIT, or after i-PI itself: give all the time to end by themselves."""
        wait_for([self.ipi], CLEAN_END_SECONDS)
        if self.ipi.poll() == 0:
            wait_for(self.servers, FAREWELL_SECONDS)
        self.end()
