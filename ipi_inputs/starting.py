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
OF_A_STRUCTURE = ("file", "positions", "labels", "masses", "cell")  # what else starts from a file is motion


def structure_elements(parent: Element) -> Iterator[Element]:
    """The elements of `<initialize>` that name a file.

    Args:
        parent: the root of a document, for edits; there the names in a template have their labels still. Or a system of
            the facts, for the names that i-PI reads.
    """
    for node in _starting_elements(parent):
        if _mode(node) in READS_FILES and value_of(node):
            yield node


def require_only_files_of_a_structure(document: Document, name: str) -> None:
    """Raise InputError where `<initialize>` holds more than that, of the old structure: another file would not replace it."""
    for node in _starting_elements(document.root):
        mode = _mode(node)
        if mode == "thermal" or (mode in READS_FILES and node.tag in OF_A_STRUCTURE):
            continue
        origin = value_of(node) if mode in READS_FILES else f"the input itself (mode '{mode}')"
        remedy = (
            ', or draw new velocities: <velocities mode="thermal" units="kelvin"> 300 </velocities>'
            if node.tag in ("velocities", "momenta")
            else f": the new file says it, or, after this edit, a <{node.tag}> of the new one does"
        )
        raise InputError(
            f"structure: wanted an input that takes only its structure from files, {name} takes its {node.tag} "
            f"from {origin}, which belongs to the old one; remove this <{node.tag}> in line {node.line}{remedy}"
        )


def with_local_names(document: Document) -> str:
    """The text with the bare name of each structure, for files that stand beside the input."""
    return apply(
        document,
        [
            replace_value(document, node, Path(value_of(node)).name)
            for node in structure_elements(document.root)
        ],
    )


def structure_mode(path: Path) -> str:
    """How i-PI must be told to read a file.

    i-PI's own reader of pdb takes no MODEL and no names of atoms but elements, and cuts numbers that fill their columns. ASE,
    in turn, does not know the units that i-PI writes into TITLE.

    Raises:
        InputError: no such file, or an xyz file that says neither its units nor its lattice: i-PI would read bohr.
    """
    if not path.is_file():
        raise InputError(f"structure: there is no file {path}")
    if path.suffix in (".chk", ".restart") or path.name.startswith("RESTART"):
        return "chk"
    first, comment = first_lines(path)
    if path.suffix == ".pdb" and "positions{" in first:
        return "pdb"
    if path.suffix != ".xyz":
        return "ase"
    if "Lattice=" in comment:
        return "ase"
    if "positions{" not in comment:
        raise InputError(
            f"structure: {path.name} names no units, i-PI would read bohr; write 'positions{{angstrom}} "
            "cell{angstrom}' into its second line, or use extended xyz with Lattice"
        )
    return "xyz"


def first_lines(path: Path) -> tuple[str, str]:
    """The first line and the second, which in an xyz file is a comment; "" where there is none."""
    with path.open(errors="replace") as file:
        return file.readline(), file.readline()


def _starting_elements(parent: Element) -> Iterator[Element]:
    return (node for initialize in find_all(parent, "initialize") for node in children(initialize))


def _mode(node: Element) -> str:
    """How i-PI takes an element of `<initialize>`, by its default where it does not say."""
    return node.get("mode", "manual" if node.tag in ("cell", "gle") else "chk")
