"""`forceserver run`: serve forces until i-PI says EXIT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import rich_click as click

if TYPE_CHECKING:
    from forceserver.structures import ForceRole

MODEL_HELP = """
MODEL is a scheme with options (`qtip4pf`, `qtip4pf:direct=0.02`, `lj:epsilon=0.01,sigma=3.4`, `ase:MODULE:CLASS`) or a
metatomic file (`model.pt`). A model file is code: serve only what you trust.
"""


def _parse_forces(context: click.Context, option: click.Parameter, text: str) -> ForceRole:
    from forceserver.roles import parse_forces_option

    return parse_forces_option(text)


def _parse_connections(context: click.Context, option: click.Parameter, text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"wanted auto or a number from 1 on, got '{text}'")
    return int(text)


def _parse_also(context: click.Context, option: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    models: dict[str, str] = {}
    for text in pairs:
        name, separator, model = text.partition("=")
        if not separator or not name or not model:
            raise click.BadParameter(f"wanted NAME=MODEL, got '{text}'")
        if name in models:
            raise click.BadParameter(f"'{name}' is given twice: {models[name]} and {model}")
        models[name] = model
    return models


@click.command(epilog=MODEL_HELP)
@click.argument("model")
@click.option(
    "-i",
    "--input",
    "inputs",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="INPUT.xml",
    help="i-PI input (XML, JSON or RESTART): says all about sockets, roles and species. May be repeated.",
)
@click.option(
    "-a", "--address", metavar="NAME|HOST:PORT", help="Where i-PI listens, when its input is not at hand."
)
@click.option(
    "-t",
    "--template",
    type=click.Path(path_type=Path),
    help="With -a: a structure file with the atoms, in i-PI's order.",
)
@click.option("-S", "--sockets-prefix", metavar="PREFIX", help="As `i-pi -S`: in front of unix socket names.")
@click.option(
    "--socket",
    "socket_names",
    multiple=True,
    metavar="NAME",
    help="Serve only this <ffsocket> of the input; another program serves the rest. May be repeated.",
)
@click.option(
    "--forces",
    default="conservative",
    show_default=True,
    callback=_parse_forces,
    metavar="conservative|direct|blended:X",
    help="For a socket whose <parameters> say nothing.",
)
@click.option("--direct", "direct_model", metavar="MODEL2", help="Take direct forces from this model.")
@click.option(
    "--also",
    multiple=True,
    callback=_parse_also,
    metavar="NAME=MODEL",
    help="One more model, for sockets with {model: NAME}.",
)
@click.option("--device", default="cpu", show_default=True, help="torch device, e.g. cuda:0.")
@click.option(
    "--dtype", type=click.Choice(["float32", "float64"]), help="Precision; default: the model's own."
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="CPU threads of torch; default: all cores. Give each of several servers on one node its share.",
)
@click.option(
    "--net-force",
    type=click.Choice(["remove", "keep"]),
    default="remove",
    show_default=True,
    help="Of direct forces, which need not sum to zero.",
)
@click.option(
    "--virial",
    type=click.Choice(["own", "conservative", "none"]),
    default="own",
    show_default=True,
    help="Where direct forces take their virial from.",
)
@click.option(
    "--fusion/--no-fusion",
    default=True,
    show_default=True,
    help="In multiple time stepping, evaluate both kinds of forces at once where both will be asked for.",
)
@click.option(
    "--connections",
    metavar="auto|N",
    default="auto",
    show_default=True,
    callback=_parse_connections,
    help="Per socket.",
)
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="For i-PI to listen.",
)
@click.option(
    "--linger",
    "linger_ms",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="MS",
    help="Silence after which an incomplete gathering is evaluated.",
)
@click.option(
    "--on-bad-forces",
    type=click.Choice(["stop", "reconnect"]),
    default="stop",
    show_default=True,
    help="What follows a result that is not finite: end, or let i-PI give the structure to another server.",
)
@click.option(
    "--log-file", type=click.Path(path_type=Path), help="Write the log there too, with every message."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Append what was counted as a line of JSON there, at the end and at every SIGUSR1.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log every message.")
def run(
    model: str,
    inputs: tuple[Path, ...],
    address: str | None,
    template: Path | None,
    sockets_prefix: str | None,
    socket_names: tuple[str, ...],
    forces: ForceRole,
    direct_model: str | None,
    also: dict[str, str],
    device: str,
    dtype: str | None,
    threads: int | None,
    net_force: str,
    virial: str,
    fusion: bool,
    connections: int | None,
    wait_seconds: float,
    linger_ms: float,
    on_bad_forces: Literal["stop", "reconnect"],
    log_file: Path | None,
    report: Path | None,
    verbose: bool,
) -> None:
    """Serve forces from MODEL to i-PI until it says EXIT.

    i-PI listens, this server dials in; either may be started first.
    """
    from forceserver.logs import start_logging
    from forceserver.openmp import spin_briefly

    spin_briefly()
    from forceserver.serve import ModelRequest, serve, simulations_from
    from forceserver.server import ServeOptions

    start_logging(log_file, verbose=verbose)
    options = ServeOptions(
        default_role=forces,
        n_connections=connections,
        wait_seconds=wait_seconds,
        linger_seconds=1e-3 * linger_ms,
        on_bad_forces=on_bad_forces,
    )
    request = ModelRequest(
        model,
        also=also,
        direct=direct_model,
        device=device,
        dtype=dtype,
        threads=threads,
        keep_net_force=net_force == "keep",
        virial=virial,
        fusion=fusion,
        report=report,
    )
    serve(simulations_from(inputs, address, template, sockets_prefix, socket_names), request, options)
