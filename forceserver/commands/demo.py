"""`forceserver demo`: real i-PI, a real network, seven runs; what direct forces do, and how MTS mends it."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

SHORT_PS, FULL_PS = 0.1, 10.0


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for inputs, outputs, table, figure and report.  [default: demo-output, demo-full]",
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
@click.option("--no-browser", is_flag=True, help="Do not open the report.")
def demo(output: Path | None, model: str, full: bool, time_ps: float | None, no_browser: bool) -> None:
    """The tour: 64 water molecules at constant energy with conservative, direct and blended forces and by multiple time
    stepping; under a global thermostat, which shows who is hot and who is cold; and as path integrals.

    Three minutes on two cores. A tour that was interrupted is continued by the same command (exit code 75 until then).
    """  # fmt: skip
    from forceserver.demo import findings
    from forceserver.demo.stops import duration_text, expected_seconds
    from forceserver.demo.tour import Tour, finish, run_tour
    from forceserver.openmp import spin_briefly
    from forceserver.potentials.specification import anchored

    if full and time_ps is not None:
        raise click.UsageError("--full is --length 10; give one of them")
    spin_briefly()
    tour = Tour(model, FULL_PS if full else time_ps or SHORT_PS, is_full=full)
    output = output or Path("demo-full" if full else "demo-output")
    if full:
        expected = duration_text(expected_seconds(tour.time_ps, model))
        click.echo(
            f"about {expected} on this machine; Ctrl-C interrupts it, the same command goes on", err=True
        )
    found = findings.judge(run_tour(tour, output))
    findings.print_findings(found, model)
    if model.startswith("qtip4pf"):
        click.echo(
            "The direct forces are SYNTHETIC, a solenoidal field: they show the damage, not the speed."
        )
    page = findings.write_findings(found, output)
    finish(tour, output)
    click.echo(f"Report: {page}\nInputs, outputs, logs, figure: {output}/. One of the runs by hand:")
    click.echo(f"  cd {found[-1].outcome.folder} && i-pi input.xml      and in a second terminal there")
    click.echo(f"  forceserver run {anchored(model)} -i input.xml")
    if not no_browser:
        findings.show_page(page)
