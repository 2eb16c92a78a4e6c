"""Covalent bonds that a run starts with and ends without.

Units: A. A network that was never shown a bond longer than some length may find it favourable. Then a molecule breaks, and while
a thermostat takes the heat away, means look right on something that is no longer what was to be simulated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.errors import TooShort
from analysis.molecules import bond_graph, bond_radii, nearest_images, symbol_of
from analysis.run import Run
from analysis.series import FloatArray, IntArray
from analysis.trajectories import Trajectory

MAX_FRAMES = 500  # spread evenly over the run, at first
BREAKING = 1.6  # times the sum of the covalent radii: 1.55 A for O-H, 8 sd of its zero-point motion
STRETCH = 0.5  # A, at least: H-H
NON_METALS = frozenset({"H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Se", "Br", "I"})


@dataclass(frozen=True)
class BrokenBond:
    """A bond of the first frame that is not there in the last."""

    atoms: tuple[int, int]  # from 0
    name: str  # O[186]-H[187]
    length: float  # A, in the last frame
    step: int  # of i-PI, of the frame from which on it is too long in all that are looked at


def broken_bonds(run: Run) -> list[BrokenBond] | None:
    """Bonds between non-metals that are whole in the first frame and broken in the last, in the order of breaking.

    Whole: shorter than 1.25 times the sum of ASE's covalent radii. Broken: longer than 1.6 times that sum, and by 0.5 A. Of the
    centroids where they were written, else of one bead; frames that are not finite are left out. A proton that has hopped
    counts. One frame in `n_frames`/500 is looked at, and every frame around the breaking of what is broken.

    Returns:
        None where the first frame has no such bond.

    Raises:
        MissingOutput: no positions.
        AnalysisError: the first frame is not finite.
        TooShort: fewer than two frames.
    """
    positions = bond_positions(run)
    if positions.n_frames < 2:
        raise TooShort(
            f"bonds are followed through two frames of positions at least, got {positions.n_frames}"
        )
    first = positions.frames(0, 1)
    bonds = bond_graph(run.atoms, first.values[0], first.cells[0])
    covalent = np.array([symbol_of(label) in NON_METALS for label in run.atoms.labels])
    bonds = bonds[covalent[bonds].all(axis=1)]
    if not len(bonds):
        return None
    whole = bond_radii(run.atoms)[bonds].sum(axis=1)
    longest = np.maximum(BREAKING * whole, whole + STRETCH)
    frames = np.unique(np.linspace(0, positions.n_frames - 1, MAX_FRAMES).astype(int))
    ending = (_lengths(positions, int(frame), bonds) for frame in frames[::-1])
    last = next(lengths for lengths in ending if np.isfinite(lengths).all())  # the first frame at the latest
    gone = last > longest
    if not gone.any():
        return []
    bonds, longest, last = bonds[gone], longest[gone], last[gone]
    is_whole = np.array([_lengths(positions, int(frame), bonds) <= longest for frame in frames])
    steps = []
    for number, bond in enumerate(bonds):
        latest = int(np.flatnonzero(is_whole[:, number])[-1])
        frame = _breaking_frame(
            positions, bond, longest[number], int(frames[latest]), int(frames[latest + 1])
        )
        steps.append(positions.step(frame))
    labels = run.atoms.labels
    found = [
        BrokenBond((a, b), f"{labels[a]}[{a}]-{labels[b]}[{b}]", float(length), step)
        for (a, b), length, step in zip(bonds.tolist(), last, steps, strict=True)
    ]
    return sorted(found, key=lambda bond: bond.step)


def _breaking_frame(positions: Trajectory, bond: IntArray, longest: float, whole: int, broken: int) -> int:
    """From which frame on a bond is too long, between two in which it is whole and broken."""
    for frame in range(broken - 1, whole, -1):
        if _lengths(positions, frame, bond[None])[0] <= longest:
            return frame + 1
    return whole + 1


def bond_positions(run: Run) -> Trajectory:
    """Of the centroids where there are, else of any bead."""
    names = ("x_centroid", "positions")
    written = sorted((names.index(str(held)), bead) for held, bead in run.trajectories if str(held) in names)
    name, bead = written[0] if written else (1, 0)
    return run.trajectory(names[name], bead=bead)


def _lengths(positions: Trajectory, frame: int, bonds: IntArray) -> FloatArray:
    """Of some bonds in one frame, (n_bonds,) A."""
    block = positions.frames(frame, frame + 1)
    vectors = block.values[0][bonds[:, 1]] - block.values[0][bonds[:, 0]]
    return np.asarray(np.linalg.norm(nearest_images(vectors, block.cells[0]), axis=1))
