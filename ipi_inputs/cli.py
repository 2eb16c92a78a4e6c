"""`forceserver inputs`: list, show, write and lint i-PI inputs.

Options carry their units in their names. Results go to stdout, what a user should know besides to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from ipi_inputs.document import InputError

Command = TypeVar("Command", bound=Callable[..., Any])

USAGE = 2
FOUND_ERRORS = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def inputs() -> None:
    """The library of i-PI inputs: list, show, write, lint."""


@contextmanager
def _told_without_traceback() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        click.echo(f"forceserver inputs: {error}", err=True)
        sys.exit(USAGE)


def _parse_mts(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> int | tuple[int, ...] | None:
    if text is None:
        return None
    try:
        counts = tuple(int(item) for item in text.split(","))
    except ValueError:
        raise click.BadParameter(f"wanted a whole number, or one per level as in 4,2; got '{text}'") from None
    return counts[0] if len(counts) == 1 else counts


_EDIT_OPTIONS = (
    click.option("--steps", type=int, help="Number of (outer) steps."),
    click.option("--seed", type=int, help="Of the random numbers: another one for each replica."),
    click.option(
        "--temperature", "temperature_K", metavar="K", type=float, help="Target and start, in kelvin."
    ),
    click.option("--pressure", "pressure_GPa", metavar="GPA", type=float, help="In gigapascal."),
    click.option(
        "--timestep", "timestep_fs", metavar="FS", type=float, help="i-PI's time step: the OUTER one, in fs."
    ),
    click.option(
        "--mts",
        metavar="M[,M]",
        callback=_parse_mts,
        help="Inner steps per outer step. The INNER step stays as it is, unless --timestep comes with it.",
    ),
    click.option("--n-beads", type=int, help="Beads of the ring polymer."),
    click.option("--contracted-beads", type=int, help="Beads of the contracted ring polymer."),
    click.option("--tau", "tau_fs", metavar="FS", type=float, help="Of the thermostat of the atoms, in fs."),
    click.option(
        "--forces", metavar="KIND", help="conservative, direct or blended:X, for inputs with one force field."
    ),
    click.option("--structure", metavar="FILE", type=click.Path(path_type=Path), help="To start from."),
    click.option("--address", metavar="NAME", help="Of the sockets, another one for each run on a machine."),
    click.option("--prefix", metavar="NAME", help="Of the output files."),
)


def _with_edits(command: Command) -> Command:
    for option in reversed(_EDIT_OPTIONS):
        command = option(command)
    return command


@inputs.command("list")
def list_inputs() -> None:
    """The names of all inputs, each with what it does."""
    from ipi_inputs.library import load, names

    width = max(len(name) for name in names())
    for name in names():
        click.echo(f"{name:{width}}  {load(name).summary}")


@inputs.command()
@click.argument("name")
def show(name: str) -> None:
    """Print an input, and what it costs."""
    from ipi_inputs.cost import cost_of
    from ipi_inputs.library import load

    with _told_without_traceback():
        source = load(name)
        click.echo(source.text, nl=False)
        for line in cost_of(source.facts).lines():
            click.echo(line, err=True)


@inputs.command()
@click.argument("name")
@click.option(
    "-o", "--output", default="input.xml", show_default=True, metavar="FILE", help="Where to write it."
)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@_with_edits
def write(name: str, output: str, force: bool, **edits: Any) -> None:
    """Write an input with its structure beside it, edited as the options say.

    Prints the path, then what the edited input costs. Run it in its own folder: i-pi FILE.
    """
    from ipi_inputs.cost import cost_of
    from ipi_inputs.library import load

    with _told_without_traceback():
        if Path(output).exists() and not force:
            raise InputError(f"{output} exists; give another name with -o, or --force to overwrite it")
        asked = {key: value for key, value in edits.items() if value is not None}
        source = load(name).with_(**asked) if asked else load(name)
        click.echo(source.write(output))
        for line in cost_of(source.facts).lines():
            click.echo(line)


@inputs.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Findings as JSON: a list, one object each.")
@click.option(
    "--net-force",
    type=click.Choice(["remove", "keep"]),
    default="remove",
    show_default=True,
    help="What the force server will do with the net force of direct forces.",
)
@click.option(
    "--forces",
    type=click.Choice(["conservative", "direct", "blended"]),
    default="conservative",
    show_default=True,
    help="What the force server will send to sockets whose <parameters> say nothing.",
)
def lint(files: tuple[str, ...], as_json: bool, net_force: str, forces: str) -> None:
    """Say what is wrong with i-PI inputs. Several are taken to run side by side.

    Exit code 1 if there are errors, 0 if there are only warnings or nothing.
    """
    from ipi_inputs.linter import lint_many

    with _told_without_traceback():
        findings = lint_many(files, default_forces=forces, keeps_net_force=net_force == "keep")
    if as_json:
        click.echo(
            json.dumps(
                [{"file": str(path), **each.as_json()} for path, found in findings.items() for each in found],
                indent=2,
            )
        )
    else:
        for path, found in findings.items():
            for each in found:
                click.echo(f"{path}:{each.line}: {each.level}: {each.what} [{each.rule}]")
                click.echo(f"    why     {each.why}\n    remedy  {each.remedy}\n    see     {each.reference}")
    count = sum(each.level == "error" for found in findings.values() for each in found)
    if not as_json:
        total = sum(len(found) for found in findings.values())
        click.echo(f"{len(findings)} inputs, {total} findings, {count} errors", err=True)
    sys.exit(FOUND_ERRORS if count else 0)
