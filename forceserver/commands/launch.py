"""`forceserver launch`: i-PI and its force servers together."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import NoReturn

import rich_click as click

NOT_FINISHED = 75  # EX_TEMPFAIL: the same command continues the run

AGAIN = "the same command continues the run"

EPILOG = """
The run lives in the folder of INPUT.xml, with the logs i-pi.log and server-N.log beside its outputs. Where a RESTART or a
checkpoint stands there, it is continued; an i-PI that is killed outright goes on from its last <checkpoint>. Exit codes: 0 all
steps done; 1 failed; 2 refused; 75 interrupted (signal, time limit): the same command continues it. Everything after `--` goes
to `forceserver run`, e.g. `-- --net-force keep`; paths there, as those in MODEL, are meant from where you stand.
"""


@click.command(epilog=EPILOG)
@click.argument("input_path", metavar="INPUT.xml", type=click.Path(path_type=Path))
@click.argument("server_options", nargs=-1, type=click.UNPROCESSED)
@click.option("--model", required=True, metavar="MODEL", help="As for `forceserver run`.")
@click.option("--servers", "n_servers", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--devices",
    default="cpu",
    show_default=True,
    metavar="DEVICE,...",
    help="Dealt out to the servers in turn.",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Failures in a row without a single step between them.",
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="End with a RESTART after this time.",
)
@click.option(
    "--stall",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Without a new row of output (loading the model included), count the run as hung: end it and resume. "
    "Default: wait for ever.",
)
@click.option(
    "--fresh", is_flag=True, help="Start from the input, not from the RESTART that stands in the folder."
)
def launch(
    input_path: Path,
    server_options: tuple[str, ...],
    model: str,
    n_servers: int,
    devices: str,
    retries: int,
    time_limit: float | None,
    stall: float | None,
    fresh: bool,
) -> None:
    """Start i-PI and its servers on INPUT.xml, watch over them, resume what fails, and end all of them cleanly."""
    from forceserver.attempt import ServerCommand
    from forceserver.commands.handed_on import handed_on
    from forceserver.launch import Ending, LaunchOptions, Supervisor, check_devices, check_ending
    from forceserver.logs import start_logging
    from forceserver.potentials import require
    from forceserver.potentials.specification import anchored
    from forceserver.progress import show_progress
    from forceserver.restart import read_run_files
    from forceserver.signals import stop_on_signals

    start_logging()
    require(model)
    names = tuple(devices.split(","))
    check_devices(names, n_servers)
    options = LaunchOptions(
        # The servers start in the folder of the input, which need not be ours.
        ServerCommand(anchored(model), n_servers, names, handed_on(model, server_options)),
        retries=retries,
        time_limit_seconds=time_limit,
        stall_seconds=stall,
        fresh=fresh,
    )
    total_steps = read_run_files(input_path).total_steps
    try:
        with stop_on_signals() as stop, show_progress(input_path.name, total_steps) as watch:
            supervisor = Supervisor(input_path, options, stop, watch)
            ending = supervisor.run()
    except KeyboardInterrupt:  # once more after the first
        _leave_unfinished(
            f"{input_path}: left while i-PI and its servers were ending; i-PI saves RESTART by itself, and {AGAIN}"
        )
    if ending is Ending.INTERRUPTED:
        _leave_unfinished(f"{input_path}: {supervisor.reason}", AGAIN)
    check_ending(ending, supervisor.reason)
    _say(f"{input_path}: {supervisor.reason}")


def _leave_unfinished(*lines: str) -> NoReturn:
    """End with the code that says so, however often Ctrl-C comes now."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in lines:
        _say(line)
    sys.exit(NOT_FINISHED)


def _say(text: str) -> None:
    """On stderr, if anybody still listens there: of `launch 2>&1 | tee log`, Ctrl-C ends tee first."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)
