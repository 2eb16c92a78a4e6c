"""Structures with known answers, shared by the tests. Units: eV and angstrom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk

from forceserver.structures import FloatArray, Structure

WATER64_FILE = Path(__file__).parent.parent / "ipi_inputs" / "water64.xyz"
WATER_BOND = 0.9419  # A, equilibrium O-H distance of q-TIP4P/F
WATER_ANGLE = 107.4  # degrees, equilibrium H-O-H angle of q-TIP4P/F
WATER_VOLUME = 12.42966124**3 / 64  # A^3 per molecule, 0.997 g/cm^3
ATOMIC_NUMBERS = {"H": 1, "O": 8}


def water_molecule(bond: float = WATER_BOND, angle_degrees: float = WATER_ANGLE) -> FloatArray:
    """Positions (3, 3) of one molecule, O H H, oxygen at the origin, in the xy plane."""
    half = np.radians(angle_degrees) / 2
    return bond * np.array([[0, 0, 0], [np.cos(half), np.sin(half), 0], [np.cos(half), -np.sin(half), 0]])


def water_box(
    n_molecules: int = 4, *, seed: int = 0, periodic: bool = True, edge: float | None = None
) -> Structure:
    """Molecules in random orientations near the points of a simple cubic lattice, slightly distorted inside.

    At the density of the liquid unless `edge` says otherwise. No two molecules overlap, nothing is equilibrated.
    """
    rng = np.random.default_rng(seed)
    points_per_edge = int(np.ceil(n_molecules ** (1 / 3)))
    edge = edge or points_per_edge * WATER_VOLUME ** (1 / 3)
    lattice = np.array(list(np.ndindex(points_per_edge, points_per_edge, points_per_edge)))[:n_molecules]
    centres = (lattice + 0.5 + 0.03 * rng.standard_normal(lattice.shape)) * edge / points_per_edge
    molecules = [centre + water_molecule() @ random_rotation(rng).T for centre in centres]
    positions = np.concatenate(molecules) + 0.02 * rng.standard_normal((3 * n_molecules, 3))
    return structure([8, 1, 1] * n_molecules, positions, np.eye(3) * edge if periodic else None)


def water64() -> Structure:
    """The configuration of liquid water that ships with the input library: 64 molecules, O H H each."""
    lines = WATER64_FILE.read_text().splitlines()
    edge = float(lines[1].split()[2])
    rows = [line.split() for line in lines[2:]]
    positions = np.array([row[1:4] for row in rows], dtype=float)
    return structure([ATOMIC_NUMBERS[row[0]] for row in rows], positions, np.eye(3) * edge)


def lj_crystal(
    repeats: int = 2, *, lattice_constant: float = 5.3, rattle: float = 0.08, seed: int = 0
) -> Structure:
    """Face-centred cubic argon, 4 repeats^3 atoms, displaced from the lattice so that no force is zero."""
    atoms = bulk("Ar", "fcc", a=lattice_constant, cubic=True) * (repeats, repeats, repeats)
    atoms.rattle(rattle, seed=seed)
    return from_ase(atoms)


def dimer(distance: float, *, number: int = 18, direction: Sequence[float] = (1.0, 0.0, 0.0)) -> Structure:
    """Two equal atoms, not periodic, the first at the origin."""
    unit = np.asarray(direction, dtype=float) / np.linalg.norm(direction)
    return structure([number, number], np.array([[0, 0, 0], distance * unit]), None)


def structure(atomic_numbers: Sequence[int], positions: FloatArray, cell: FloatArray | None) -> Structure:
    """A structure that is periodic in all directions where there is a cell, in none where there is not."""
    return Structure(
        atomic_numbers=np.asarray(atomic_numbers, dtype=np.int64),
        positions=np.asarray(positions, dtype=np.float64),
        cell=np.zeros((3, 3)) if cell is None else np.asarray(cell, dtype=np.float64),
        pbc=np.full(3, cell is not None),
    )


def from_ase(atoms: Atoms) -> Structure:
    return Structure(
        atomic_numbers=np.asarray(atoms.numbers, dtype=np.int64),
        positions=np.asarray(atoms.positions, dtype=np.float64),
        cell=np.asarray(atoms.cell.array, dtype=np.float64),
        pbc=np.asarray(atoms.pbc),
    )


def to_ase(structure: Structure) -> Atoms:
    return Atoms(structure.atomic_numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)


def random_rotation(rng: np.random.Generator) -> FloatArray:
    """A proper rotation matrix (3, 3), uniform over all orientations."""
    matrix, upper = np.linalg.qr(rng.standard_normal((3, 3)))
    matrix = matrix * np.sign(np.diag(upper))
    matrix[:, 0] *= np.linalg.det(matrix)
    return np.asarray(matrix)
