"""`forceserver demo`: real i-PI, a real network, seven runs; what direct forces do, and how MTS mends it."""

from __future__ import annotations

import shlex
import shutil
import signal
from pathlib import Path

import rich_click as click

SHORT_PS, FULL_PS = 0.1, 10.0


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for inputs, outputs, table, figure and report; a short tour that has finished there is replaced.  "
    "[default: demo-output, demo-full]",
)
@click.option(
    "--model",
    default="water-pet",
    show_default=True,
    metavar="MODEL",
    help="A model of water with both kinds of forces, as for `forceserver run`.",
)
@click.option(
    "--full",
    is_flag=True,
    help=f"Runs of {FULL_PS:g} ps, for numbers to rely on; says how long it will take.",
)
@click.option(
    "--length",
    "time_ps",
    type=click.FloatRange(min=0.01),
    metavar="PS",
    help=f"Simulated time of the first run, of which the others take their share.  [default: {SHORT_PS:g}]",
)
@click.option("--device", default="cpu", show_default=True, help="torch device, e.g. cuda.")
@click.option("--no-browser", is_flag=True, help="Do not open the report.")
def demo(
    output: Path | None, model: str, full: bool, time_ps: float | None, device: str, no_browser: bool
) -> None:
    """The tour: 64 water molecules at constant energy with conservative, direct and blended forces and by multiple time
    stepping; under a global thermostat, which shows who is hot and who is cold; and as path integrals.

    Three minutes on two cores. A tour that was interrupted is continued by the same command (exit code 75 until then).
    """  # fmt: skip
    from forceserver.demo import findings
    from forceserver.demo.stops import duration_text, expected_seconds
    from forceserver.demo.tour import Interrupted, Tour, finish, run_tour
    from forceserver.logs import start_logging
    from forceserver.openmp import spin_briefly
    from forceserver.potentials import require
    from forceserver.run_folder import disk_errors_named

    if full and time_ps is not None:
        raise click.UsageError("--full is --length 10; give one of them")
    spin_briefly()
    start_logging()
    require(model)
    tour = Tour(model, FULL_PS if full else time_ps or SHORT_PS, device)
    output = output or Path("demo-full" if full else "demo-output")
    try:
        if tour.is_long and (left := tour.steps_left(output)):
            expected = duration_text(expected_seconds(left, tour.time_ps, model, device))
            click.echo(
                f"about {expected} on this machine; Ctrl-C interrupts it, the same command goes on", err=True
            )
        with disk_errors_named(output):
            found = findings.judge(run_tour(tour, output))
            page = findings.write_findings(found, output)
            finish(tour, output)
    except KeyboardInterrupt:  # once more after the first, or while nothing runs
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise Interrupted(
            f"the tour was interrupted; what was done is in {output}, and the same command continues it"
        ) from None
    findings.print_findings(found, model)
    if model.startswith("qtip4pf"):
        click.echo(
            "The direct forces are SYNTHETIC, a solenoidal field: they show the damage, not the speed."
        )
    click.echo(f"Report: {page}\nInputs, outputs, logs, figure: {output}/. One of the runs by hand:")
    for line in by_hand(found[-1].outcome.stop.input_name, model):
        click.echo(f"  {line}")
    if not no_browser:
        findings.show_page(page)


def by_hand(input_name: str, model: str) -> list[str]:
    """What to type for a run of one's own, in a folder of its own: i-PI would write over what the tour has there."""
    from forceserver.potentials.specification import anchored

    ours, ipi = _as_typed("forceserver"), _as_typed("i-pi")
    return [
        f"{ours} inputs write {input_name} -o by-hand/input.xml",
        f"cd by-hand && {ipi} input.xml",
        f"{ours} run {shlex.quote(anchored(model))} -i input.xml      in a second terminal there",
    ]


def _as_typed(program: str) -> str:
    """Its name where that finds the one of this environment, else its path."""
    from forceserver.processes import find_program

    path = find_program(program)
    found = shutil.which(program)
    return program if found and Path(found).samefile(path) else shlex.quote(path)
