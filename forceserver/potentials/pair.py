"""Two models as one: energy and conservative forces from the first, direct forces from the second.

Units: eV and angstrom.

The second model gives its direct forces if it has a direct head; else its conservative forces serve as the direct
ones: a cheap potential as the fast force of multiple time stepping. The name of the pair says which.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from forceserver.errors import UsageError
from forceserver.neighbors import NeighborStatistics
from forceserver.potentials.interface import Batch, Capabilities, Evaluation, Forces, Potential, brought_back
from forceserver.structures import CONSERVATIVE, DIRECT, ForceKind


class PairedPotential:
    """Conservative forces from one potential, direct forces from another.

    **The energy of a call that wants direct forces alone is that of the second model**: evaluating the expensive
    first one for a number would undo what the pair is for. In multiple time stepping the weights of the direct
    component add up to zero, so i-PI's potential and conserved quantity never see it. A run on direct forces alone
    reports the energy of the second model, and its drift is measured against that. A blend wants both kinds and gets
    the energy of the first.
    """

    def __init__(self, conservative: Potential, direct: Potential) -> None:
        """
        Args:
            conservative: gives energies and conservative forces.
            direct: gives direct forces; it may live on another device and in another dtype.

        Raises:
            UsageError: the first has no conservative forces, the second none at all, or no element is known to both.
        """
        self._conservative = conservative
        self._direct = direct
        self._direct_kind = DIRECT if direct.capabilities.direct else CONSERVATIVE
        self._capabilities = _combine(conservative.capabilities, direct.capabilities)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def neighbor_statistics(self) -> NeighborStatistics | None:
        """What the neighbour lists of both have cost so far; None where neither keeps any."""
        members = [getattr(each, "neighbor_statistics", None) for each in (self._conservative, self._direct)]
        held: list[NeighborStatistics] = [each for each in members if each is not None]
        return sum(held[1:], held[0]) if held else None

    def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        """Evaluate each model for what is wanted of it; see the class for the energy that comes with direct forces."""
        first = second = None
        if CONSERVATIVE in want or not want:
            first = self._evaluate(self._conservative, batch, want & {CONSERVATIVE})
        if DIRECT in want:
            second = self._evaluate(self._direct, batch, frozenset({self._direct_kind}))
        direct = None
        if second is not None:
            direct = second.direct if self._direct_kind == DIRECT else second.conservative
        if first is not None:
            return Evaluation(first.energies, first.conservative, direct)
        assert second is not None
        return Evaluation(second.energies, None, direct)

    def _evaluate(self, potential: Potential, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        """Evaluate one of the two in its own dtype and on its own device, and bring the answer back."""
        theirs, ours = potential.capabilities, self._capabilities
        if theirs.any_image and theirs.dtype is not ours.dtype:
            batch = brought_back(batch)  # before far positions lose the digits that only ours has
        evaluation = potential(_move(batch, theirs.dtype, theirs.device), want)
        return Evaluation(
            energies=evaluation.energies.to(device=ours.device, dtype=ours.dtype),
            conservative=_move_forces(evaluation.conservative, ours.dtype, ours.device),
            direct=_move_forces(evaluation.direct, ours.dtype, ours.device),
        )


def _combine(first: Capabilities, second: Capabilities) -> Capabilities:
    if not first.conservative:
        raise UsageError(
            f"{first.name} has no conservative forces, so it cannot be the first model of a pair"
        )
    if not (second.direct or second.conservative):
        raise UsageError(f"{second.name} has no forces, so it cannot be the second model of a pair")
    cutoffs = [each.cutoff for each in (first, second) if each.cutoff is not None]
    used = "direct forces" if second.direct else "conservative forces, used as direct"
    return Capabilities(
        name=f"{first.name} + {second.name} ({used})",
        elements=_intersect_elements(first, second),
        cutoff=max(cutoffs) if cutoffs else None,
        dtype=torch.promote_types(first.dtype, second.dtype),
        device=first.device,
        conservative=True,
        direct=True,
        direct_virial=second.direct_virial if second.direct else second.conservative_virial,
        direct_virial_wants_volume=second.direct and second.direct_virial_wants_volume,
        synthetic_direct=second.direct and second.synthetic_direct,
        shares_forward_pass=False,
        conservative_virial=first.conservative_virial,
        any_image=first.any_image and second.any_image,
    )


def _intersect_elements(first: Capabilities, second: Capabilities) -> frozenset[int] | None:
    if first.elements is None or second.elements is None:
        return second.elements if first.elements is None else first.elements
    if not first.elements & second.elements:
        raise UsageError(
            f"no element is known to both models: {first.name} knows atomic numbers {sorted(first.elements)}, "
            f"{second.name} knows {sorted(second.elements)}. Remedy: pair models for the same system"
        )
    return first.elements & second.elements


def _move(batch: Batch, dtype: torch.dtype, device: torch.device) -> Batch:
    return replace(
        batch,
        positions=batch.positions.to(device=device, dtype=dtype),
        cells=batch.cells.to(device=device, dtype=dtype),
        atomic_numbers=batch.atomic_numbers.to(device),
        atom_to_structure=batch.atom_to_structure.to(device),
        pbc=batch.pbc.to(device),
    )


def _move_forces(forces: Forces | None, dtype: torch.dtype, device: torch.device) -> Forces | None:
    if forces is None:
        return None
    virials = None if forces.virials is None else forces.virials.to(device=device, dtype=dtype)
    return Forces(forces.forces.to(device=device, dtype=dtype), virials)
