"""Molecules of a run, and the kinetic temperatures of their translation, rotation and vibration.

Units: A, A/ps, amu, K. Molecules are the connected parts of the bond graph of the first frame, with ASE's covalent
radii; they are taken to stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.errors import AnalysisError, MissingOutput
from analysis.inputfile import Atoms
from analysis.run import Run
from analysis.series import FloatArray, IntArray, Series
from analysis.statistics import Estimate, mean, settled
from analysis.trajectories import Trajectory
from analysis.units import boltzmann, kinetic_unit

BOND_TOLERANCE = 1.25  # times the sum of the covalent radii
MAX_FRAMES = 4000  # enough for 0.1 K; spread evenly over the run
PARTS = ("translation", "rotation", "vibration")


@dataclass(frozen=True, eq=False)
class Molecules:
    """Which atom belongs to which molecule."""

    atom_to_molecule: IntArray  # (n_atoms,)

    @property
    def n_molecules(self) -> int:
        return int(self.atom_to_molecule.max()) + 1

    def by_size(self) -> dict[int, IntArray]:
        """Members of the molecules of each size: {size: (n_molecules_of_that_size, size)}."""
        members: dict[int, list[IntArray]] = {}
        for molecule in range(self.n_molecules):
            own = np.flatnonzero(self.atom_to_molecule == molecule)
            members.setdefault(len(own), []).append(own)
        return {size: np.array(groups) for size, groups in sorted(members.items())}


def find_molecules(atoms: Atoms, positions: FloatArray, cell: FloatArray) -> Molecules:
    """Connected parts of the bond graph of one frame.

    Args:
        positions: (n_atoms, 3) A.
        cell: (3, 3) A, lattice vectors as rows; zeros without periodicity.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    bonds, n_atoms = bond_graph(atoms, positions, cell), len(atoms.labels)
    edges = (np.ones(len(bonds)), (bonds[:, 0], bonds[:, 1]))
    _, labels = connected_components(coo_matrix(edges, shape=(n_atoms, n_atoms)), directed=False)
    return Molecules(np.asarray(labels, dtype=np.int64))


def bond_graph(atoms: Atoms, positions: FloatArray, cell: FloatArray) -> IntArray:
    """Pairs of atoms nearer than 1.25 times the sum of their covalent radii, (n_bonds, 2); arguments of `find_molecules`.

    Raises:
        AnalysisError: positions that are not finite.
    """
    from vesin import NeighborList

    if not np.isfinite(positions).all():
        raise AnalysisError(
            "positions of the first frame are not finite: bonds and molecules cannot be found"
        )
    radii = bond_radii(atoms)
    neighbors = NeighborList(cutoff=2.0 * BOND_TOLERANCE * float(radii.max()), full_list=False)
    pairs, distance = neighbors.compute(positions, cell, is_periodic(cell), "Pd")
    pairs = pairs.astype(np.int64)
    bonds: IntArray = pairs[distance < BOND_TOLERANCE * radii[pairs].sum(axis=1)]
    return bonds


def bond_radii(atoms: Atoms) -> FloatArray:
    """ASE's covalent radii, (n_atoms,) A."""
    from ase.data import atomic_numbers, covalent_radii

    symbols = [symbol_of(label) for label in atoms.labels]
    return np.array([covalent_radii[atomic_numbers.get(symbol, 0)] for symbol in symbols])


def symbol_of(label: str) -> str:
    """The element behind a label: O of O1, H of D."""
    symbol = "".join(filter(str.isalpha, label))
    return "H" if symbol in ("D", "T") else symbol


def is_periodic(cell: FloatArray) -> bool:
    return bool(np.abs(np.linalg.det(cell)) > 0)


def centre_quantities(run: Run) -> tuple[str, str]:
    """Positions and velocities that describe atoms: of the centroids where there is more than one bead."""
    n_beads = run.facts.n_beads if run.facts is not None else 1
    return ("positions", "velocities") if n_beads == 1 else ("x_centroid", "v_centroid")


def part_temperatures(run: Run) -> dict[str, Estimate]:
    """Temperatures of molecular translation, rotation and vibration.

    Per molecule, K_trans = M V^2/2, K_rot = L I^-1 L/2 at the instantaneous geometry, and the rest is vibration; the
    degrees of freedom are 3, 3 (2 for linear molecules) and 3n - 6 (or 5). A fixed centre of mass of the system takes 3
    of them, the molecules' share by mass from their translation: 3 M_mol/M_tot. Molecules with fixed atoms are left
    out. With several beads these are the parts of the centroids.

    Raises:
        MissingOutput: positions and velocities were not written at common steps.
        AnalysisError: the system consists of atoms, not molecules, or nothing of them moves freely.
    """
    return {part: mean(settled(own)) for part, (own, _) in part_temperature_series(run).items()}


def part_temperature_series(run: Run) -> dict[str, tuple[Series, float]]:
    """The temperatures of `part_temperatures` along the run, with the degrees of freedom behind each."""
    if run.facts is not None and run.facts.ensemble == "nvt-cc":
        raise AnalysisError(f"{run.name}: molecules have no temperatures, nvt-cc holds their centroids fixed")
    position_name, velocity_name = centre_quantities(run)
    positions, velocities = run.trajectory(position_name), run.trajectory(velocity_name)
    pairs = common_frames([positions, velocities], MAX_FRAMES)
    first = positions.frames(0, 1)
    groups = _free_molecules(run, find_molecules(run.atoms, first.values[0], first.cells[0]))
    masses = run.atoms.masses
    kinetic, steps = [], []
    for position_frame, velocity_frame in pairs:
        where = positions.frames(position_frame, position_frame + 1)
        moving = velocities.frames(velocity_frame, velocity_frame + 1)
        kinetic.append(_parts(groups, masses, where.values[0], moving.values[0], where.cells[0]))
        steps.append(where.steps[0])
    share = sum(float(masses[members].sum()) for members in groups.values()) / float(masses.sum())
    freedom = _part_freedom(groups, 3.0 * share if run.facts is None or run.facts.fixcom else 0.0)
    times = run.frame_times_ps(np.array(steps))
    energies = np.array(kinetic)  # (n_frames, 3) eV
    return {
        part: (
            Series(times, 2.0 * energies[:, column] / (boltzmann() * freedom[column]), "K", f"T({part})"),
            freedom[column],
        )
        for column, part in enumerate(PARTS)
        if freedom[column] > 0
    }


def _free_molecules(run: Run, molecules: Molecules) -> dict[int, IntArray]:
    """Members of the molecules of each size from two on, without those that hold a fixed atom."""
    bound = {size: members for size, members in molecules.by_size().items() if size > 1}
    if not bound:
        raise AnalysisError(f"{run.name}: no molecules in the first frame, only atoms")
    free = {size: members[~np.isin(members, run.fixed_atoms).any(axis=1)] for size, members in bound.items()}
    free = {size: members for size, members in free.items() if len(members)}
    if not free:
        raise AnalysisError(f"{run.name}: molecules have no temperatures, all of them hold fixed atoms")
    return free


def common_frames(trajectories: Sequence[Trajectory], max_frames: int) -> list[tuple[int, ...]]:
    """Frames of several trajectories at the same step, at most `max_frames`, spread evenly.

    Raises:
        MissingOutput: fewer than 8 steps in common.
    """
    frames_at = [{own.step(frame): frame for frame in range(own.n_frames)} for own in trajectories]
    shared = sorted(set.intersection(*(set(own) for own in frames_at)))
    if len(shared) < 8:
        names = ", ".join(own.path.name for own in trajectories)
        raise MissingOutput(
            f"{names} have {len(shared)} steps in common, wanted 8: write them with the same stride, or run longer"
        )
    chosen = np.unique(np.linspace(0, len(shared) - 1, min(len(shared), max_frames)).astype(int))
    return [tuple(own[shared[index]] for own in frames_at) for index in chosen]


def _part_freedom(groups: dict[int, IntArray], removed: float) -> tuple[float, float, float]:
    translation = 3.0 * sum(len(members) for members in groups.values()) - removed
    rotation = float(sum(len(members) * (2 if size == 2 else 3) for size, members in groups.items()))
    total = 3.0 * sum(len(members) * size for size, members in groups.items()) - removed
    return translation, rotation, total - translation - rotation


def _parts(
    groups: dict[int, IntArray],
    masses: FloatArray,
    positions: FloatArray,
    velocities: FloatArray,
    cell: FloatArray,
) -> FloatArray:
    """Kinetic energies of translation, rotation and vibration of one frame, (3,) eV."""
    parts = np.zeros(3)
    for members in groups.values():
        mass = masses[members][..., None]  # (n_molecules, size, 1)
        where = _whole(positions[members], cell)
        moving = velocities[members]
        total = mass.sum(axis=1, keepdims=True)
        where = where - (mass * where).sum(axis=1, keepdims=True) / total
        drift = (mass * moving).sum(axis=1, keepdims=True) / total
        moving = moving - drift
        angular = np.sum(mass * np.cross(where, moving), axis=1)  # (n_molecules, 3)
        square = np.sum(mass[..., 0] * np.sum(where**2, axis=-1), axis=1)
        inertia = square[:, None, None] * np.eye(3) - np.einsum("ma,mai,maj->mij", mass[..., 0], where, where)
        turning = np.einsum("mij,mj->mi", np.linalg.pinv(inertia, rcond=1e-8, hermitian=True), angular)
        rotation = 0.5 * float(np.sum(angular * turning))
        translation = 0.5 * float(np.sum(total * drift**2))
        inner = 0.5 * float(np.sum(mass * moving**2))
        parts += (translation, rotation, inner - rotation)
    return parts * kinetic_unit()


def _whole(positions: FloatArray, cell: FloatArray) -> FloatArray:
    """Molecules (n_molecules, size, 3) put together across the boundaries, next to their first atom."""
    return nearest_images(positions - positions[:, :1], cell)


def nearest_images(vectors: FloatArray, cell: FloatArray) -> FloatArray:
    """Vectors (..., 3) between atoms, to the nearest periodic image.

    Rounding in fractional coordinates finds it for whatever is shorter than half the smallest height of the cell; of longer
    vectors the images around that are tried as well.
    """
    if not is_periodic(cell):
        return vectors
    inverse = np.linalg.inv(cell)
    nearest: FloatArray = vectors - np.round(vectors @ inverse) @ cell
    smallest_height = 1.0 / np.linalg.norm(inverse, axis=0).max()
    far = np.linalg.norm(nearest, axis=-1) > 0.5 * smallest_height
    if far.any():
        around = np.stack(np.meshgrid(*[(-1.0, 0.0, 1.0)] * 3, indexing="ij"), -1).reshape(-1, 3) @ cell
        images = nearest[far][:, None] + around
        best = np.argmin(np.sum(images**2, axis=-1), axis=-1)
        nearest[far] = images[np.arange(len(images)), best]
    return nearest
