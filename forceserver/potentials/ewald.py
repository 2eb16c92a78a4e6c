"""Coulomb energies of point charges: Ewald sums where the cell is periodic, all pairs where it is not.

Units: eV, angstrom, elementary charges. Surrounded by a conductor ("tin foil"), so the dipole of the cell costs nothing.

    E = k_e [ sum_pairs q_i q_j erfc(a r) / r  +  2 pi / V sum_{k != 0} exp(-k^2 / 4 a^2) / k^2 |S(k)|^2
              - a / sqrt(pi) sum_i q_i^2 ],        S(k) = sum_i q_i exp(i k.r_i)

(Ewald 1921; Frenkel and Smit, Understanding Molecular Simulation, 2nd ed., eq. 12.1.25). The phase factorises over the
three reciprocal axes, exp(i k.r) = u^n1 v^n2 w^n3, so that the structure factors of all k are one matrix product and
trigonometric functions are needed only along the axes. The box of integers is kept whole: its corners cost
little and lie beyond the wanted accuracy.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from forceserver.potentials.interface import Batch
from forceserver.potentials.pairs import Pairs, all_pairs, find_pairs

COULOMB_CONSTANT = 14.3996454784255  # eV A / e^2, CODATA 2018


@dataclass(frozen=True)
class Ewald:
    """How the sum is split between real and reciprocal space."""

    real_cutoff: float  # A
    truncation: float  # what both Gaussian tails have decayed to where they are cut, e.g. 1e-7

    @property
    def screening(self) -> float:
        """The inverse width a of the screening charges, 1/A."""
        return math.sqrt(-math.log(self.truncation)) / self.real_cutoff

    @property
    def reciprocal_cutoff(self) -> float:
        """The longest wave vector, 1/A."""
        return 2.0 * self.screening * math.sqrt(-math.log(self.truncation))

    def energies(self, batch: Batch, charges: Tensor) -> Tensor:
        """Energies (n_structures,) in eV of neutral structures, periodic in all directions.

        Args:
            batch: the positions are those of the charges, which need not be atoms.
            charges: (n_atoms_total,) e; each structure must be neutral.
        """
        pairs = find_pairs(batch, self.real_cutoff)
        distances = torch.linalg.vector_norm(pairs.vectors(batch), dim=1)
        screened = torch.erfc(self.screening * distances) / distances
        products = charges[pairs.first] * charges[pairs.second]
        real = pairs.sum_per_structure(products * screened, batch.n_structures)
        squares = torch.zeros_like(real).index_add(0, batch.atom_to_structure, charges**2)
        own = self.screening / math.sqrt(math.pi) * squares
        return COULOMB_CONSTANT * (real - own + self._reciprocal(batch, charges))

    def _reciprocal(self, batch: Batch, charges: Tensor) -> Tensor:
        """The sum over wave vectors (n_structures,) in e^2/A, alike structures in one tensor."""
        alike: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
        for structure, orders in enumerate(self._orders(batch.cells)):
            alike[batch.n_atoms[structure], orders].append(structure)
        starts = torch.tensor((0, *batch.n_atoms)).cumsum(0)
        energies = charges.new_zeros(batch.n_structures)
        for (n_atoms, orders), structures in alike.items():
            members = torch.tensor(structures, device=charges.device)
            atoms = (starts[structures][:, None] + torch.arange(n_atoms)).to(charges.device)
            sums = self._reciprocal_of_alike(
                batch.positions[atoms], charges[atoms], batch.cells[members], orders
            )
            energies = energies.index_add(0, members, sums)
        return energies

    def _orders(self, cells: Tensor) -> list[tuple[int, ...]]:
        """How many waves each axis of each cell needs: n = k.a / 2 pi is bounded by the length of a."""
        lengths = torch.linalg.vector_norm(cells.detach(), dim=2)
        orders = (self.reciprocal_cutoff * lengths / (2.0 * math.pi)).ceil().long()
        return [tuple(row) for row in orders.tolist()]

    def _reciprocal_of_alike(
        self, positions: Tensor, charges: Tensor, cells: Tensor, orders: tuple[int, ...]
    ) -> Tensor:
        """The sum over wave vectors for positions (n_alike, n_atoms, 3) and cells (n_alike, 3, 3)."""
        inverse = torch.linalg.inv(cells)
        # S(-k) is the conjugate of S(k): half of the first axis is enough, its inner waves counted twice.
        bounds = [(0, orders[0]), (-orders[1], orders[1]), (-orders[2], orders[2])]
        integers = [
            torch.arange(low, high + 1, device=cells.device, dtype=cells.dtype) for low, high in bounds
        ]
        counts = torch.where(integers[0] > 0, 2.0, 1.0).to(cells.dtype)[:, None, None]

        angles = 2.0 * math.pi * torch.matmul(positions, inverse)
        first, second, third = (_waves(angles[..., axis], integers[axis]) for axis in range(3))
        planes = ((charges[..., None] * first)[..., :, None] * second[..., None, :]).flatten(2)
        factors = torch.matmul(planes.transpose(1, 2), third)  # (n_alike, n1 n2, n3), S(k)
        intensities = (factors.real**2 + factors.imag**2).view(len(cells), *map(len, integers))

        wave_vectors = 2.0 * math.pi * torch.einsum("gac,xyzc->gxyza", inverse, _grid(integers))
        weights = counts * self._weights((wave_vectors**2).sum(-1))
        volumes = torch.linalg.det(cells).abs()
        energies: Tensor = 2.0 * math.pi / volumes * (weights * intensities).sum((1, 2, 3))
        return energies

    def _weights(self, squared: Tensor) -> Tensor:
        """exp(-k^2 / 4 a^2) / k^2 from k^2, and zero for k = 0."""
        nonzero = squared > 0.0
        # A division by zero that is masked away afterwards would still make its gradient undefined.
        safe = torch.where(nonzero, squared, 1.0)
        return torch.where(nonzero, torch.exp(-safe / (4.0 * self.screening**2)) / safe, 0.0)


def cluster_energies(batch: Batch, charges: Tensor) -> Tensor:
    """Coulomb energies (n_structures,) in eV of structures that are not periodic."""
    return bare_energies(batch, charges, all_pairs(batch))


def bare_energies(batch: Batch, charges: Tensor, pairs: Pairs) -> Tensor:
    """The sum of k_e q_i q_j / r over given pairs, (n_structures,) eV."""
    distances = torch.linalg.vector_norm(pairs.vectors(batch), dim=1)
    products = charges[pairs.first] * charges[pairs.second]
    return COULOMB_CONSTANT * pairs.sum_per_structure(products / distances, batch.n_structures)


def _waves(angles: Tensor, integers: Tensor) -> Tensor:
    """exp(i n angle), (..., n_integers) complex."""
    arguments = angles[..., None] * integers
    return torch.polar(torch.ones_like(arguments), arguments)


def _grid(integers: list[Tensor]) -> Tensor:
    """All triples of integers, (n1, n2, n3, 3)."""
    return torch.stack(torch.meshgrid(*integers, indexing="ij"), dim=-1)
