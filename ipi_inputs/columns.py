"""The columns of `<properties>` that follow from the system: one per species, one per normal mode.

Rewritten when the structure or the number of beads changes, so that every column exists and none is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import groupby

from ipi_inputs.document import apply, replace_value, value_of
from ipi_inputs.facts import InputFacts
from ipi_inputs.reading import parse_list

COLUMNS_PER_LINE = 4

_CALL = re.compile(r"(?P<name>\w+)\((?P<argument>[^);]+)(?P<rest>[^)]*\)(\{.*\})?)")


def rewrite_species(facts: InputFacts, before: Sequence[str], after: Sequence[str]) -> str:
    """One column per species of the new structure wherever there were columns per species of the old one."""
    return _rewrite(facts, lambda argument: argument in before, after, least=1)


def rewrite_normal_modes(facts: InputFacts, n_beads: int) -> str:
    """One column per normal mode wherever more than one was listed; a lone centroid, nm=0, stays alone."""
    modes = [f"nm={k}" for k in range(n_beads)]
    return _rewrite(facts, lambda argument: argument.startswith("nm="), modes, least=2)


def _rewrite(facts: InputFacts, belongs: Callable[[str], bool], after: Sequence[str], least: int) -> str:
    edits = []
    for output in facts.outputs_of("properties"):
        old = value_of(output.element)
        columns = _expand(parse_list(old), belongs, after, least)
        if columns != list(parse_list(old)):
            edits.append(replace_value(facts.document, output.element, _layout(columns)))
    return apply(facts.document, edits)


def _expand(
    columns: Sequence[str], belongs: Callable[[str], bool], after: Sequence[str], least: int
) -> list[str]:
    """Replace each run of columns that differ only in an argument by the same column with the new arguments."""

    def template(column: str) -> tuple[str, str] | None:
        call = _CALL.fullmatch(column)
        return (call["name"], call["rest"]) if call and belongs(call["argument"].strip()) else None

    expanded: list[str] = []
    for key, run in groupby(columns, template):
        members = list(run)
        if key is None or len(members) < least:
            expanded += members
        else:
            expanded += [f"{key[0]}({argument}{key[1]}" for argument in after]
    return expanded


def _layout(columns: Sequence[str]) -> str:
    lines = [", ".join(columns[i : i + COLUMNS_PER_LINE]) for i in range(0, len(columns), COLUMNS_PER_LINE)]
    return "[ " + ",\n        ".join(lines) + " ]"
