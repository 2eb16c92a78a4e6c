"""Child processes that cannot outlive us: i-PI and force servers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from forceserver.errors import UsageError

PR_SET_PDEATHSIG = 1
TAIL_BYTES = 1 << 16


def n_cores() -> int:
    """That this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def find_program(name: str) -> str:
    """The program of this name that belongs to this Python: i-PI and server must come from one environment.

    Raises:
        UsageError: it is not installed there.
    """
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise UsageError(
            f"'{name}' is not beside {sys.executable}; install i-PI in the same environment: pip install ipi"
        )
    return str(path)


def start_process(
    command: Sequence[str],
    *,
    folder: Path,
    log: Path,
    descriptors: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a child with its output in a file, out of reach of the terminal's Ctrl-C.

    On Linux it gets SIGTERM when this process dies, however that happens. Not SIGKILL: i-PI saves its state on SIGTERM, and
    hangs on a server that leaves without a word.

    Args:
        command: program and arguments.
        folder: where it runs.
        log: its output is appended here.
        descriptors: open files that it inherits.
    """
    with log.open("ab") as file:
        return subprocess.Popen(
            list(command),
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(descriptors),
            preexec_fn=_ending_with_parent() if sys.platform == "linux" else None,
        )


def wait_for(processes: Iterable[subprocess.Popen[bytes]], seconds: float) -> None:
    """Until all have ended, at most for a while."""
    deadline = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))


def stop_process(*processes: subprocess.Popen[bytes], seconds: float = 10.0) -> None:
    """Ask children to end, and after a while insist. Harmless on those that have ended."""
    for process in processes:
        process.terminate()
    wait_for(processes, seconds)
    for process in processes:
        process.kill()
        process.wait()


def last_lines(log: Path, n_lines: int = 5) -> str:
    """The end of a log, for a message that must say why a child failed."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))  # an i-PI that hangs may have written gigabytes
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "(no log)"
    return "\n".join(lines[-n_lines:]) or "(it said nothing)"


def _environment() -> dict[str, str]:
    """Ours, with a PYTHONPATH that means the same from the folder of the child: the user's own calculator may lie there."""
    environment = dict(os.environ)
    if paths := environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, paths.split(os.pathsep)))
    return environment


def _ending_with_parent() -> Callable[[], None]:
    libc, parent = ctypes.CDLL(None), os.getpid()

    def bind() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we could ask to be told
            os._exit(1)

    return bind
