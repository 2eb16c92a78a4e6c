"""How far a run is, read from the outside: the last complete row of i-PI's properties file, and a bar that shows it."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

TAIL_BYTES = 1 << 16
LINE_EVERY_SECONDS = 60.0
COLUMN_NEEDS = (
    0,
    30,
    70,
    90,
    110,
)  # characters of a terminal in which steps, time left, facts, bar and title have room
Show = Callable[[int, Mapping[str, float]], None]  # told the step and the last row of properties
COLUMN = re.compile(r"#\s*col(?:umn|s\.)\s+(\d+)(?:-\d+)?\s*-->\s*(\S+)")


class PropertiesTail:
    """A properties file of i-PI that is being written. What stood in it before is not looked at."""

    def __init__(self, path: Path) -> None:
        self.row: Mapping[str, float] = {}  # {column as i-PI names it, unit included: value}
        self.step = 0
        self._path = path
        self._seen = self._mark()

    def refresh(self) -> bool:
        """Read the last complete row, if the file has changed. Whether there is a new one."""
        mark = self._mark()
        if mark == self._seen:
            return False
        self._seen = mark
        row = self.last_row()
        if not row or row == self.row:
            return False
        self.row = row
        self.step = int(row.get("step", self.step))
        return True

    def _mark(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size

    def last_row(self) -> Mapping[str, float]:
        """The last complete row of the file as it is now; empty while there is none."""
        try:
            with self._path.open("rb") as file:
                columns = _columns(file.read(TAIL_BYTES).decode(errors="replace"))
                file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines(keepends=True)
        except OSError:
            return {}
        complete = [line for line in lines if line.endswith("\n") and not line.startswith("#")]
        if not complete:
            return {}
        numbers = complete[-1].split()
        try:
            return {name: float(numbers[index]) for name, index in columns.items() if index < len(numbers)}
        except ValueError:
            return {}


def _columns(head: str) -> dict[str, int]:
    return {match[2].rstrip(":"): int(match[1]) - 1 for match in COLUMN.finditer(head)}


@contextmanager
def show_progress(title: str, total_steps: int) -> Iterator[Callable[[int, PropertiesTail], None]]:
    """A bar on stderr with step, speed, time left and temperature; where stderr is no terminal, a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    screen = Console(stderr=True)
    if not screen.is_terminal:
        log_sometimes = _lines(title, total_steps)
        yield lambda step, tail: log_sometimes(step, tail.row)
        return
    facts = _Facts()
    columns = [
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"), TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}"), BarColumn(), TextColumn("{task.description}"),
    ]  # fmt: skip
    shown = [column for column, width in zip(columns, COLUMN_NEEDS, strict=True) if screen.width >= width]
    with Progress(*shown, console=screen) as progress, _log_above_the_bar():
        task = progress.add_task(title, total=total_steps, facts="")
        yield lambda step, tail: progress.update(task, completed=step, facts=facts.describe(step, tail.row))


@contextmanager
def show_runs() -> Iterator[Callable[[str, int], Show]]:
    """The same for several runs side by side: a bar for each, or lines; each is made from its title and its number of steps."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield _lines
        return
    columns = [
        TextColumn("{task.description:16s}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        TimeRemainingColumn(),
    ]  # fmt: skip
    with Progress(*columns, console=screen) as progress, _log_above_the_bar():

        def add(title: str, total_steps: int) -> Show:
            task = progress.add_task(title, total=total_steps)
            return lambda step, row: progress.update(task, completed=step)

        yield add


def _lines(title: str, total_steps: int) -> Show:
    facts = _Facts()
    return lambda step, row: facts.log_sometimes(title, step, total_steps, row)


@contextmanager
def _log_above_the_bar() -> Iterator[None]:
    """While a bar is shown rich stands in for `sys.stderr`; a handler that holds the old one would write into the bar."""
    handlers = [
        each for each in logging.getLogger("forceserver").handlers if type(each) is logging.StreamHandler
    ]
    before = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            handler.setStream(stream or sys.__stderr__)


class _Facts:
    """Speed, temperature and drift so far, from what the run happens to write."""

    def __init__(self) -> None:
        self._first_step: int | None = None
        self._first_row: Mapping[str, float] = {}
        self._began = 0.0
        self._next_line = 0.0

    def describe(self, step: int, row: Mapping[str, float]) -> str:
        now = time.monotonic()
        if self._first_step is None:
            self._began, self._first_step, self._first_row = now, step, row
        words = []
        if step > self._first_step and now > self._began:
            words.append(f"{(step - self._first_step) / (now - self._began):.1f} steps/s")
        temperature = row.get("temperature{kelvin}")
        if temperature is not None:
            words.append(f"{temperature:.0f} K")
        conserved, at_first = (each.get("conserved{electronvolt}") for each in (row, self._first_row))
        if conserved is not None and at_first is not None:
            words.append(f"conserved {1e3 * (conserved - at_first):+.1f} meV")
        return ", ".join(words)

    def log_sometimes(self, title: str, step: int, total_steps: int, row: Mapping[str, float]) -> None:
        facts = self.describe(step, row)
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY_SECONDS
            log.info("%s: %s", title, ", ".join(filter(None, (f"step {step} of {total_steps}", facts))))
