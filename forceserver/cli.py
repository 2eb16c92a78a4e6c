"""The command line: words in, objects out, then one call into the library.

Groups are loaded when they are used and torch when a model is: `forceserver --help` needs neither.
"""

from __future__ import annotations

import contextlib
import sys
from importlib import import_module

import rich_click as click

from forceserver import __version__

# name: (where the command lives, the line that --help shows for it)
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("forceserver.commands.run:run", "Serve forces to i-PI until it says EXIT."),
    "launch": (
        "forceserver.commands.launch:launch",
        "i-PI and its force servers together: started, watched, resumed.",
    ),
    "inputs": ("ipi_inputs.cli:inputs", "The library of i-PI inputs: list, show, write, lint."),
    "analyze": (
        "analysis.cli:analyze",
        "From i-PI's outputs to a report card: drift, equipartition, thermostat artifacts.",
    ),
    "models": ("forceserver.commands.models:models", "What can be served: bundled models, schemes, extras."),
    "bench": (
        "forceserver.commands.bench:bench",
        "What a step costs: ours, i-PI's own drivers, and the model alone.",
    ),
    "demo": (
        "forceserver.commands.demo:demo",
        "The tour: 64 waters, what direct forces do, and how MTS mends it.",
    ),
}


class LazyGroup(click.RichGroup):
    """A group that imports a command when it is asked for, and lists them without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if ctx.resilient_parsing or _wants_overview():
            return click.RichCommand(
                name=cmd_name, short_help=COMMANDS[cmd_name][1], help=COMMANDS[cmd_name][1]
            )
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


def _wants_overview() -> bool:
    """Whether only the list of commands is wanted."""
    return len(sys.argv) == 1 or sys.argv[1] in ("--help", "-h")


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__)
def cli() -> None:
    """Force servers for i-PI: conservative, direct and blended forces from one model.

    i-PI listens; a force server dials in. In one terminal `i-pi input.xml`, in another `forceserver run MODEL -i input.xml`.
    """


def main() -> None:
    """Entry point. An error that a user is meant to read (it has an exit code) ends in one line, any other in a traceback."""
    try:
        cli(prog_name="forceserver")
    except Exception as error:
        exit_code = getattr(error, "exit_code", None)
        if not isinstance(exit_code, int):
            raise
        with contextlib.suppress(OSError):  # nobody listens any more
            click.echo(f"forceserver: {error}", err=True)
        sys.exit(exit_code)
