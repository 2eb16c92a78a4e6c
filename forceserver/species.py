"""Which atoms i-PI is going to send: i-PI's positions travel without names, so a server must read them where i-PI does.

Everything that can name atoms in an i-PI input is followed: `<initialize>` with files of every format that i-PI reads, labels
written by hand, checkpoints, and `<beads>` written inline as in a RESTART.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forceserver.errors import UsageError
from forceserver.exchange import BOHR_PER_ANGSTROM, Template
from forceserver.quiet import quiet_ipi
from forceserver.structures import FloatArray, IntArray

if TYPE_CHECKING:
    from ase import Atoms

log = logging.getLogger(__name__)

ISOTOPES = {"D": "H", "T": "H", "Z": "H"}  # i-PI's names; Z is its interpolated hydrogen


def read_template(path: Path) -> Template:
    """The template of `-t`: any structure file that ASE reads, or i-PI's own xyz.

    Raises:
        UsageError: it cannot be read, or is empty.
    """
    if path.suffix == ".xyz" and "CELL" in _second_line(path):
        labels, has_cell, positions = _read_file("xyz", path)
        return Template(labels_to_numbers(labels, path), np.full(3, has_cell), positions)
    try:
        atoms = read_by_ase(path)
    except Exception as error:
        raise UsageError(f"cannot read a template from {path}: {error}") from None
    if not atoms.pbc.any():
        log.warning(
            "%s has no cell, so forces are those of a molecule in vacuum, whatever cell i-PI has. For a periodic system give a "
            "template with its cell", path,
        )  # fmt: skip
    return Template(atoms.numbers.astype(np.int64), np.array(atoms.pbc, dtype=bool), atoms.positions)


def read_by_ase(path: Path) -> Atoms:
    """The last structure of a file. ASE knows no isotopes: i-PI's are the elements that they are to a model."""
    import ase.io
    from ase.data import atomic_numbers

    unknown = {
        isotope: atomic_numbers[own] for isotope, own in ISOTOPES.items() if isotope not in atomic_numbers
    }
    atomic_numbers.update(unknown)
    try:
        return ase.io.read(path)
    finally:
        for isotope in unknown:
            del atomic_numbers[isotope]


def initialized_template(system: Any, input_path: Path, folder: Path | None = None) -> Template:
    """The atoms of an i-PI `<system>`, periodic where it has a cell.

    Args:
        system: i-PI's `InputSystem`, parsed.
        input_path: where it stands.
        folder: see `find_beside`.

    Raises:
        UsageError: a file is missing or unreadable, or nothing names the atoms.
    """
    labels = [str(name) for name in system.beads.names.fetch()]
    has_cell = bool(system.cell._explicit) and _spans_space(system.cell.fetch().h)
    for what, entry in system.initialize.extra if system.initialize._explicit else ():
        mode, index = entry.mode.fetch(), entry.index.fetch() if what == "labels" else -1
        if what == "cell":
            has_cell = True
        elif what in ("file", "labels") and mode != "manual":
            labels, file_has_cell, _ = _read_file(mode, find_beside(str(entry.getval()), input_path, folder))
            has_cell = has_cell or (file_has_cell and what == "file")
        elif what == "labels" and index < 0:
            labels = [str(label) for label in entry.getval()]
        elif what == "labels" and index < len(labels):
            labels[index] = str(np.ravel(entry.getval())[0]).strip()
    if not labels:
        raise UsageError(
            f"{input_path} does not say which atoms it has: <initialize> needs a <file> or <labels>, or <beads> their names"
        )
    return Template(labels_to_numbers(labels, input_path), np.full(3, has_cell))


def find_beside(name: str, input_path: Path, folder: Path | None = None) -> Path:
    """A file that an input names: i-PI looks in its own working directory, which is as a rule that of the input.

    Args:
        name: as in the input.
        input_path: of the input.
        folder: the working directory of i-PI; None: that of the input or ours.

    Raises:
        UsageError: it is neither there nor in ours, or not the same in both.
    """
    if folder is not None:
        if not (folder / name).is_file():
            raise UsageError(
                f"{input_path} names the file '{name}', which is not in {folder}, where i-PI runs"
            )
        return folder / name
    found = [directory / name for directory in (input_path.parent, Path()) if (directory / name).is_file()]
    if not found:
        raise UsageError(
            f"{input_path} names the file '{name}', which is neither beside it nor in the current directory"
        )
    if len(found) == 2 and found[0].read_bytes() != found[1].read_bytes():
        raise UsageError(
            f"{input_path} names the file '{name}', and {found[0]} is not the same as {found[1].resolve()}. i-PI reads the one "
            "in the directory in which it runs: start this server there as well"
        )
    return found[0]


def labels_to_numbers(labels: Sequence[str], path: Path) -> IntArray:
    """Atomic numbers (n_atoms,) from i-PI's labels, isotopes included (`D`, `O18`, `Cl37`).

    Raises:
        UsageError: a label that is no element.
    """
    from ase.data import atomic_numbers

    numbers = {}
    for label in set(labels):
        symbol = re.sub(r"[\d_].*$", "", label)
        number = atomic_numbers.get(ISOTOPES.get(symbol, symbol), 0)
        if number == 0:
            raise UsageError(
                f"{path}: the atom label '{label}' is no chemical element; a model needs to know which it is"
            )
        numbers[label] = number
    return np.array([numbers[label] for label in labels], dtype=np.int64)


def _read_file(mode: str, path: Path) -> tuple[list[str], bool, FloatArray]:
    """Labels, presence of a cell, and positions (n_atoms, 3) in angstrom of the first frame, through i-PI's own readers."""
    from ipi.engine.initializer import init_chk, init_file

    try:
        with quiet_ipi():
            if mode == "chk":
                beads, cell, _ = init_chk(str(path))
                return (
                    [str(name) for name in beads.names],
                    bool(np.any(cell.h != 0.0)),
                    _in_angstrom(beads.q[0]),
                )
            frames, cell = init_file(mode, str(path))
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}") from None
    except Exception as error:
        raise UsageError(
            f"i-PI cannot read {path} as '{mode}': {str(error) or type(error).__name__}"
        ) from None
    labels = [str(name) for name in frames[0].names]
    if "" in labels:  # i-PI's reader of xyz puts the rest at the origin, without a word
        raise UsageError(
            f"{path} ends after {labels.index('')} of the {len(labels)} atoms that it promises. Remedy: a whole file"
        )
    return labels, _spans_space(cell.h), _in_angstrom(frames[0].q)


def _spans_space(cell: FloatArray) -> bool:
    """Whether there is a cell: where a file has none, i-PI's readers give -1 along the diagonal, or nothing but zeros."""
    return bool(np.linalg.det(cell) != 0.0) and not np.allclose(cell / abs(cell[0, 0] or 1.0), -np.eye(3))


def _in_angstrom(coordinates: Any) -> FloatArray:
    """i-PI's flat coordinates in bohr as (n_atoms, 3) in angstrom."""
    positions: FloatArray = np.asarray(coordinates).reshape(-1, 3) / BOHR_PER_ANGSTROM
    return positions


def _second_line(path: Path) -> str:
    try:
        with path.open() as file:
            next(file)
            return next(file)
    except (OSError, StopIteration, UnicodeDecodeError):
        return ""
