"""Two potentials with nothing to hide: a harmonic trap, `harmonic:k=1.0`, and no interaction at all, `noop`.

Units: eV and angstrom. In the trap each atom is tied to the origin of space, not to an image of it, so the trajectory is
known exactly and the cell plays no part:

    E = k/2 sum_i |r_i|^2,    f_i = -k r_i,    virial = -k sum_i r_i r_i^T

Energy and forces are those of i-PI's own `harmonic` driver, which however reports no virial.

A trap has a net force by design; serve it with the net force kept. `noop` answers zero at once: what remains is the
cost of everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from forceserver.potentials.autograd import EnergyPotential
from forceserver.potentials.interface import Batch, Capabilities, Evaluation, Forces, Potential
from forceserver.potentials.specification import check_keys, read_numbers, require_positive
from forceserver.potentials.synthetic import split_direct, with_direct
from forceserver.structures import CONSERVATIVE, DIRECT, ForceKind

DEFAULTS = {"k": 1.0}  # eV/A^2


@dataclass(frozen=True)
class HarmonicTrap:
    """Independent particles in one harmonic well."""

    k: float  # eV/A^2

    def energies(self, batch: Batch) -> Tensor:
        """Energies (n_structures,) in eV."""
        squares = (batch.positions**2).sum(1)
        per_structure = squares.new_zeros(batch.n_structures).index_add(0, batch.atom_to_structure, squares)
        return 0.5 * self.k * per_structure


class Noop:
    """Zero energy, zero forces of both kinds, zero virials; made once for each size of batch."""

    def __init__(self, capabilities: Capabilities) -> None:
        self.capabilities = capabilities
        self._made_for: tuple[int, ...] = ()

    def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        if batch.n_atoms != self._made_for:
            self._made_for = batch.n_atoms
            self._nothing = Forces(torch.zeros_like(batch.positions), torch.zeros_like(batch.cells))
            self._no_energies = batch.cells.new_zeros(batch.n_structures)
        return Evaluation(
            energies=self._no_energies,
            conservative=self._nothing if CONSERVATIVE in want else None,
            direct=self._nothing if DIRECT in want else None,
        )


def load(options: Mapping[str, str], *, device: torch.device, dtype: torch.dtype | None) -> Potential:
    """Options `k` (eV/A^2, 1 unless given) and `direct` (`synthetic`)."""
    options, direct = split_direct("harmonic", options, DEFAULTS)
    numbers = read_numbers("harmonic", options, DEFAULTS)
    require_positive("harmonic", numbers, DEFAULTS)
    trap = HarmonicTrap(**numbers)
    capabilities = _capabilities(f"harmonic trap (k {trap.k:g} eV/A^2)", device, dtype, direct=False)
    return with_direct(EnergyPotential(capabilities, trap.energies), direct)


def load_noop(options: Mapping[str, str], *, device: torch.device, dtype: torch.dtype | None) -> Potential:
    """No options."""
    check_keys("noop", options, ())
    return Noop(_capabilities("no interaction", device, dtype, direct=True))


def _capabilities(
    name: str, device: torch.device, dtype: torch.dtype | None, *, direct: bool
) -> Capabilities:
    return Capabilities(
        name=name,
        elements=None,
        cutoff=None,
        dtype=dtype or torch.float64,
        device=device,
        conservative=True,
        direct=direct,
        direct_virial=direct,
    )
