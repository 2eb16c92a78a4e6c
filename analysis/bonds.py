"""Covalent bonds that a run starts with and ends without.

Units: A. A network that was never shown a bond longer than some length may find it favourable. Then a molecule breaks,
every breaking gives off heat, and a thermostat takes it away: means look right on something that is no longer water.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.errors import MissingOutput
from analysis.molecules import bond_graph, bond_radii, centre_quantities, nearest_images, symbol_of
from analysis.run import Run
from analysis.series import FloatArray, IntArray
from analysis.trajectories import Trajectory

MAX_FRAMES = 500  # spread evenly over the run
BREAKING = (
    1.6  # times the sum of the covalent radii: 1.55 A for O-H, 8 standard deviations of its zero-point motion
)
NON_METALS = frozenset({"H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Se", "Br", "I"})


@dataclass(frozen=True)
class BrokenBond:
    """A bond of the first frame that is not there in the last."""

    atoms: tuple[int, int]  # from 0
    name: str  # O186-H187
    length: float  # A, in the last frame
    step: int  # of i-PI: from here on it is never whole again


def broken_bonds(run: Run) -> list[BrokenBond] | None:
    """Bonds between non-metals that are whole in the first frame and broken in the last, in the order of breaking.

    Whole: shorter than 1.25 times the sum of ASE's covalent radii, in the first frame; broken: longer than 1.6 times that
    sum. With several beads of the centroids, where they were written, else of one bead. A proton that has hopped counts.

    Returns:
        None where the first frame has no such bond.

    Raises:
        MissingOutput: no positions.
    """
    positions = _positions(run)
    frames = np.unique(
        np.linspace(0, positions.n_frames - 1, min(positions.n_frames, MAX_FRAMES)).astype(int)
    )
    if not len(frames):
        raise MissingOutput(f"{positions.path} has no whole frame: bonds cannot be followed")
    first = positions.frames(0, 1)
    bonds = bond_graph(run.atoms, first.values[0], first.cells[0])
    covalent = np.array([symbol_of(label) in NON_METALS for label in run.atoms.labels])
    bonds = bonds[covalent[bonds].all(axis=1)]
    if not len(bonds):
        return None
    longest = BREAKING * bond_radii(run.atoms)[bonds].sum(axis=1)
    last = _lengths(positions, int(frames[-1]), bonds)
    gone = last > longest
    bonds, longest, last = bonds[gone], longest[gone], last[gone]
    broken_at = np.full(len(bonds), int(frames[-1]))
    still = np.ones(len(bonds), dtype=bool)
    for frame in frames[::-1]:
        if not still.any():
            break
        still &= _lengths(positions, int(frame), bonds) > longest
        broken_at[still] = frame
    labels = run.atoms.labels
    found = [
        BrokenBond((a, b), f"{labels[a]}{a}-{labels[b]}{b}", float(length), positions.step(int(frame)))
        for (a, b), length, frame in zip(bonds.tolist(), last, broken_at, strict=True)
    ]
    return sorted(found, key=lambda bond: bond.step)


def _positions(run: Run) -> Trajectory:
    """Of the centroids where there are, else of any bead."""
    centre = centre_quantities(run)[0]
    written = sorted(
        (str(held) != centre, bead) for held, bead in run.trajectories if str(held) in (centre, "positions")
    )
    is_bead, bead = written[0] if written else (False, 0)
    return run.trajectory("positions" if is_bead else centre, bead=bead)


def _lengths(positions: Trajectory, frame: int, bonds: IntArray) -> FloatArray:
    """Of some bonds in one frame, (n_bonds,) A."""
    block = positions.frames(frame, frame + 1)
    where, cell = block.values[0], block.cells[0]
    return np.asarray(np.linalg.norm(nearest_images(where[bonds[:, 1]] - where[bonds[:, 0]], cell), axis=1))
