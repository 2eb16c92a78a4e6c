"""From an energy to conservative forces and virials by automatic differentiation, once for every torch potential.

Units: eV and angstrom. Each structure gets a strain, zero in value, that deforms its positions and its cell together,
r -> r (1 + strain) for row vectors; one backward pass then gives

    forces = -dE/d(positions),    virial = -dE/d(strain), symmetrised.

A potential that is nothing but an energy is an `EnergyPotential`. A model whose forward pass gives more than the energy
(direct forces, say) calls `conservative_forces_and_more`, so that nothing is evaluated twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from forceserver.errors import ModelError
from forceserver.potentials.interface import Batch, Capabilities, Evaluation, Forces
from forceserver.structures import CONSERVATIVE, DIRECT, ForceKind

Auxiliary = TypeVar("Auxiliary")


@dataclass(frozen=True, eq=False)
class StrainedBatch:
    """A batch whose positions and cells are functions of two leaves of the graph."""

    batch: Batch  # equal in value to the batch that was given, attached to the graph
    positions: Tensor  # leaf, (n_atoms_total, 3) A
    strains: Tensor  # leaf, (n_structures, 3, 3), zero


@dataclass(frozen=True, eq=False)
class EnergyPotential:
    """A potential given by its energy alone: conservative forces, no direct ones."""

    capabilities: Capabilities
    energy_function: Callable[[Batch], Tensor]  # a batch in, (n_structures,) eV out, attached to the graph

    def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        """Evaluate a batch.

        Raises:
            ModelError: direct forces are wanted.
        """
        if DIRECT in want:
            raise ModelError(
                f"direct forces were asked of {self.capabilities.name}, which has none. Remedy: ask for conservative "
                "forces, or give the model a synthetic direct head, for example qtip4pf:direct=0.02"
            )
        if CONSERVATIVE not in want:
            with torch.no_grad():
                return Evaluation(self.energy_function(batch))
        energies, forces = conservative_forces(self.energy_function, batch)
        return Evaluation(energies, conservative=forces)


def conservative_forces(energy_function: Callable[[Batch], Tensor], batch: Batch) -> tuple[Tensor, Forces]:
    """Differentiate an energy.

    Args:
        energy_function: a batch in, energies (n_structures,) in eV out, attached to the graph.
        batch: where to evaluate; it is not modified.

    Returns:
        The energies (n_structures,) and the forces with their virials, all detached.

    Raises:
        ModelError: the energies do not depend on the positions through the graph.
    """
    energies, forces, _ = conservative_forces_and_more(
        lambda strained: (energy_function(strained), None), batch
    )
    return energies, forces


def conservative_forces_and_more(
    forward: Callable[[Batch], tuple[Tensor, Auxiliary]], batch: Batch
) -> tuple[Tensor, Forces, Auxiliary]:
    """Differentiate the energy of a forward pass that also gives something else, and hand that through.

    Args:
        forward: a batch in, energies (n_structures,) in eV and anything out. Tensors in the latter are not detached.
        batch: where to evaluate; it is not modified.

    Raises:
        ModelError: the energies do not depend on the positions through the graph.
    """
    with graph_enabled():
        strained = strain(batch)
        energies, auxiliary = forward(strained.batch)
        forces = differentiate(energies, strained)
    return energies.detach(), forces, auxiliary


@contextmanager
def graph_enabled() -> Iterator[None]:
    """Record a graph, whatever `no_grad` or `inference_mode` a caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def strain(batch: Batch) -> StrainedBatch:
    """Make positions and cells depend on a zero strain per structure; call it under `graph_enabled`."""
    positions = batch.positions.detach().clone().requires_grad_()
    strains = torch.zeros_like(batch.cells).requires_grad_()
    cells = _outside_inference(batch.cells)
    atom_to_structure = _outside_inference(batch.atom_to_structure)
    atom_strains = strains[atom_to_structure]
    strained = replace(
        batch,
        positions=positions + torch.einsum("ia,iab->ib", positions, atom_strains),
        cells=cells + cells @ strains,
        atomic_numbers=_outside_inference(batch.atomic_numbers),
        atom_to_structure=atom_to_structure,
        pbc=_outside_inference(batch.pbc),
    )
    return StrainedBatch(strained, positions, strains)


def differentiate(energies: Tensor, strained: StrainedBatch) -> Forces:
    """One backward pass from energies (n_structures,) to the forces and virials.

    Raises:
        ModelError: the energies do not depend on the positions through the graph. Zeros would be a quiet lie.
    """
    gradients: tuple[Tensor | None, ...] = (None, None)
    if energies.requires_grad:
        leaves = (strained.positions, strained.strains)
        gradients = torch.autograd.grad(energies.sum(), leaves, allow_unused=True)
    position_gradient, strain_gradient = gradients
    if position_gradient is None or strain_gradient is None:
        raise ModelError(
            "the energy of this model is detached from the atomic positions, so it has no conservative forces. "
            "Remedy: keep the positions in torch's graph, or serve the direct forces of the model"
        )
    virials = -0.5 * (strain_gradient + strain_gradient.transpose(1, 2))
    return Forces(forces=-position_gradient, virials=virials)


def _outside_inference(tensor: Tensor) -> Tensor:
    # Tensors made under inference_mode cannot be saved for a backward pass; their copies can.
    return tensor.clone() if tensor.is_inference() else tensor
