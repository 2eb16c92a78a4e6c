"""i-PI inputs that run as they are, edits that keep them valid, and a linter. Importing this package loads no i-PI.

    names()              what there is
    load("nve-mts")      an InputFile: immutable, with_(...) gives an edited copy, write(path) puts it on disk
    lint(path_or_text)   what is wrong with an i-PI input, before the hours are spent

Units: an edit carries its unit in its name (timestep_fs, temperature_K); the input itself says its own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipi_inputs.document import InputError
    from ipi_inputs.library import InputFile, load, names
    from ipi_inputs.linter import Finding, lint, lint_many

__all__ = ["Finding", "InputError", "InputFile", "lint", "lint_many", "load", "names"]

_HOMES = {
    "InputError": "document",
    "InputFile": "library",
    "load": "library",
    "names": "library",
    "Finding": "linter",
    "lint": "linter",
    "lint_many": "linter",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
