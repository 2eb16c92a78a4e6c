"""`forceserver launch` as a process, its children, and what a run left behind, for tests that send signals to all of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from forceserver.restart import step_of
from real_ipi import Socket, Workplace

STEPS = 120
TRAP = "ase:faulty_model:FaultyCalculator"
WATER = """3
# CELL(abcABC): 10 10 10 90 90 90 cell{angstrom} positions{angstrom}
O 0.1 0.2 0.3
H 1.0 0.0 0.1
H 0.0 0.9 -0.3
"""
EXACT = (
    '<simulation floatformat="%24.16e"'  # i-PI's own format would round the state that a run continues from
)
CHECKPOINT = '<checkpoint filename="chk" stride="5" overwrite="True"/></output>'


def write_run(
    place: Workplace, socket: Socket | None = None, *, checkpoint: bool = False, **changes: object
) -> Path:
    """The input of three atoms in a trap, in which every force has a known value."""
    (place.path / "water.xyz").write_text(WATER)
    path = place.write_input(socket or Socket(), structure=place.path / "water.xyz", **changes)
    text = path.read_text().replace("<simulation", EXACT, 1)
    path.write_text(text.replace("</output>", CHECKPOINT) if checkpoint else text)
    return path


def write_state(place: Workplace, name: str, step: int) -> Path:
    """A state as i-PI leaves it, as far as launch reads it."""
    path = place.path / name
    path.write_text(
        f"<simulation>\n <step>{step}</step>\n <total_steps>{STEPS}</total_steps>\n</simulation>\n"
    )
    return path


def launch(place: Workplace, *options: str, model: str = TRAP) -> subprocess.Popen[str]:
    return place.start("forceserver", "launch", "input.xml", "--model", model, *options, log="launch.log")


def children(process: subprocess.Popen[str], program: str) -> list[int]:
    """The ids of the children that run a program, `i-pi` or `forceserver`; zombies do not count."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            words = (stat.parent / "cmdline").read_text().split("\0")
        except OSError:  # it ended meanwhile
            continue
        if (
            int(parent) == process.pid
            and state != "Z"
            and any(Path(word).name == program for word in words[:2])
        ):
            found.append(int(stat.parent.name))
    return sorted(found)


def is_running(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come true in {seconds:.0f} s"
        time.sleep(0.02)


def wait_for_step(place: Workplace, step: int, seconds: float = 60.0) -> None:
    place.wait_until(lambda: last_step(place) >= step, "simulation.out", seconds)


def last_step(place: Workplace) -> int:
    rows = place.properties()
    return int(rows[-1, 0]) if len(rows) else -1


def rows_by_step(place: Workplace) -> np.ndarray:
    """The properties with one row for each step; of rows that a resumed run wrote again, the last."""
    rows = {int(row[0]): row for row in place.properties()}
    return np.array([rows[step] for step in sorted(rows)])


def phase_space(place: Workplace, name: str = "RESTART") -> np.ndarray:
    """Positions and momenta of a checkpoint, at full precision, atomic units."""
    text = place.read(name)
    assert text.rstrip().endswith("</simulation>"), f"{name} is not complete"
    blocks = [re.search(rf"<{tag} [^>]*>\s*\[(.*?)\]", text, re.DOTALL) for tag in ("q", "p")]
    return np.array([float(word) for block in blocks if block for word in block[1].replace(",", " ").split()])


def kill_ipi_with_a_whole_checkpoint(
    place: Workplace, process_id: int, *, then: Callable[[], None] = lambda: None
) -> None:
    """SIGKILL, but not in a moment in which i-PI overwrites its only checkpoint: that one it would lose.

    Args:
        then: done while i-PI is held, before it is killed.
    """
    while True:
        os.kill(process_id, signal.SIGSTOP)
        wait_for(lambda: Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        if step_of(place.path / "simulation.chk") is not None:
            break
        os.kill(process_id, signal.SIGCONT)
        time.sleep(0.01)
    then()
    os.kill(process_id, signal.SIGKILL)


def restart_step(place: Workplace) -> int:
    match = re.search(r"<step>\s*(\d+)\s*</step>", place.read("RESTART"))
    assert match, "RESTART has no step"
    return int(match[1])


def continue_by_hand(place: Workplace, state: str = "RESTART") -> None:
    """As a user without `launch` does: the saved state is the next input."""
    (place.path / "input.xml").write_text(place.read(state))
    place.run("harmonic:k=2.0")


def assert_same_run(place: Workplace, reference: Workplace) -> None:
    """One row for every step, and the same point in phase space at the end, all to 1e-10."""
    ours, theirs = rows_by_step(place), rows_by_step(reference)
    np.testing.assert_array_equal(ours[:, 0], theirs[:, 0])
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(phase_space(place), phase_space(reference), rtol=1e-10, atol=1e-10)
