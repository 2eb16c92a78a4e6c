"""The options of `forceserver run` that `launch` hands on, checked by the command that will read them again.

The servers start in the folder of the run and not where the user stands, so every path among them is made absolute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rich_click as click

from forceserver.commands.run import run
from forceserver.errors import UsageError
from forceserver.potentials.specification import anchored

# What launch says to its servers itself, and where its user can say it.
OWN = {
    "inputs": "the input is INPUT.xml",
    "address": "the addresses stand in INPUT.xml",
    "template": "the atoms stand in INPUT.xml",
    "sockets_prefix": "each start has a socket folder of its own",
    "socket_names": "each of its servers serves all sockets: nobody else could",
    "device": "use --devices of launch",
}


def _anchored_pair(text: str) -> str:
    name, separator, model = text.partition("=")
    return name + separator + (anchored(model) if model else "")


MODELS: dict[str, Callable[[str], str]] = {"direct_model": anchored, "also": _anchored_pair}


def handed_on(model: str, words: Sequence[str]) -> tuple[str, ...]:
    """Options of `forceserver run` that mean the same from any folder.

    Args:
        model: the MODEL that goes with them.
        words: what stands after `--`.

    Raises:
        UsageError: an option that `launch` sets itself.
        click.UsageError: what `forceserver run` would refuse: unknown options, bad values, stray words.
    """
    context = run.make_context("forceserver launch ... --", [model, *words])
    given, _, _ = run.make_parser(context).parse_args([model, *words])
    anchored_words: list[str] = []
    for parameter in run.params:
        if isinstance(parameter, click.Option) and parameter.name in given:
            if parameter.name in OWN:
                raise UsageError(f"{parameter.opts[0]} after `--` is set by launch: {OWN[parameter.name]}")
            values = given[parameter.name] if parameter.multiple else [given[parameter.name]]
            anchored_words += [word for value in values for word in _words(parameter, value)]
    return tuple(anchored_words)


def _words(option: click.Option, value: Any) -> list[str]:
    if option.is_flag:
        return [(option.opts if value else option.secondary_opts)[-1]]
    if isinstance(option.type, click.Path):
        value = str(Path(value).resolve())
    elif option.name in MODELS:
        value = MODELS[option.name](value)
    return [option.opts[-1], value]
