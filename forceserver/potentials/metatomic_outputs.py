"""The outputs of a metatomic model: which ones to ask for, and how to read what comes back.

Units: eV and angstrom, asked of the model by name, so that a model in other units is converted by metatomic.

A model may have an output in several variants, `energy/pbe` and `energy/r2scan`, one for each target that it was
trained on. The samples of a block may come in any order, so they are placed by their labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from metatensor.torch import TensorMap
from metatomic.torch import AtomisticModel, ModelOutput, unit_conversion_factor
from torch import Tensor

from forceserver.errors import ModelError, UsageError
from forceserver.potentials.interface import Batch

ENERGY = "energy"
DIRECT_FORCE = "non_conservative_force"
DIRECT_STRESS = "non_conservative_stress"
LENGTH_UNIT = "Angstrom"
OLDER_NAMES = {DIRECT_FORCE: "non_conservative_forces"}  # metatomic's wrapper gives both for either

REQUESTS = {
    ENERGY: ModelOutput(unit="eV", sample_kind="system"),
    DIRECT_FORCE: ModelOutput(unit="eV/Angstrom", sample_kind="atom"),
    DIRECT_STRESS: ModelOutput(unit="eV/Angstrom^3", sample_kind="system"),
}


@dataclass(frozen=True)
class OutputNames:
    """The outputs of a model that are used, with their variants, e.g. `energy/pbe`."""

    energy: str
    direct_force: str | None
    direct_stress: str | None

    def requests(self, *, direct: bool) -> dict[str, ModelOutput]:
        """What to ask of the model, with or without its direct head."""
        names: list[str | None] = [self.energy]
        if direct:
            names += [self.direct_force, self.direct_stress]
        return {name: REQUESTS[quantity_of(name)] for name in names if name is not None}


def choose_outputs(
    available: Iterable[str], variant: str | None = None, direct_variant: str | None = None
) -> OutputNames:
    """Choose the energy, and the direct force and stress that go with it.

    Without a variant named by the user, the energy without a suffix is taken, else the only one there is. The
    direct outputs are those of the same variant as the energy unless `direct_variant` says otherwise: forces of
    another target are never taken quietly.

    Args:
        available: the names of all outputs that the model declares.
        variant: the part after the slash.
        direct_variant: the same, for the direct outputs.

    Raises:
        UsageError: no such variant, or several and none chosen.
        ModelError: the model has no energy at all.
    """
    names = frozenset(available)
    energy = _choose_energy(names, variant)
    suffix = energy.removeprefix(ENERGY) if direct_variant is None else f"/{direct_variant}"
    force, stress = DIRECT_FORCE + suffix, DIRECT_STRESS + suffix
    if direct_variant is not None and force not in names:
        raise UsageError(
            f"the model has no output '{force}', wanted by direct_variant={direct_variant}. "
            f"It has: {list_outputs(names, DIRECT_FORCE)}"
        )
    if force not in names:
        return OutputNames(energy, direct_force=None, direct_stress=None)
    return OutputNames(energy, force, stress if stress in names else None)


def _choose_energy(names: frozenset[str], variant: str | None) -> str:
    energies = sorted(name for name in names if quantity_of(name) == ENERGY)
    if not energies:
        raise ModelError(
            f"the model has no output '{ENERGY}', without which there is nothing to simulate. "
            f"It has: {', '.join(sorted(names)) or 'none'}"
        )
    if variant is not None:
        if f"{ENERGY}/{variant}" not in names:
            raise UsageError(
                f"the model has no output '{ENERGY}/{variant}', wanted by variant={variant}. "
                f"It has: {', '.join(energies)}"
            )
        return f"{ENERGY}/{variant}"
    if ENERGY not in names and len(energies) > 1:
        raise UsageError(
            f"the model has several energies and none is the default: {', '.join(energies)}. "
            f"Remedy: choose one, for example FILE.pt,variant={energies[0].removeprefix(ENERGY + '/')}"
        )
    return ENERGY if ENERGY in names else energies[0]


def quantity_of(name: str) -> str:
    """The name of an output without its variant."""
    return name.split("/")[0]


def names_inside(model: AtomisticModel, names: OutputNames) -> dict[str, str] | None:
    """What the module inside calls the outputs, if it can be called without metatomic's wrapper, which converts names and units.

    The wrapper makes every structure anew even where there is nothing to convert: direct forces of a small PET for 32 replicas of
    64 waters on an H100 took 45 ms with it and 27 without.

    Returns:
        Their names by those that we use; None where the wrapper is needed: other units, or a file that does not list them.
    """
    # The public list holds names that the wrapper adds as well.
    declared = getattr(model, "_model_capabilities_outputs_names", ())
    outputs = model.capabilities().outputs
    inside: dict[str, str] = {}
    units = [(model.capabilities().length_unit, LENGTH_UNIT)]
    for name, request in names.requests(direct=names.direct_force is not None).items():
        quantity = quantity_of(name)
        candidates = (name, OLDER_NAMES.get(quantity, quantity) + name.removeprefix(quantity))
        own = [candidate for candidate in candidates if candidate in declared]
        if not own:
            return None
        inside[name] = own[0]
        units.append((outputs[name].unit, request.unit))
    # One without a unit is taken as it comes, by the wrapper too.
    convertible = [(own, ours) for own, ours in units if own != ""]
    return inside if all(unit_conversion_factor(own, ours) == 1.0 for own, ours in convertible) else None


def list_outputs(names: Iterable[str], quantity: str) -> str:
    """All variants of a quantity, in words."""
    return ", ".join(sorted(name for name in names if quantity_of(name) == quantity)) or "none"


def read_energies(results: Mapping[str, TensorMap], names: OutputNames, batch: Batch) -> Tensor:
    """Energies (n_structures,) eV, attached to the graph; energies per atom are summed."""
    block = results[names.energy].block()
    values = block.values.reshape(-1)
    energies = torch.zeros(batch.n_structures, dtype=values.dtype, device=values.device)
    return energies.index_add(0, block.samples.column("system").long(), values)


def read_direct_forces(results: Mapping[str, TensorMap], names: OutputNames, batch: Batch) -> Tensor:
    """Direct forces (n_atoms_total, 3) eV/A in the order of the batch, detached.

    Raises:
        ModelError: not one force for each atom.
    """
    assert names.direct_force is not None
    block = results[names.direct_force].block()
    values = block.values.detach().reshape(-1, 3)
    if len(values) != len(batch.positions):
        raise ModelError(
            f"wanted a direct force for each of {len(batch.positions)} atoms, got {len(values)} from the output "
            f"'{names.direct_force}' of the model"
        )
    n_atoms = torch.tensor(batch.n_atoms, device=values.device)
    first_of_structure = n_atoms.cumsum(0) - n_atoms
    samples = block.samples
    atom = first_of_structure[samples.column("system").long()] + samples.column("atom")
    return torch.empty_like(values).index_copy(0, atom, values)


def read_direct_virials(results: Mapping[str, TensorMap], names: OutputNames, batch: Batch) -> Tensor | None:
    """Direct virials (n_structures, 3, 3) eV = -volume x stress, symmetrised, detached.

    None without a direct stress, and where a structure is not periodic in all directions: it has no volume.
    """
    if names.direct_stress is None or not bool(batch.pbc.all()):
        return None
    block = results[names.direct_stress].block()
    values = block.values.detach().reshape(-1, 3, 3)
    stresses = torch.empty_like(values).index_copy(0, block.samples.column("system").long(), values)
    volumes: Tensor = torch.linalg.det(batch.cells).abs()
    return -0.5 * volumes[:, None, None] * (stresses + stresses.transpose(1, 2))
