"""What a potential is: a callable from a batch of structures to energies and forces of the kinds that are wanted.

Units: eV and angstrom. Structures are concatenated, never padded: `atom_to_structure` says which atom belongs where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from forceserver.structures import FloatArray, ForceKind, Structure

OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory")
FAR = 100.0  # A; beyond, float32 costs water-pet forces more than 4e-4 eV/A
MOST_KEPT = 256  # combinations of templates and batch sizes


@dataclass(frozen=True, eq=False)
class Batch:
    """Several structures, concatenated, in the dtype and on the device of the potential."""

    positions: Tensor  # (n_atoms_total, 3) A
    cells: Tensor  # (n_structures, 3, 3) A, lattice vectors as rows
    atomic_numbers: Tensor  # (n_atoms_total,) int64
    atom_to_structure: Tensor  # (n_atoms_total,) int64, ascending
    pbc: Tensor  # (n_structures, 3) bool
    n_atoms: tuple[int, ...]  # per structure, on the host: splitting must not wait for the device

    @property
    def n_structures(self) -> int:
        return len(self.n_atoms)

    @staticmethod
    def from_structures(
        structures: Sequence[Structure], *, dtype: torch.dtype, device: torch.device
    ) -> Batch:
        """Concatenate structures and move them to the device; see `BatchBuilder`, which keeps what does not change."""
        return BatchBuilder(dtype, device).build(structures)


class BatchBuilder:
    """Makes batches in one precision on one device. What stays the same from step to step is moved there once.

    Args:
        dtype: of positions and cells, which are rounded to it only here; everything before is float64.
        device: where the batch goes, one transfer per array.
        any_image: atoms may be moved by lattice vectors, and are brought back where a dtype would cut digits off far positions.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, *, any_image: bool = False) -> None:
        self._dtype = dtype
        self._device = device
        self._brings_back = any_image and dtype is not torch.float64
        self._moves = dtype is not torch.float64 or device.type != "cpu"
        self._kept: dict[tuple[tuple[int, int], ...], _Constants] = {}
        self._cells = torch.empty(0)
        self._cells_are_of = b""

    def build(self, structures: Sequence[Structure]) -> Batch:
        """A batch of the structures in their order, their positions as they are: not every potential may wrap them."""
        constants = self._constants(structures)
        return Batch(
            positions=self._move(self._positions(structures)),
            cells=self._moved_cells(structures),
            atomic_numbers=constants.atomic_numbers,
            atom_to_structure=constants.atom_to_structure,
            pbc=constants.pbc,
            n_atoms=constants.n_atoms,
        )

    def _positions(self, structures: Sequence[Structure]) -> FloatArray:
        positions = _joined([structure.positions for structure in structures])
        if not self._brings_back or np.abs(positions).max() <= FAR:
            return positions
        exact = Batch.from_structures(structures, dtype=torch.float64, device=torch.device("cpu"))
        return brought_back(exact).positions.numpy()

    def _move(self, array: FloatArray) -> Tensor:
        tensor = torch.from_numpy(array)
        if not self._moves:
            return tensor
        if self._device.type == "cuda":  # from pinned memory a copy is under way while we go on
            return tensor.to(self._dtype).pin_memory().to(self._device, non_blocking=True)
        return tensor.to(device=self._device, dtype=self._dtype)

    def _moved_cells(self, structures: Sequence[Structure]) -> Tensor:
        """Most simulations have one cell all their life."""
        cells = b"".join([structure.cell.tobytes() for structure in structures])
        if cells != self._cells_are_of:
            self._cells = self._move(np.array([structure.cell for structure in structures]))
            self._cells_are_of = cells
        return self._cells

    def _constants(self, structures: Sequence[Structure]) -> _Constants:
        """Species and periodicity come from a template, the same arrays at every step."""
        key = tuple([(id(structure.atomic_numbers), id(structure.pbc)) for structure in structures])
        constants = self._kept.get(key)
        if constants is None:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            constants = self._kept[key] = self._make_constants(structures)
        return constants

    def _make_constants(self, structures: Sequence[Structure]) -> _Constants:
        n_atoms = tuple(structure.n_atoms for structure in structures)
        numbers = np.concatenate([structure.atomic_numbers for structure in structures])
        return _Constants(
            atomic_numbers=torch.as_tensor(numbers).to(self._device),
            atom_to_structure=torch.as_tensor(np.repeat(np.arange(len(n_atoms)), n_atoms)).to(self._device),
            pbc=torch.as_tensor(np.stack([structure.pbc for structure in structures])).to(self._device),
            n_atoms=n_atoms,
            owners=tuple((structure.atomic_numbers, structure.pbc) for structure in structures),
        )


def brought_back(batch: Batch) -> Batch:
    """The same, with atoms that are far out brought back to the cell along its periodic vectors: only their digits change."""
    far = (batch.positions.abs().amax(dim=1) > FAR) & batch.positions.isfinite().all(dim=1)
    if not bool(far.any()) or not bool(batch.cells.isfinite().all()):
        return batch
    # Each atom by itself: none may depend on what else is in the batch.
    owners, away = batch.atom_to_structure[far], batch.positions[far]
    periodic = batch.cells * batch.pbc[:, :, None]
    laps = (away[:, :, None] * torch.linalg.pinv(periodic)[owners]).sum(dim=1).floor()
    positions = batch.positions.clone()
    positions[far] = away - (laps[:, :, None] * periodic[owners]).sum(dim=1)
    return replace(batch, positions=positions)


def _joined(arrays: Sequence[FloatArray]) -> FloatArray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


@dataclass(frozen=True, eq=False)
class _Constants:
    """What all batches of the same templates share."""

    atomic_numbers: Tensor
    atom_to_structure: Tensor
    pbc: Tensor
    n_atoms: tuple[int, ...]
    owners: tuple[
        object, ...
    ]  # the arrays by whose identity these are found again: kept alive, so that it stays theirs


@dataclass(frozen=True, eq=False)
class Forces:
    """Forces of one kind for a batch, with the virials that belong to them."""

    forces: Tensor  # (n_atoms_total, 3) eV/A
    virials: Tensor | None  # (n_structures, 3, 3) eV, -dE/d(strain), symmetric; None: the model has none


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a potential says about a batch. Detached from any graph."""

    energies: Tensor  # (n_structures,) eV, always the conservative one
    conservative: Forces | None = None  # None exactly when not wanted
    direct: Forces | None = None


@dataclass(frozen=True)
class Capabilities:
    """What a potential can do, as data: checked before i-PI moves, printed at the start."""

    name: str  # for the log, e.g. "q-TIP4P/F + synthetic direct head (strength 0.02)"
    elements: frozenset[int] | None  # atomic numbers; None: any
    cutoff: float | None  # A; None: not a matter of a cutoff
    dtype: torch.dtype
    device: torch.device
    conservative: bool
    direct: bool
    direct_virial: bool
    synthetic_direct: bool = False  # the direct forces are made up for testing: a user must be told
    conservative_virial: bool = True  # False: energy and forces only, as of some ASE calculators
    direct_virial_wants_volume: bool = (
        False  # it has none where a structure is not periodic in all directions
    )
    any_image: bool = False  # moving an atom by a lattice vector changes nothing
    shares_forward_pass: bool = True  # both kinds from one call cost less than from one call each


class Potential(Protocol):
    """The one interface behind which every model stands; `contract.check_potential` is its executable form."""

    @property
    def capabilities(self) -> Capabilities: ...

    def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        """Evaluate a batch; asked for both kinds, give both from one forward pass.

        Must not modify `batch`, and must give each structure the answer that it would get alone.
        """
        ...


@runtime_checkable
class Twinned(Potential, Protocol):
    """A potential that may be evaluated in several threads at the same time, by a twin of it in each of them.

    Who does not say so, by having this method, is called from one thread at a time: most calculators are written for that.
    """

    def twin(self) -> Potential:
        """Another that gives the same answers, to the last bit; what is only read is shared. Called while nobody evaluates."""
        ...


def is_out_of_memory(error: Exception) -> bool:
    """torch says it with a type of its own on a GPU, and in words alone on a CPU and from inside TorchScript."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS)
