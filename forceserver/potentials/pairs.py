"""Pairs of atoms within a cutoff, all periodic images included, and the function that ends their interaction smoothly.

Units: angstrom. Each pair appears once. A cell may be smaller than the cutoff: an atom then meets several images of
another atom, and images of itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import vesin
from torch import Tensor

from forceserver.errors import ModelError
from forceserver.potentials.interface import Batch
from forceserver.structures import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Pairs:
    """Which atoms of a batch are near, and through which image of the cell."""

    first: Tensor  # (n_pairs,) int64, index of an atom in the batch
    second: Tensor  # (n_pairs,) int64, of the same structure
    cell_shifts: Tensor  # (n_pairs, 3), lattice vectors to add to the second
    pair_to_structure: Tensor  # (n_pairs,) int64

    def vectors(self, batch: Batch) -> Tensor:
        """From the first to the second, (n_pairs, 3) A, in the graph of the positions and cells of `batch`."""
        shifts = torch.einsum("pa,pab->pb", self.cell_shifts, batch.cells[self.pair_to_structure])
        return batch.positions[self.second] - batch.positions[self.first] + shifts

    def sum_per_structure(self, values: Tensor, n_structures: int) -> Tensor:
        """Add up what pairs contribute, (n_pairs, ...) -> (n_structures, ...)."""
        return values.new_zeros(n_structures, *values.shape[1:]).index_add(0, self.pair_to_structure, values)


def find_pairs(batch: Batch, cutoff: float) -> Pairs:
    """All pairs closer than `cutoff`, structure by structure, with the neighbour list of vesin.

    Positions need not lie inside the cell. The search runs in float64 whatever the precision of the batch.

    Raises:
        ModelError: a coordinate is not finite, or a periodic cell has no volume.
    """
    positions = _to_numpy(batch.positions)
    cells = _to_numpy(batch.cells)
    periodic = batch.pbc.cpu().numpy()
    starts = np.concatenate([[0], np.cumsum(batch.n_atoms)])
    neighbors = vesin.NeighborList(cutoff=cutoff, full_list=False)
    atoms, shifts = [], []
    for s in range(batch.n_structures):
        here = positions[starts[s] : starts[s + 1]]
        try:
            first, second, shift = neighbors.compute(here, cells[s], periodic[s], "ijS")
        except RuntimeError as error:
            raise ModelError(
                f"no neighbours can be found in structure {s} of the batch: {error}. Remedy: look at the cell and "
                "the coordinates that were sent"
            ) from error
        atoms.append(np.stack([first, second]).astype(np.int64) + starts[s])
        shifts.append(shift)
    return _make_pairs(batch, np.concatenate(atoms, axis=1), np.concatenate(shifts))


def all_pairs(batch: Batch) -> Pairs:
    """Every pair of atoms of a structure, without images: for clusters and interactions without a cutoff."""
    starts = np.concatenate([[0], np.cumsum(batch.n_atoms)])
    atoms = [np.stack(np.triu_indices(n, k=1)) + starts[s] for s, n in enumerate(batch.n_atoms)]
    first_and_second = np.concatenate(atoms, axis=1)
    return _make_pairs(batch, first_and_second, np.zeros((first_and_second.shape[1], 3)))


def minimum_image(vectors: Tensor, cells: Tensor) -> Tensor:
    """Replace vectors (n, 3) by their shortest periodic images in cells (n, 3, 3).

    Exact whenever the shortest image is shorter than half of the smallest distance between faces of the cell, which
    bonds are. The number of cells to go is not differentiated, the cell is: the virial stays exact.
    """
    fractional = torch.linalg.solve(cells.detach().transpose(1, 2), vectors.detach())
    return vectors - torch.einsum("na,nab->nb", fractional.round(), cells)


def switch(distances: Tensor, onset: float, cutoff: float) -> Tensor:
    """1 below the onset, 0 beyond the cutoff, in between the quintic with two vanishing derivatives at both ends."""
    x = ((distances - onset) / (cutoff - onset)).clamp(0.0, 1.0)
    return 1.0 - x**3 * (10.0 - 15.0 * x + 6.0 * x**2)


def _make_pairs(batch: Batch, atoms: IntArray, shifts: FloatArray) -> Pairs:
    first, second = torch.as_tensor(atoms).to(batch.positions.device)
    cell_shifts = torch.as_tensor(shifts).to(batch.positions)
    return Pairs(first, second, cell_shifts, batch.atom_to_structure[first])


def _to_numpy(tensor: Tensor) -> FloatArray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=np.float64)
