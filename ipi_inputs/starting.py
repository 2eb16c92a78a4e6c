"""The structure files that an input starts from: where it names them, and how i-PI must be told to read one.

No units are converted here; an xyz file must name its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ipi_inputs.document import (
    Document,
    Element,
    InputError,
    apply,
    children,
    find_all,
    replace_value,
    value_of,
)

READS_FILES = ("xyz", "ase", "pdb", "chk")


def structure_elements(document: Document) -> Iterator[Element]:
    """The elements of `<initialize>` that name a file."""
    for initialize in find_all(document.root, "initialize"):
        for node in children(initialize):
            mode = node.get("mode", "chk" if node.tag == "file" else "manual")
            if mode in READS_FILES and value_of(node):
                yield node


def with_absolute_paths(document: Document, folder: Path) -> str:
    """The text with the whole path of each structure, for names that start from a folder."""
    return apply(
        document,
        [
            replace_value(document, node, str((folder / value_of(node)).absolute()))
            for node in structure_elements(document)
        ],
    )


def with_local_names(document: Document) -> str:
    """The text with the bare name of each structure, for files that stand beside the input."""
    return apply(
        document,
        [replace_value(document, node, Path(value_of(node)).name) for node in structure_elements(document)],
    )


def structure_mode(path: Path) -> str:
    """How i-PI must be told to read a file.

    Raises:
        InputError: no such file, or an xyz file that says neither its units nor its lattice: i-PI would read bohr.
    """
    if not path.is_file():
        raise InputError(f"structure: there is no file {path}")
    if path.suffix in (".chk", ".restart") or path.name.startswith("RESTART"):
        return "chk"
    if path.suffix == ".pdb":
        return "pdb"
    if path.suffix != ".xyz":
        return "ase"
    comment = comment_line(path)
    if "Lattice=" in comment:
        return "ase"
    if "positions{" not in comment:
        raise InputError(
            f"structure: {path.name} names no units, i-PI would read bohr; write 'positions{{angstrom}} "
            "cell{angstrom}' into its second line, or use extended xyz with Lattice"
        )
    return "xyz"


def comment_line(path: Path) -> str:
    """The second line of an xyz file; "" where there is none."""
    with path.open(errors="replace") as file:
        return file.readline() and file.readline()
