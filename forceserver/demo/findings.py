"""What the tour found: a table with error bars and verdicts, a figure, and the report of the analysis.

Drifts in meV/ps/atom, temperatures in K, wall times in seconds per fs.
"""

from __future__ import annotations

import math
import os
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from forceserver.demo.tour import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis import Estimate
    from analysis.assessment import Assessment

COLUMNS = ("run", "steps", "ps", "s/fs", "drift", "T(H)", "T(O)", "verdict")
CAPTION = "s/fs: wall time per fs; drift of `conserved`: meV/ps/atom; T: K"
NOTHING = "-"
LINEAR_UP_TO = 100.0  # meV/atom, in a figure of what changes by more than ten times that


@dataclass(frozen=True)
class Finding:
    """One stop, judged."""

    outcome: Outcome
    assessment: Assessment | None  # None: it left too little to judge


def judge(outcomes: Sequence[Outcome]) -> list[Finding]:
    """Analyse every run by itself."""
    from analysis.assessment import assess
    from analysis.errors import AnalysisError
    from analysis.run import read_run

    found = []
    with Console(stderr=True).status("analysing") as status:
        for outcome in outcomes:
            status.update(f"analysing {outcome.stop.title}")
            try:
                found.append(Finding(outcome, assess(read_run(outcome.folder))))
            except AnalysisError:
                found.append(Finding(outcome, None))
    return found


def rows_of(findings: Sequence[Finding]) -> list[tuple[str, ...]]:
    """The table as words, one tuple per run, in the order of `COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for finding in findings:
        outcome, stop = finding.outcome, finding.outcome.stop
        estimates = {} if finding.assessment is None else finding.assessment.measured.estimates
        seconds = outcome.seconds_per_fs
        rows.append(
            (
                stop.title,
                str(outcome.n_steps),
                f"{1e-3 * outcome.n_steps * stop.timestep_fs:.2f}",
                NOTHING if math.isnan(seconds) else f"{seconds:.2f}",
                _number(estimates, "drift"),
                _number(estimates, "temperature.H"),
                _number(estimates, "temperature.O"),
                _verdict(finding),
            )
        )
    return rows


def _number(estimates: Mapping[str, Estimate], key: str) -> str:
    """An estimate without its unit, which stands below the table."""
    return estimates[key].number if key in estimates else NOTHING


def _verdict(finding: Finding) -> str:
    if finding.outcome.failure:
        return "broke off"
    return NOTHING if finding.assessment is None else finding.assessment.status


def print_findings(findings: Sequence[Finding], model: str) -> None:
    """The table, and below it what is wrong with whom."""
    from analysis.report import headline

    console = Console()
    title = f"64 water molecules, 300 K, {model}"
    table = Table(title=title, caption=CAPTION, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("run", "verdict") else "right", no_wrap=True)
    for row in rows_of(findings):
        table.add_row(*row)
    console.print(table)
    for finding in findings:
        title, found = finding.outcome.stop.title, finding.assessment
        if finding.outcome.failure:
            console.print(f"{title}: {finding.outcome.failure}", highlight=False, markup=False)
        elif found is not None and found.status in ("fail", "warn"):
            console.print(f"{title}: {headline(found)}", highlight=False, markup=False)


def write_findings(findings: Sequence[Finding], folder: Path) -> Path:
    """Write `table.md`, `demo.png` and the report. Returns the page."""
    from analysis.report import write_report

    lines = [
        COLUMNS,
        tuple("---" if c in ("run", "verdict") else "---:" for c in COLUMNS),
        *rows_of(findings),
    ]
    text = "".join(f"| {' | '.join(row)} |\n" for row in lines)
    (folder / "table.md").write_text(f"{text}\n{CAPTION}\n")
    _draw(findings, folder / "demo.png")
    judged = [finding.assessment for finding in findings if finding.assessment is not None]
    return write_report(judged, folder / "report")[1]


def _draw(findings: Sequence[Finding], path: Path) -> None:
    """Energy at constant energy, and the temperatures of species under the global thermostat, on one sheet."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (energy, temperature) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, finding in enumerate(findings):
        if finding.assessment is None:
            continue
        if finding.outcome.stop.title.startswith("NVE"):
            _draw_energy(energy, finding, f"C{number}")
        elif finding.outcome.stop.title.startswith("SVR"):
            _draw_temperatures(temperature, finding, f"C{number}")
    energy.set(xlabel="time (ps)", ylabel="change of conserved energy (meV/atom)")
    if max(map(abs, energy.get_ylim())) > 10.0 * LINEAR_UP_TO:  # with less, the axis would have two ticks
        energy.set_yscale("symlog", linthresh=LINEAR_UP_TO)
    temperature.set(xlabel="time (ps)", ylabel="kinetic temperature, mean so far (K)")
    temperature.axhline(300.0, color="0.7", linewidth=1.0)
    for axes in (energy, temperature):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_energy(axes: Axes, finding: Finding, color: str) -> None:
    from analysis.errors import MissingOutput

    assert finding.assessment is not None
    run = finding.assessment.run
    try:
        conserved = run.series("conserved")
    except MissingOutput:
        return
    change = 1e3 * (conserved.values - conserved.values[0]) / run.atoms.n_atoms
    axes.plot(conserved.time_ps, change, color=color, label=finding.outcome.stop.title)


def _draw_temperatures(axes: Axes, finding: Finding, color: str) -> None:
    import numpy as np

    from analysis.errors import MissingOutput
    from analysis.kinetics import temperature_series

    assert finding.assessment is not None
    for species, style in (("H", "-"), ("O", "--")):
        try:
            series = temperature_series(finding.assessment.run, species)
        except MissingOutput:
            continue
        mean_so_far = np.cumsum(series.values) / np.arange(1, len(series.values) + 1)
        label = f"{species}, {finding.outcome.stop.title}"
        axes.plot(series.time_ps, mean_so_far, style, color=color, label=label)


def show_page(page: Path) -> bool:
    """Open a page in the browser, where there is a display to show it on. Whether one was opened."""
    if os.environ.get("CI") or not sys.stdout.isatty():
        return False
    has_display = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    return has_display and webbrowser.open(page.resolve().as_uri())
