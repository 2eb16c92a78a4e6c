"""Radial distribution functions with error bars, and their distance from a reference.

Units: A. Normalised by N_a N_b / V (N (N - 1) / V for like pairs), so that an ideal gas gives one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np

from analysis.errors import AnalysisError, TooShort
from analysis.molecules import is_periodic
from analysis.run import Run
from analysis.series import FloatArray
from analysis.statistics import Estimate
from analysis.trajectories import Trajectory

N_BLOCKS = 10
MAX_FRAMES = 600
BIN_WIDTH = 0.05
MAX_DISTANCE = 8.0


@dataclass(frozen=True, eq=False)
class RadialDistribution:
    """g(r) of one pair of species, block by block."""

    pair: tuple[str, str]
    distance: FloatArray  # (n_bins,) A, centres of the bins
    blocks: FloatArray  # (n_blocks, n_bins)

    @property
    def mean(self) -> FloatArray:
        return np.asarray(self.blocks.mean(axis=0))

    @property
    def error(self) -> FloatArray:
        """Standard error from the scatter between blocks, (n_bins,)."""
        return np.asarray(self.blocks.std(axis=0, ddof=1) / np.sqrt(len(self.blocks)))


def radial_distributions(run: Run) -> dict[tuple[str, str], RadialDistribution]:
    """g(r) of every pair of species, up to half the smallest height of the cell, from all beads that were written.

    Neighbours by vesin, which sees periodic images in any cell; errors from ten blocks of the run.

    Raises:
        MissingOutput: no positions.
        TooShort: fewer than 20 frames.
        AnalysisError: not periodic.
    """
    beads = sorted(bead for (held, bead) in run.trajectories if str(held) == "positions")
    trajectories = [run.trajectory("positions", bead=bead) for bead in beads] or [run.trajectory("positions")]
    n_frames = min(trajectory.n_frames for trajectory in trajectories)
    if n_frames < 2 * N_BLOCKS:
        raise TooShort(f"g(r) wants at least {2 * N_BLOCKS} frames of positions, got {n_frames}")
    heights = 1.0 / np.linalg.norm(np.linalg.pinv(trajectories[0].cell(0)), axis=0)
    if not is_periodic(trajectories[0].cell(0)):
        raise AnalysisError("g(r) wants a periodic cell, the trajectory has none")
    reach = min(MAX_DISTANCE, 0.5 * float(heights.min()))
    edges = np.arange(0.0, reach + 1e-9, BIN_WIDTH)
    frames = np.unique(
        np.linspace(0, n_frames - 1, min(n_frames, MAX_FRAMES // len(trajectories))).astype(int)
    )
    groups = [group for group in np.array_split(frames, N_BLOCKS) if len(group)]
    counted = [_count(run, trajectories, group, edges) for group in groups]
    middles = 0.5 * (edges[1:] + edges[:-1])
    return {
        pair: RadialDistribution(pair, middles, np.array([block[pair] for block in counted]))
        for pair in counted[0]
    }


def _count(
    run: Run, trajectories: list[Trajectory], frames: FloatArray, edges: FloatArray
) -> dict[tuple[str, str], FloatArray]:
    """g(r) of every pair over some frames."""
    from vesin import NeighborList

    labels = np.array(run.atoms.labels)
    species = {label: number for number, label in enumerate(run.atoms.species)}
    kinds = np.array([species[label] for label in labels])
    neighbors = NeighborList(cutoff=float(edges[-1]), full_list=False)
    n_kinds, n_bins = len(species), len(edges) - 1
    totals = np.zeros((n_kinds, n_kinds, n_bins))
    for trajectory in trajectories:
        for frame in frames:
            block = trajectory.frames(int(frame), int(frame) + 1)
            cell = block.cells[0]
            if not np.isfinite(block.values).all():
                raise AnalysisError(
                    f"g(r) wants finite positions, {trajectory.path.name} has others at step {block.steps[0]}"
                )
            first, second, distance = neighbors.compute(block.values[0], cell, True, "ijd")
            bins = np.minimum((distance / BIN_WIDTH).astype(np.int64), n_bins - 1)
            low = np.minimum(kinds[first.astype(np.int64)], kinds[second.astype(np.int64)])
            high = np.maximum(kinds[first.astype(np.int64)], kinds[second.astype(np.int64)])
            flat = np.bincount((low * n_kinds + high) * n_bins + bins, minlength=totals.size)
            totals += flat.reshape(totals.shape) * abs(np.linalg.det(cell))
    shells = 4.0 / 3.0 * np.pi * np.diff(edges**3) * len(frames) * len(trajectories)
    found = {}
    for (one, a), (other, b) in combinations_with_replacement(species.items(), 2):
        n_one, n_other = np.count_nonzero(kinds == a), np.count_nonzero(kinds == b)
        pairs = n_one * (n_one - 1) / 2 if a == b else n_one * n_other
        if pairs:
            found[(one, other)] = totals[min(a, b), max(a, b)] / (shells * pairs)
    return found


def distance_between(own: RadialDistribution, reference: RadialDistribution) -> tuple[Estimate, float]:
    """Integral of |g - g_ref| dr in A, and what noise alone would give.

    The absolute value makes noise add up: where g = g_ref the expected value is sum sigma sqrt(2/pi) dr, returned as
    the second number. Error by jackknife over the blocks of the run.
    """
    n_bins = min(len(own.distance), len(reference.distance))
    target = reference.mean[:n_bins]
    blocks = own.blocks[:, :n_bins]
    n_blocks = len(blocks)
    value = float(np.sum(np.abs(blocks.mean(axis=0) - target))) * BIN_WIDTH
    without = (blocks.sum(axis=0) - blocks) / (n_blocks - 1)
    pseudo = np.sum(np.abs(without - target), axis=1) * BIN_WIDTH
    error = float(np.sqrt((n_blocks - 1) / n_blocks * np.sum((pseudo - pseudo.mean()) ** 2)))
    sigma = np.hypot(own.error[:n_bins], reference.error[:n_bins])
    floor = float(np.sum(sigma) * np.sqrt(2.0 / np.pi) * BIN_WIDTH)
    return Estimate(value, error, "A", float(n_blocks)), floor
