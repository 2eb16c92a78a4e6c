"""`forceserver demo`: real i-PI, real water, five runs; what direct forces do to the energy, and how MTS mends it."""

from __future__ import annotations

from pathlib import Path

import rich_click as click


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for inputs, outputs, table and plots; made afresh.",
)
@click.option(
    "--model", default="qtip4pf:direct=0.02", show_default=True, help="A model with both kinds of forces."
)
@click.option(
    "--length",
    "time_ps",
    type=click.FloatRange(min=0.02),
    default=0.4,
    show_default=True,
    metavar="PS",
    help="Simulated time of each run; path integrals take less than half of it.",
)
def demo(output: Path, model: str, time_ps: float) -> None:
    """The tour: 64 water molecules with conservative, direct and blended forces, by multiple time stepping, and as path
    integrals.

    The built-in model is q-TIP4P/F, whose direct forces are SYNTHETIC: a solenoidal field of known strength, made to
    misbehave as the direct head of a network does. They show the damage, not the speed.
    """  # fmt: skip
    from forceserver.demo import run_demo

    run_demo(output, model, time_ps)
