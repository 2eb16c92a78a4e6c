"""Small metatomic models, made when a test needs them. Units: eV and angstrom unless a recipe says otherwise.

`PairModel` has a closed form, which `closed_form` evaluates by another route: plain loops over periodic images in
NumPy. With x = r^2/cutoff^2 and the couplings c_i = 1 + Z_i/10, each pair within a cutoff contributes

    energy        amplitude c_i c_j (1 - x)^3
    direct force  on i from j: amplitude c_i c_j (1 - x)^2 (-radial D + swirl n x D),    D = r_j - r_i

The direct force is no derivative, for n x D has a curl; it is antisymmetric, so that the net force is zero. The direct
stress is the sum over pairs of D (outer) f_i over the volume, left as unsymmetric as it comes.
"""

# ruff: noqa: UP006, UP035, UP045  metatomic compares annotations with typing's own spelling
# (and reads them, so this module cannot postpone them).

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelMetadata,
    ModelOutput,
    NeighborListOptions,
    System,
)

from forceserver.structures import FloatArray, IntArray, Structure

RADIAL = 0.7
SWIRL = 0.3
AXIS = (0.2, -0.5, 0.8)
DIRECT_FORCE = "non_conservative_force"
DIRECT_STRESS = "non_conservative_stress"


@dataclass(frozen=True)
class Term:
    """One sum over pairs, with a neighbour list of its own."""

    cutoff: float = 4.0
    full: bool = True
    strict: bool = True
    amplitude: float = 0.5  # eV


@dataclass(frozen=True)
class Units:
    """What a model computes in, as numbers that owe nothing to the conversions of metatomic."""

    length: str = "Angstrom"
    energy: str = "eV"
    angstrom_per_length: float = 1.0
    energy_per_eV: float = 1.0


METRIC = Units("nm", "meV", angstrom_per_length=10.0, energy_per_eV=1000.0)
CHEMICAL = Units("Angstrom", "kcal/mol", energy_per_eV=1.602176634e-19 * 6.02214076e23 / 4184.0)


@dataclass(frozen=True)
class Recipe:
    """How to make a `PairModel`, and which outputs it declares, each with a factor: {name: factor}."""

    terms: tuple[Term, ...] = (Term(),)
    outputs: tuple[tuple[str, float], ...] = (("energy", 1.0), (DIRECT_FORCE, 1.0), (DIRECT_STRESS, 1.0))
    dtype: str = "float64"
    units: Units = field(default_factory=Units)
    energy_per_atom: bool = False  # answer with one energy for each atom, whatever was asked
    reverse_samples: bool = False  # give structures and atoms in reverse order
    devices: tuple[str, ...] = ("cpu",)


class PairModel(torch.nn.Module):
    """The pair potential of the module docstring, as a model that metatomic can export."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.length = recipe.units.angstrom_per_length
        self.energy_unit = recipe.units.energy_per_eV
        self.energy_per_atom = recipe.energy_per_atom
        self.reverse_samples = recipe.reverse_samples
        self.factors: Dict[str, float] = dict(recipe.outputs)
        self.cutoffs: List[float] = [term.cutoff for term in recipe.terms]
        self.amplitudes: List[float] = [term.amplitude for term in recipe.terms]
        self.weights: List[float] = [0.5 if term.full else 1.0 for term in recipe.terms]
        self.lists: List[NeighborListOptions] = [
            NeighborListOptions(term.cutoff / self.length, term.full, term.strict) for term in recipe.terms
        ]
        self.axis = torch.nn.Parameter(torch.tensor(AXIS, dtype=getattr(torch, recipe.dtype)))

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        return self.lists

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        energies: List[torch.Tensor] = []
        forces: List[torch.Tensor] = []
        stresses: List[torch.Tensor] = []
        places: List[int] = []
        atoms: List[torch.Tensor] = []
        for k in range(len(systems)):
            place = len(systems) - 1 - k if self.reverse_samples else k
            energy, force, stress = self.evaluate(systems[place])
            if self.reverse_samples:
                energy, force = energy.flip(0), force.flip(0)
            atom = torch.arange(len(energy), device=energy.device)
            atom = atom.flip(0) if self.reverse_samples else atom
            energies.append(energy if self.energy_per_atom else energy.sum().reshape(1))
            forces.append(force)
            stresses.append(stress.reshape(1, 3, 3))
            places.append(place)
            atoms.append(torch.stack([torch.full_like(atom, place), atom], dim=1))
        per_structure = torch.tensor(places, device=systems[0].device).reshape(-1, 1)
        per_atom = torch.cat(atoms)
        xyz = torch.arange(3, device=systems[0].device).reshape(3, 1)
        results: Dict[str, TensorMap] = {}
        for name in outputs.keys():  # noqa: SIM118  TorchScript wants it
            factor = self.factors[name]
            samples = Labels(["system"], per_structure)
            components: List[Labels] = []
            if name.startswith("energy"):
                values = factor * self.energy_unit * torch.cat(energies).reshape(-1, 1)
                if self.energy_per_atom:
                    samples = Labels(["system", "atom"], per_atom)
            elif name.startswith("non_conservative_force"):
                values = factor * self.energy_unit * self.length * torch.cat(forces).unsqueeze(-1)
                samples = Labels(["system", "atom"], per_atom)
                components = [Labels(["xyz"], xyz)]
            else:
                values = factor * self.energy_unit * self.length**3 * torch.cat(stresses).unsqueeze(-1)
                components = [Labels(["xyz_1"], xyz), Labels(["xyz_2"], xyz)]
            properties = Labels([name.split("/")[0]], torch.zeros(1, 1, device=xyz.device, dtype=torch.long))
            block = TensorBlock(values, samples, components, properties)
            keys = Labels(["_"], torch.zeros(1, 1, device=xyz.device, dtype=torch.long))
            results[name] = TensorMap(keys, [block])
        return results

    def evaluate(self, system: System):
        """Energies (n_atoms,) eV, direct forces (n_atoms, 3) eV/A and direct stress (3, 3) eV/A^3."""
        positions = system.positions
        energy = torch.zeros_like(positions[:, 0])
        force = torch.zeros_like(positions)
        stress = torch.zeros(3, 3, dtype=positions.dtype, device=positions.device)
        coupling = 1.0 + system.types.to(positions.dtype) / 10.0
        for k in range(len(self.lists)):
            block = system.get_neighbor_list(self.lists[k])
            first = block.samples.column("first_atom").to(torch.long)
            second = block.samples.column("second_atom").to(torch.long)
            vectors = block.values.reshape(-1, 3) * self.length
            x = (vectors.pow(2).sum(1) / self.cutoffs[k] ** 2).clamp(max=1.0)
            strength = self.amplitudes[k] * coupling[first] * coupling[second]
            weight = self.weights[k]
            energy = energy.index_add(0, first, weight * strength * (1.0 - x).pow(3))
            swirl = torch.linalg.cross(self.axis.expand_as(vectors), vectors)
            pair = (strength * (1.0 - x).pow(2)).unsqueeze(1) * (-0.7 * vectors + 0.3 * swirl)
            force = force.index_add(0, first, weight * pair).index_add(0, second, -weight * pair)
            stress = stress + weight * torch.einsum("pa,pb->ab", vectors, pair)
        volume = torch.det(system.cell).abs() * self.length**3
        return energy, force, stress / volume


class BrokenModel(torch.nn.Module):
    """Fails when it is called: for want of memory, or of sense."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.petabyte = 10**15

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        results: Dict[str, TensorMap] = {}
        waste = torch.zeros(self.petabyte if self.fault == "memory" else 2) + torch.zeros(3)
        if bool(waste.sum() > 0):  # used, so that TorchScript does not leave it out
            raise ValueError("unreachable")
        return results


class DemandingModel(BrokenModel):
    """Wants to know more than i-PI says."""

    def requested_inputs(self) -> Dict[str, ModelOutput]:
        return {"charge": ModelOutput(unit="e", sample_kind="system")}


def save_pair_model(recipe: Recipe, path: Path) -> Path:
    """Export a `PairModel` as any user would."""
    units = recipe.units
    unit_of = {
        "energy": units.energy,
        DIRECT_FORCE: f"{units.energy}/{units.length}",
        DIRECT_STRESS: f"{units.energy}/{units.length}^3",
    }
    outputs = {}
    for name, _ in recipe.outputs:
        quantity = name.split("/")[0].replace("forces", "force")
        per_atom = quantity == DIRECT_FORCE or (quantity == "energy" and recipe.energy_per_atom)
        outputs[name] = ModelOutput(unit=unit_of[quantity], sample_kind="atom" if per_atom else "system")
    return save_module(
        PairModel(recipe),
        path,
        outputs=outputs,
        dtype=recipe.dtype,
        length_unit=units.length,
        interaction_range=max((term.cutoff for term in recipe.terms), default=0.0)
        / units.angstrom_per_length,
        devices=recipe.devices,
    )


def save_module(
    module: torch.nn.Module,
    path: Path,
    *,
    outputs: dict[str, ModelOutput],
    dtype: str = "float64",
    length_unit: str = "Angstrom",
    interaction_range: float = 0.0,
    devices: Sequence[str] = ("cpu",),
) -> Path:
    """Export a module that knows hydrogen and oxygen."""
    capabilities = ModelCapabilities(
        outputs=outputs,
        atomic_types=[1, 8],
        interaction_range=interaction_range,
        length_unit=length_unit,
        supported_devices=list(devices),
        dtype=dtype,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*deprecated"
        )  # some models here bear the older names on purpose
        AtomisticModel(module.eval(), ModelMetadata(name="pair model"), capabilities).save(path)
    return path


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """What a `PairModel` must give for one structure, in eV and angstrom."""

    energy: float
    forces: FloatArray  # (n_atoms, 3)
    virial: FloatArray  # (3, 3)
    direct_forces: FloatArray  # (n_atoms, 3)
    direct_virial: FloatArray  # (3, 3)


def closed_form(structure: Structure, terms: Sequence[Term] = (Term(),)) -> ClosedForm:
    """Sum over all images of all pairs, one by one."""
    n_atoms = structure.n_atoms
    energy, virial, direct_virial = 0.0, np.zeros((3, 3)), np.zeros((3, 3))
    forces, direct_forces = np.zeros((n_atoms, 3)), np.zeros((n_atoms, 3))
    for term in terms:
        for i, j, shift in all_pairs(structure, term.cutoff):
            vector = structure.positions[j] - structure.positions[i] + shift @ structure.cell
            couplings = [1 + structure.atomic_numbers[atom] / 10 for atom in (i, j)]
            strength = term.amplitude * couplings[0] * couplings[1]
            rest = 1 - vector @ vector / term.cutoff**2
            energy += 0.5 * strength * rest**3
            # d(1-x)^3/dr_i = +6 (1-x)^2 D/cutoff^2, half of it for each end of a pair counted twice.
            force = -6 * strength * rest**2 * vector / term.cutoff**2
            direct = strength * rest**2 * (-RADIAL * vector + SWIRL * np.cross(AXIS, vector))
            forces[i] += force
            direct_forces[i] += direct
            virial -= 0.5 * np.outer(vector, force)
            direct_virial -= 0.5 * np.outer(vector, direct)
    return ClosedForm(energy, forces, virial, direct_forces, (direct_virial + direct_virial.T) / 2)


def all_pairs(structure: Structure, cutoff: float) -> list[tuple[int, int, IntArray]]:
    """Every (i, j, shift) within the cutoff, from both ends, by brute force."""
    spans = np.zeros(3, dtype=int)
    if structure.pbc.any():
        inverse = np.linalg.pinv(structure.cell)
        planes_per_cutoff = cutoff * np.linalg.norm(inverse, axis=0)
        extent = np.ptp(structure.positions @ inverse, axis=0)
        spans = np.where(structure.pbc, np.ceil(planes_per_cutoff + extent), 0).astype(int)
    shifts = np.array(list(np.ndindex(*(2 * spans + 1)))) - spans
    translations = shifts @ structure.cell
    pairs = []
    for i in range(structure.n_atoms):
        for j in range(structure.n_atoms):
            distances = np.linalg.norm(structure.positions[j] - structure.positions[i] + translations, axis=1)
            for k in np.flatnonzero(distances <= cutoff):
                if i != j or shifts[k].any():
                    pairs.append((i, j, shifts[k]))
    return pairs


def save_metatrain_model(architecture: str, path: Path, *, dtype: str = "float64") -> Path:
    """A tiny `pet` or `soap_bpnn` with random weights and both heads, exported by metatrain."""
    from metatrain.utils.architectures import get_default_hypers
    from metatrain.utils.data import DatasetInfo

    hypers = get_default_hypers(architecture)["model"]
    if architecture == "pet":
        from metatrain.pet import PET as Model  # noqa: N811

        narrow = {"d_pet": 8, "d_head": 8, "d_node": 8, "d_feedforward": 8, "num_heads": 1}
        hypers.update(narrow, cutoff=3.5, num_attention_layers=1, num_gnn_layers=1)
    else:
        from metatrain.soap_bpnn import SoapBpnn as Model

        hypers["soap"].update(max_angular=2, max_radial=2)
        hypers["soap"]["cutoff"]["radius"] = 3.5
        hypers["bpnn"].update(num_hidden_layers=1, num_neurons_per_layer=8)
    torch.manual_seed(0)
    model = Model(hypers, DatasetInfo("Angstrom", [1, 8], _metatrain_targets()))
    model.to(getattr(torch, dtype)).eval().export().save(path)
    return path


def _metatrain_targets() -> dict[str, object]:
    from metatrain.utils.data.target_info import get_energy_target_info, get_generic_target_info
    from omegaconf import DictConfig

    def describe(unit: str, sample_kind: str, kind: object) -> DictConfig:
        words = {"quantity": "", "unit": unit, "sample_kind": sample_kind, "description": ""}
        return DictConfig({**words, "num_subtargets": 1, "type": kind})

    vector, matrix = {"cartesian": {"rank": 1}}, {"cartesian": {"rank": 2}}
    return {
        "energy": get_energy_target_info("energy", describe("eV", "system", "scalar")),
        DIRECT_FORCE: get_generic_target_info(DIRECT_FORCE, describe("eV/A", "atom", vector)),
        DIRECT_STRESS: get_generic_target_info(DIRECT_STRESS, describe("eV/A^3", "system", matrix)),
    }
