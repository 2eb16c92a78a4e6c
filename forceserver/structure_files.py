"""Structures in files: read with their cell, from i-PI's own xyz too, and written for everybody's drivers. Units: angstrom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forceserver.errors import UsageError
from forceserver.quiet import quiet_ipi
from forceserver.structures import Structure

if TYPE_CHECKING:
    from ase import Atoms


def read_structure(path: Path) -> Atoms:
    """A periodic structure, from i-PI's own xyz or whatever ASE reads.

    Raises:
        UsageError: it cannot be read, or has no cell in three directions, which i-PI needs.
    """
    from forceserver.species import read_by_ase

    try:
        with path.open(errors="replace") as file:
            second_line = file.readline() and file.readline()
        is_of_ipi = path.suffix == ".xyz" and "CELL" in second_line
        atoms = _read_ipi(path) if is_of_ipi else read_by_ase(path)
    except Exception as error:
        raise UsageError(f"cannot read a structure from {path}: {error}") from None
    if not (atoms.pbc.all() and atoms.cell.rank == 3):
        raise UsageError(
            f'{path} has no cell, wanted one that repeats in all directions; add Lattice="..." pbc="T T T" to an extended xyz'
        )
    return atoms


def to_structure(atoms: Atoms) -> Structure:
    return Structure(
        np.asarray(atoms.numbers, dtype=np.int64), atoms.positions, atoms.cell.array, np.asarray(atoms.pbc)
    )


def write_structure(atoms: Atoms, path: Path) -> None:
    """As an extended xyz with nothing in it but elements, positions and cell."""
    import ase
    import ase.io

    plain = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    ase.io.write(path, plain, format="extxyz")


def _read_ipi(path: Path) -> Atoms:
    import ase
    from ipi.engine.initializer import init_file

    from forceserver.exchange import BOHR_PER_ANGSTROM
    from forceserver.species import labels_to_numbers

    with quiet_ipi():
        frames, cell = init_file("xyz", str(path))
    numbers = labels_to_numbers([str(name) for name in frames[0].names], path)
    positions = frames[0].q.reshape(-1, 3) / BOHR_PER_ANGSTROM
    return ase.Atoms(numbers, positions, cell=cell.h.T / BOHR_PER_ANGSTROM, pbc=True)
