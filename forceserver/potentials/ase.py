"""Any ASE calculator, by import path and keyword arguments: `ase:ase.calculators.lj:LennardJones,sigma=3.4,rc=8.5`.

Units: eV and angstrom, ASE's own, so nothing is converted.

Structures are evaluated one after the other on the host in float64; a calculator that uses a GPU is told so by its
own keyword arguments. The forces are conservative, as a calculator says of no other kind. The energy is the one that
the forces are derivatives of: where a calculator has a free energy (smeared electrons) it is that, not the energy
extrapolated to zero smearing, which no dynamics would conserve.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ase import Atoms

from forceserver.errors import ForceServerError, ModelError, UsageError
from forceserver.potentials.interface import Batch, Capabilities, Evaluation, Forces
from forceserver.potentials.specification import POSITIONAL
from forceserver.structures import CONSERVATIVE, DIRECT, FloatArray, ForceKind

WORDS = {"true": True, "false": False, "none": None}  # 'false' as text would count as true
EXAMPLE = "ase:ase.calculators.emt:EMT"


def load(options: Mapping[str, str], *, device: torch.device, dtype: torch.dtype | None) -> AsePotential:
    """Import a calculator and construct it.

    Each option but the import path is a keyword argument, read as a Python literal where it is one (`5.0`, `(2,2,2)`, `None`,
    `true` as well as `True`), else kept as text. `device` is not used: the arrays of a calculator live on the host.

    Raises:
        UsageError: no such module or class, not a calculator, arguments that it refuses, a dtype that it has not.
    """
    if POSITIONAL not in options:
        raise UsageError(f"ase: no calculator given; write its import path, for example {EXAMPLE}")
    if dtype not in (None, torch.float64):
        raise UsageError(
            "ase: calculators work in float64, float32 was asked for. Remedy: --dtype float64, and tell the calculator "
            "about its own precision by a keyword argument"
        )
    path = options[POSITIONAL]
    arguments = {key: _read_literal(text) for key, text in options.items() if key != POSITIONAL}
    factory = _import(path)
    try:
        calculator = factory(**arguments)
    except Exception as error:
        raise UsageError(f"ase: {path} refused its arguments {arguments}: {_describe(error)}") from error
    return AsePotential(calculator, name=f"{path.split(':')[1]} (ASE)")


class AsePotential:
    """An ASE calculator behind the one interface."""

    def __init__(self, calculator: Any, *, name: str) -> None:
        """
        Args:
            calculator: anything with ASE's calculator interface.
            name: for the log.

        Raises:
            UsageError: it is no calculator, or has no forces.
        """
        properties = getattr(calculator, "implemented_properties", None)
        if properties is None or not hasattr(calculator, "get_potential_energy"):
            raise UsageError(f"ase: {name} is not an ASE calculator, got {type(calculator).__name__}")
        if "energy" not in properties or "forces" not in properties:
            raise UsageError(
                f"ase: {name} must give energy and forces, it gives: {', '.join(properties) or 'nothing'}"
            )
        self._calculator = calculator
        self._has_free_energy = "free_energy" in properties
        self._capabilities = Capabilities(
            name=name,
            elements=None,
            cutoff=None,
            dtype=torch.float64,
            device=torch.device("cpu"),
            conservative=True,
            direct=False,
            direct_virial=False,
            conservative_virial="stress" in properties,
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        """Evaluate structure by structure.

        Virials are None where the calculator has no stress, and where a structure is periodic but has no volume.

        Raises:
            ModelError: direct forces were wanted, or the calculator failed.
        """
        if DIRECT in want:
            raise ModelError(
                f"direct forces were asked of {self._capabilities.name}, which has conservative ones only. "
                "Remedy: --forces conservative, or a second model with --direct"
            )
        try:
            answers = [self._evaluate(atoms) for atoms in _split(batch)]
        except (ForceServerError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ModelError(f"{self._capabilities.name} failed: {_describe(error)}") from error
        energies = torch.tensor([energy for energy, _, _ in answers], dtype=torch.float64)
        if CONSERVATIVE not in want:
            return Evaluation(energies)
        forces = torch.from_numpy(np.concatenate([forces for _, forces, _ in answers]))
        virials = [virial for _, _, virial in answers if virial is not None]
        stacked = torch.from_numpy(np.stack(virials)) if len(virials) == len(answers) else None
        return Evaluation(energies, conservative=Forces(forces, stacked))

    def _evaluate(self, atoms: Atoms) -> tuple[float, FloatArray, FloatArray | None]:
        atoms.calc = self._calculator
        energy = np.asarray(atoms.get_potential_energy(force_consistent=self._has_free_energy)).item()
        forces = np.array(atoms.get_forces(), dtype=np.float64)
        if not self._capabilities.conservative_virial:
            return energy, forces, None
        if not atoms.pbc.any():
            # Without periodicity the virial follows from the forces alone, and a calculator may refuse the stress.
            virial = atoms.positions.T @ forces
        elif atoms.cell.rank == 3:
            virial = -atoms.get_volume() * atoms.get_stress(voigt=False)
        else:
            return energy, forces, None
        return energy, forces, (virial + virial.T) / 2.0


def _split(batch: Batch) -> list[Atoms]:
    """A batch as ASE structures, on the host."""
    positions = np.split(batch.positions.cpu().double().numpy(), np.cumsum(batch.n_atoms)[:-1])
    numbers = np.split(batch.atomic_numbers.cpu().numpy(), np.cumsum(batch.n_atoms)[:-1])
    cells, pbc = batch.cells.cpu().double().numpy(), batch.pbc.cpu().numpy()
    return [
        Atoms(numbers=numbers[i], positions=positions[i], cell=cells[i], pbc=pbc[i])
        for i in range(batch.n_structures)
    ]


def _import(path: str) -> Any:
    module_name, separator, class_name = path.partition(":")
    if not separator or not all(part.isidentifier() for part in [*module_name.split("."), class_name]):
        raise UsageError(f"ase: '{path}' is not MODULE:CLASS; write for example {EXAMPLE}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"ase: cannot import '{module_name}': {_describe(error)}. Remedy: install the package, or mend the path; for a "
            "module of your own, set PYTHONPATH to its folder"
        ) from error
    if not hasattr(module, class_name):
        raise UsageError(f"ase: the module '{module_name}' has no '{class_name}'")
    return getattr(module, class_name)


def _read_literal(text: str) -> Any:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _describe(error: Exception) -> str:
    """One line for an error of someone else's code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
