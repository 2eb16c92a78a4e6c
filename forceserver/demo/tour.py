"""The tour: the stops one after the other, supervised as by `forceserver launch`, in a folder that is ours.

An interrupted tour is continued by the same command. A finished one is made afresh, except a full one: hours are not thrown away.
Times in ps and fs, wall times in seconds.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from forceserver.attempt import ServerCommand
from forceserver.demo.costs import sensible_threads
from forceserver.demo.stops import STOPS, Stop
from forceserver.errors import ForceServerError, UsageError
from forceserver.launch import Ending, LaunchOptions, Supervisor
from forceserver.potentials import require
from forceserver.potentials.specification import anchored
from forceserver.progress import PropertiesTail
from forceserver.signals import stop_on_signals

MARKER = "forceserver-demo"  # a folder with this file in it is ours to replace
ENDED = "ended.json"  # beside the outputs of a stop, once it is over
WARM_UP = 0.2  # of the rows: what TorchScript takes to specialise its code is no cost of a long run


class Interrupted(ForceServerError):
    """Somebody ended the tour; the same command continues it."""

    exit_code = 75


@dataclass(frozen=True)
class Tour:
    """What was asked for."""

    model: str
    time_ps: float  # of the first stop; the others take their share
    is_full: bool = False  # it takes hours

    def identity(self) -> str:
        """Equal for tours that may be continued by each other: a model file that has changed makes another one."""
        file = Path(anchored(self.model).split(",")[0])
        changed = file.stat().st_mtime if file.is_file() else 0.0
        stops = [asdict(stop) for stop in STOPS]
        return json.dumps([anchored(self.model), changed, self.time_ps, stops])


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
        UsageError: the folder holds something that is not a tour, or the model cannot be served.
        Interrupted: by a signal.
        ForceServerError: the first stop failed, conservative as it is: so would the others.
    """
    require(tour.model)
    _take_folder(tour, folder)
    screen = Console(stderr=True)
    outcomes: list[Outcome] = []
    with Progress(
        TextColumn("{task.description:16s}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        TimeRemainingColumn(), console=screen,
    ) as progress:  # fmt: skip
        for number, stop in enumerate(STOPS, start=1):
            n_steps = stop.n_steps(tour.time_ps)
            task = progress.add_task(stop.title, total=n_steps)

            def show(step: float, task: int = int(task)) -> None:
                progress.update(task, completed=step)  # type: ignore[arg-type]

            place = folder / f"{number}-{stop.folder_name}"
            outcome = _recall(stop, place, n_steps) or _run_stop(stop, tour, place, show)
            if outcome.failure and not outcomes:
                raise ForceServerError(f"{stop.title}: {outcome.failure}. See the logs in {place}")
            show(n_steps)
            outcomes.append(outcome)
    return outcomes


def finish(tour: Tour, folder: Path) -> None:
    """The tour is over: the next short one starts afresh."""
    if not tour.is_full:
        (folder / MARKER).write_text("")


def _take_folder(tour: Tour, folder: Path) -> None:
    marker = folder / MARKER
    if folder.exists():
        if any(folder.iterdir()) and not marker.exists():
            raise UsageError(f"{folder} holds other files; name another folder with -o, or move them away")
        if marker.exists() and marker.read_text() == tour.identity():
            return
        if tour.is_full and any(folder.iterdir()):
            raise UsageError(
                f"{folder} holds another tour, perhaps of hours; name another folder with -o, or remove it"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    marker.write_text(tour.identity())


def _recall(stop: Stop, place: Path, n_steps: int) -> Outcome | None:
    """The outcome of a stop that an interrupted tour had finished."""
    try:
        known = json.loads((place / ENDED).read_text())
    except (OSError, ValueError):
        return None
    seconds = known["seconds_per_fs"]
    return Outcome(stop, place, n_steps, math.nan if seconds is None else seconds, known["failure"])


def _run_stop(stop: Stop, tour: Tour, place: Path, show: Callable[[float], None]) -> Outcome:
    """One run, or the rest of it."""
    if not (place / "input.xml").exists():
        stop.input_file(tour.time_ps).write(place / "input.xml")
    rows: list[tuple[int, float]] = []  # (step, seconds), as they appear

    def watch(step: int, tail: PropertiesTail) -> None:
        rows.append((step, time.monotonic()))
        show(step)

    servers = ServerCommand(anchored(tour.model), options=("--threads", str(sensible_threads())))
    with stop_on_signals() as stop_request:
        supervisor = Supervisor(place / "input.xml", LaunchOptions(servers, retries=0), stop_request, watch)
        ending = supervisor.run()
    if ending is Ending.INTERRUPTED:
        raise Interrupted(
            f"the tour was interrupted ({supervisor.reason}); what was done is in {place.parent}, and the same command "
            "continues it"
        )
    failure = supervisor.reason if ending is Ending.FAILED else ""
    seconds = seconds_per_step(rows) / stop.timestep_fs
    record = {"seconds_per_fs": None if math.isnan(seconds) else seconds, "failure": failure}
    (place / ENDED).write_text(json.dumps(record) + "\n")
    return Outcome(stop, place, stop.n_steps(tour.time_ps), seconds, failure)


def seconds_per_step(rows: Sequence[tuple[int, float]]) -> float:
    """Wall time between the first and the last row that count: without what it takes to start.

    Args:
        rows: (step, seconds) of every row that was seen.
    """
    counted = rows[math.ceil(WARM_UP * len(rows)) :]
    steps = counted[-1][0] - counted[0][0] if counted else 0
    return (counted[-1][1] - counted[0][1]) / steps if steps else math.nan
