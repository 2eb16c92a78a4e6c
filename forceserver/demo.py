"""The tour behind `make demo`: five short runs on real i-PI, a table with error bars and a figure.

Times in ps and fs, drifts in meV/ps/atom.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from forceserver.attempt import ServerCommand
from forceserver.errors import ForceServerError, UsageError
from forceserver.launch import Ending, LaunchOptions, Supervisor, check_ending
from forceserver.progress import PropertiesTail
from forceserver.signals import stop_on_signals

if TYPE_CHECKING:
    from analysis import Run

INNER_STEP_FS = 0.5
SERVER_OPTIONS = ("--threads", "1")  # 64 waters do not fill two cores, and i-PI needs one
MARKER = "forceserver-demo"  # a folder with this file in it is ours to replace


@dataclass(frozen=True)
class Stop:
    """One stop of the tour."""

    title: str
    input_name: str  # in the library of inputs
    timestep_fs: float  # i-PI's, the outer one
    share: float = 1.0  # of the simulated time


STOPS = (
    Stop("conservative", "nve", INNER_STEP_FS),
    Stop("direct", "nve-direct", INNER_STEP_FS),
    Stop("blended 0.5", "nve-blended", INNER_STEP_FS),
    Stop("MTS, M = 8", "nve-mts", 8 * INNER_STEP_FS),
    Stop("8 beads, MTS, M = 4", "pimd-mts", 4 * INNER_STEP_FS, share=0.4),
)


@dataclass(frozen=True)
class Outcome:
    stop: Stop
    run: Run
    n_steps: int
    wall_seconds_per_fs: float


def run_demo(folder: Path, model: str, time_ps: float) -> None:
    """Run the tour, print its table, write `table.txt` and `demo.png`.

    Raises:
        UsageError: the folder holds something that is not a tour.
        ForceServerError: a run failed; the message shows why.
    """
    _make_folder(folder)
    outcomes = []
    screen = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:28s}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        TimeRemainingColumn(), console=screen,
    ) as progress:  # fmt: skip
        for number, stop in enumerate(STOPS, start=1):
            n_steps = max(20, round(1e3 * time_ps * stop.share / stop.timestep_fs))
            task = progress.add_task(stop.title, total=n_steps)

            def show(step: float, task: int = int(task)) -> None:
                progress.update(task, completed=step)  # type: ignore[arg-type]

            outcomes.append(_run_stop(stop, n_steps, folder / f"{number}-{stop.input_name}", model, show))
    table = _tabulate(outcomes)
    Console().print(table)
    _print_notes(Console(), model, folder)
    with (folder / "table.txt").open("w") as file:
        Console(file=file, width=120).print(table)
    _draw(outcomes, folder / "demo.png")


def _make_folder(folder: Path) -> None:
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MARKER).exists():
            raise UsageError(f"{folder} holds other files; name another folder with -o, or move them away")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


def _run_stop(stop: Stop, n_steps: int, folder: Path, model: str, show: Callable[[float], None]) -> Outcome:
    """One run, supervised as by `forceserver launch`."""
    from analysis import read_run
    from ipi_inputs import load

    load(stop.input_name).with_(steps=n_steps, timestep_fs=stop.timestep_fs, prefix="demo").write(
        folder / "input.xml"
    )
    rows: list[tuple[int, float]] = []  # (step, seconds), as they appear

    def watch(step: int, tail: PropertiesTail) -> None:
        rows.append((step, time.monotonic()))
        show(step)

    with stop_on_signals() as stop_request:
        options = LaunchOptions(ServerCommand(model, options=SERVER_OPTIONS), retries=0)
        supervisor = Supervisor(folder / "input.xml", options, stop_request, watch)
        ending = supervisor.run()
    if ending is Ending.INTERRUPTED:
        raise ForceServerError(
            f"the tour was interrupted ({supervisor.reason}); what was done is in {folder.parent}"
        )
    check_ending(ending, supervisor.reason)
    show(n_steps)
    return Outcome(stop, read_run(folder), n_steps, _seconds_per_step(rows) / stop.timestep_fs)


def _seconds_per_step(rows: Sequence[tuple[int, float]]) -> float:
    """Wall time between the first and the last row that were seen, so without what it takes to start."""
    steps = rows[-1][0] - rows[0][0] if rows else 0
    return (rows[-1][1] - rows[0][1]) / steps if steps else math.nan


def _tabulate(outcomes: Sequence[Outcome]) -> Table:
    from analysis.drift import energy_drift
    from analysis.kinetics import species_temperatures

    table = Table(title="64 water molecules, 300 K")
    for column in ("run", "steps", "ps", "wall s\nper fs", "drift\nmeV/ps/atom", "T(H)\nK", "T(O)\nK"):
        table.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
    for outcome in outcomes:
        temperatures = species_temperatures(outcome.run)
        table.add_row(
            outcome.stop.title,
            str(outcome.n_steps),
            f"{1e-3 * outcome.n_steps * outcome.stop.timestep_fs:.2f}",
            f"{outcome.wall_seconds_per_fs:.2f}",
            _number(str(energy_drift(outcome.run))),
            _number(str(temperatures["H"])),
            _number(str(temperatures["O"])),
        )
    return table


def _number(estimate: str) -> str:
    """An estimate without its unit, which stands at the head of the column."""
    return estimate.partition(" ")[0]


def _print_notes(console: Console, model: str, folder: Path) -> None:
    if model.startswith("qtip4pf"):
        console.print(
            "The direct forces are SYNTHETIC (q-TIP4P/F + a solenoidal field): they show the damage, not the speed."
        )
    console.print(f"Inputs, outputs, logs and figure: {folder}/ (demo.png). The same by hand:")
    console.print(f"  cd {folder}/4-nve-mts && i-pi input.xml      and in a second terminal there")
    console.print(f"  forceserver run {model} -i input.xml")


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Drift of `conserved` and temperature by species, all runs on one sheet."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from analysis.kinetics import temperature_series

    figure, (energy, temperature) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for color, outcome in zip(("C0", "C3", "C1", "C2", "C4"), outcomes, strict=True):
        conserved = outcome.run.series("conserved")
        change = 1e3 * (conserved.values - conserved.values[0]) / outcome.run.atoms.n_atoms
        energy.plot(conserved.time_ps, change, color=color, label=outcome.stop.title)
        for species, style in (("H", "-"), ("O", "--")):
            series = temperature_series(outcome.run, species)
            label = (
                f"{species}, {outcome.stop.title}"
                if outcome.stop.input_name in ("nve", "nve-direct")
                else None
            )
            if label:
                temperature.plot(series.time_ps, series.values, style, color=color, label=label)
    energy.set(xlabel="time (ps)", ylabel="change of conserved energy (meV/atom)")
    temperature.set(xlabel="time (ps)", ylabel="kinetic temperature (K)")
    energy.legend(fontsize="small")
    temperature.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
