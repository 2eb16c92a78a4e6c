"""`forceserver analyze RUN...`: words in, a table on stdout, a report in a directory."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from analysis.errors import AnalysisError, UnreadableRun

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.assessment import Assessment

STYLES = {"fail": "bold red", "warn": "yellow", "too short": "dim", "pass": "green"}
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(name="analyze")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--compare", is_flag=True, help="Side by side; the first run is the reference unless one is named."
)
@click.option(
    "--reference", type=click.Path(path_type=Path), metavar="RUN", help="A trusted run to compare with."
)
@click.option("--stitch", is_flag=True, help="The paths are parts of one run, in order of time.")
@click.option(
    "--viscosity",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="MPA_S",
    help="In mPa s: corrects diffusion for the box size.",
)
@click.option("-o", "--output", type=FOLDER, metavar="DIR", help="Where report.html and report.json go.")
def analyze(
    runs: tuple[Path, ...],
    compare: bool,
    reference: Path | None,
    stitch: bool,
    viscosity: float | None,
    output: Path | None,
) -> None:
    """Judge i-PI runs: drift, equipartition, thermostat artifacts, path-integral consistency.

    RUN is a directory, an i-PI input, or the prefix of its outputs. Prints a table; with -o, writes report.html and
    report.json. The exit code is 0 whatever the verdict, 2 where there is nothing to read.
    """
    try:
        if compare and len(runs) < 2 and reference is None:
            raise UnreadableRun("--compare wants at least two runs, or one and --reference RUN; got one")
        parts = [runs] if stitch else [(path,) for path in runs]
        base = (reference,) if reference is not None else parts.pop(0) if compare else None
        if output is not None:
            _prepare(output)
        assessments, trusted = _assess_all(parts, base, viscosity)
        shown = [trusted, *assessments] if compare and trusted is not None else assessments
        _print(shown, trusted)
        if output is not None:
            from analysis.report import write_report

            for path in write_report(shown, output, reference=trusted):
                click.echo(f"wrote {path}", err=True)
    except AnalysisError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)


def _prepare(output: Path) -> None:
    """Make the folder of the report before the work, not after."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        if not os.access(output, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise click.UsageError(
            f"-o {output}: cannot write there ({error.strerror}); name another folder"
        ) from None


def _assess_all(
    parts: Sequence[tuple[Path, ...]], base: tuple[Path, ...] | None, viscosity: float | None
) -> tuple[list[Assessment], Assessment | None]:
    """Assess the reference, then each run against it."""
    from rich.console import Console

    from analysis.assessment import assess
    from analysis.run import Run, read_run

    log = Console(stderr=True)

    def judge(run: Run, against: Assessment | None) -> Assessment:
        with log.status(f"{run.name}: reading") as status:
            return assess(
                run,
                against,
                viscosity_mPa_s=viscosity,
                progress=lambda stage: status.update(f"{run.name}: {stage}"),
            )

    trusted = judge(read_run(*base), None) if base is not None else None
    return [judge(read_run(*own), trusted) for own in parts], trusted


def _print(assessments: list[Assessment], reference: Assessment | None) -> None:
    from rich.console import Console

    console = Console()
    for found in assessments:
        _print_run(console, found)
    if len(assessments) > 1:
        _print_comparison(console, assessments, reference)


def _print_run(console: Console, found: Assessment) -> None:
    from analysis.report import advice_of, headline, setting

    console.print(f"\n[bold]{found.run.name}[/bold]  {setting(found)}", highlight=False)
    console.print(f"[{STYLES[found.status]}]{found.status}[/]  {headline(found)}\n", highlight=False)
    _print_verdicts(console, found)
    for cause in advice_of(found):
        console.print(
            f"\n[bold]{cause.cause}[/bold]: {cause.because}. Remedy: {cause.remedy}.", highlight=False
        )
    if found.measured.gaps:
        console.print("\nNot computed:", style="dim")
    for gap in found.measured.gaps:
        console.print(f"  - {gap}", style="dim", highlight=False, markup=False)


def _print_verdicts(console: Console, found: Assessment) -> None:
    from rich.table import Table

    from analysis.report import sigma_text, time_text, tolerance_text

    table = Table(box=None, pad_edge=False)
    for column in ("", "check", "deviation", "sigma", "tolerated"):
        table.add_column(column)
    for verdict in found.verdicts:
        more = f"; run {time_text(verdict.more_ps)} longer" if verdict.more_ps else ""
        table.add_row(
            f"[{STYLES[verdict.status]}]{verdict.status}[/]",
            verdict.title + more,
            str(verdict.deviation.estimate),
            sigma_text(verdict),
            tolerance_text(verdict),
        )
    console.print(table)


def _print_comparison(console: Console, assessments: list[Assessment], reference: Assessment | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    from analysis.report import comparison

    table = Table(box=None, pad_edge=False, title="side by side", title_justify="left")
    table.add_column("")
    for own in assessments:
        table.add_column(own.run.name + (" (reference)" if own is reference else ""))
    for name, cells in comparison(assessments, reference):
        texts = [
            ("-" if found is None else str(found)) + ("" if apart is None else f" [{apart:+.1f} sigma]")
            for found, apart in cells
        ]
        table.add_row(name, *map(escape, texts))
    console.print(table)
