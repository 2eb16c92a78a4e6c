"""The Lennard-Jones fluid, any periodicity: `lj:epsilon=0.0104,sigma=3.4,cutoff=8.5`.

Units: eV and angstrom. One kind of atom, whatever its element. The energy of a pair is truncated at the cutoff and
shifted to be continuous there; the force has a step of 24 epsilon sigma^6 / cutoff^7 at most, as in ASE's `LennardJones`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from forceserver.potentials.autograd import EnergyPotential
from forceserver.potentials.interface import Batch, Capabilities, Potential
from forceserver.potentials.pairs import find_pairs
from forceserver.potentials.specification import read_numbers, require_positive
from forceserver.potentials.synthetic import split_direct, with_direct

ARGON = {"epsilon": 0.0104, "sigma": 3.4, "cutoff": 8.5}


@dataclass(frozen=True)
class LennardJones:
    """4 epsilon [(sigma/r)^12 - (sigma/r)^6], minus its value at the cutoff."""

    epsilon: float  # eV
    sigma: float  # A
    cutoff: float  # A

    def energies(self, batch: Batch) -> Tensor:
        """Energies (n_structures,) in eV."""
        pairs = find_pairs(batch, self.cutoff)
        squared_distances = (pairs.vectors(batch) ** 2).sum(1)
        values = pair_energies(squared_distances, self.epsilon, self.sigma)
        at_cutoff = pair_energies(squared_distances.new_tensor(self.cutoff**2), self.epsilon, self.sigma)
        return pairs.sum_per_structure(values - at_cutoff, batch.n_structures)


def pair_energies(squared_distances: Tensor, epsilon: float, sigma: float) -> Tensor:
    """4 epsilon [(sigma/r)^12 - (sigma/r)^6] in eV, not truncated."""
    sixth = (sigma**2 / squared_distances) ** 3
    return 4.0 * epsilon * sixth * (sixth - 1.0)


def load(options: Mapping[str, str], *, device: torch.device, dtype: torch.dtype | None) -> Potential:
    """Options `epsilon` (eV), `sigma` (A), `cutoff` (A), all of argon unless given, and `direct` (`synthetic`)."""
    options, direct = split_direct("lennard_jones", options, ARGON)
    numbers = read_numbers("lennard_jones", options, ARGON)
    require_positive("lennard_jones", numbers, ARGON)
    model = LennardJones(**numbers)
    capabilities = Capabilities(
        name=f"Lennard-Jones (epsilon {model.epsilon:g} eV, sigma {model.sigma:g} A, cutoff {model.cutoff:g} A)",
        elements=None,
        cutoff=model.cutoff,
        dtype=dtype or torch.float64,
        device=device,
        conservative=True,
        direct=False,
        direct_virial=False,
    )
    return with_direct(EnergyPotential(capabilities, model.energies), direct)
