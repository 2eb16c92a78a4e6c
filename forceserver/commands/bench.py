"""`forceserver bench`: what a step of i-PI costs with our server, and with every other way to run the same model."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

EPILOG = """
CASES: conservative, direct, pimd-BEADS, mts-M, pimd-BEADS-mts-M, rpc-BEADS-CONTRACTED-mts-M, simulations-N, with any numbers,
e.g. --cases mts-4,pimd-32. CONTENDERS: ours, ours-no-fusion, ours-batch (<batch_size>), ours-shared (several servers), driver
(i-pi-py_driver), drivers (several for each socket), driver-batch, driver-shm, ffdirect, limit (the model alone), limit-single.
Ctrl-C ends all of it and keeps what was measured.
"""


@click.command(epilog=EPILOG)
@click.argument("model")
@click.argument("structure", type=click.Path(path_type=Path))
@click.option(
    "--cases", default="", metavar="CASE,...", help="What to simulate; default: eleven usual cases."
)
@click.option("--contenders", default="", metavar="NAME,...", help="Whom to compare; default: all.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Steps that count in each repeat; default: as many as take two seconds.",
)
@click.option("--device", default="cpu", show_default=True, help="torch device, e.g. cuda.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Cores for the forces of each contender, divided among its processes; default: all.",
)
@click.option(
    "--clients",
    type=click.IntRange(min=2),
    metavar="P",
    help="Drivers for each socket where a contender has several; default: one for each core, at most one for each bead and 8.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("bench-output"),
    show_default=True,
    help="Folder for the numbers, the figure, inputs and logs; replaces what an earlier bench left there.",
)
@click.option("--quick", is_flag=True, help="Three cases, and repeats of half a second.")
@click.option(
    "--scaling", is_flag=True, help="Time and memory against atoms and beads; alone, or after --cases."
)
@click.option(
    "--most-atoms", type=click.IntRange(min=1), default=12288, show_default=True, help="Of the scaling."
)
@click.option(
    "--most-beads", type=click.IntRange(min=1), default=64, show_default=True, help="Of the scaling."
)
def bench(
    model: str,
    structure: Path,
    cases: str,
    contenders: str,
    repeats: int,
    steps: int | None,
    device: str,
    threads: int | None,
    clients: int | None,
    output: Path,
    quick: bool,
    scaling: bool,
    most_atoms: int,
    most_beads: int,
) -> None:
    """Measure what a step of i-PI costs with our server, with i-PI's own drivers, and with MODEL alone.

    Real i-PI on STRUCTURE, all contenders in turn, again and again, so that a busy machine hits all alike.
    """
    from rich.console import Console

    from forceserver.bench.cases import QUICK, parse_cases
    from forceserver.bench.contenders import Setting, choose_contenders, read_peer_model
    from forceserver.bench.measure import Options
    from forceserver.bench.run import Bench
    from forceserver.logs import start_logging
    from forceserver.openmp import spin_briefly
    from forceserver.potentials.specification import anchored
    from forceserver.processes import n_cores

    spin_briefly()
    start_logging()
    chosen = [] if scaling and not cases else parse_cases(cases or (",".join(QUICK) if quick else ""))
    spec = anchored(model)
    setting = Setting(spec, read_peer_model(spec), device, threads or n_cores(), clients)
    options = Options(repeats=repeats, steps=steps, seconds=0.5 if quick else 2.0)
    console = Console(width=None if Console().is_terminal else 120)
    Bench(setting, options, structure, output, console).run(
        chosen, choose_contenders(contenders), (most_atoms, most_beads) if scaling else None
    )
