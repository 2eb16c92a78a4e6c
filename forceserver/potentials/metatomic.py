"""Models exported with metatomic (`.pt` files): conservative forces, direct ones, or both from one forward pass.

Units: eV and angstrom.

A model file is a program (TorchScript): load only files that you trust. On a GPU the first calls of each kind of request
are slow, because TorchScript specialises its code to what it sees. On a CPU it is told not to: that took 1.7 s and 170 MB of a
small PET and made it no faster.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from ase.data import chemical_symbols
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import AtomisticModel, ModelEvaluationOptions, ModelOutput, System
from torch import Tensor

from forceserver.errors import ForceServerError, ModelError, UsageError, one_line
from forceserver.neighbors import DEFAULT_SKIN, BatchPairs, NeighborLists, NeighborStatistics, PairRequest
from forceserver.potentials.autograd import conservative_forces_and_more
from forceserver.potentials.interface import Batch, Capabilities, Evaluation, Forces, is_out_of_memory
from forceserver.potentials.metatomic_file import (
    check_device,
    check_inputs,
    choose_dtype,
    read_model,
)
from forceserver.potentials.metatomic_outputs import (
    DIRECT_FORCE,
    LENGTH_UNIT,
    OutputNames,
    choose_outputs,
    list_outputs,
    names_inside,
    read_direct_forces,
    read_direct_virials,
    read_energies,
)
from forceserver.potentials.specification import POSITIONAL, check_keys, read_numbers
from forceserver.structures import CONSERVATIVE, DIRECT, ForceKind

SCHEME = "metatomic"
OPTIONS = (POSITIONAL, "variant", "direct_variant", "extensions", "check", "skin")
PAIR_LABELS = ["first_atom", "second_atom", "cell_shift_a", "cell_shift_b", "cell_shift_c"]


def load(
    options: Mapping[str, str], *, device: torch.device, dtype: torch.dtype | None
) -> MetatomicPotential:
    """Load `FILE.pt`, with options `variant`, `direct_variant`, `extensions`, `check` and `skin`.

    `variant=NAME` chooses among the outputs of a model that was trained on several targets, for the energy and
    the direct forces alike; `direct_variant=NAME` chooses the direct forces apart. `extensions=DIR` holds the
    compiled code that a model may need, `check=true` lets metatomic check each call, `skin=2.0` (A) is that of the
    kept neighbour lists.

    Args:
        options: the words after the scheme.
        device: one that the model was exported for.
        dtype: None for that of the model. A float32 model can run in float64, which takes the rounding out of its
            energies but not out of its weights; a float64 model is not narrowed.

    Raises:
        UsageError: no such file, not a metatomic file; an option, a variant, a device or a dtype that cannot be.
        ModelError: the model has no energy, or wants inputs that are not to be had here.
    """
    check_keys(SCHEME, options, OPTIONS)
    if POSITIONAL not in options:
        raise UsageError("metatomic: no file given; write FILE.pt or metatomic:FILE.pt")
    path = Path(options[POSITIONAL])
    numbers = read_numbers(
        SCHEME, {key: options[key] for key in ("skin",) if key in options}, {"skin": DEFAULT_SKIN}
    )
    if numbers["skin"] < 0.0:
        raise UsageError(f"metatomic: option 'skin' must not be negative, got {options['skin']}")
    check = _read_flag("check", options.get("check", "false"))
    model = read_model(path, options.get("extensions"))
    check_device(path, model, device)
    check_inputs(path, model)
    names = choose_outputs(
        model.capabilities().outputs, options.get("variant"), options.get("direct_variant")
    )
    return MetatomicPotential(
        model,
        names,
        name=f"{model.metadata().name or path.stem} (metatomic)",
        device=device,
        dtype=choose_dtype(path, model, dtype, check=check),
        skin=numbers["skin"],
        check=check,
    )


class MetatomicPotential:
    """A metatomic model behind the one interface."""

    def __init__(
        self,
        model: AtomisticModel,
        names: OutputNames,
        *,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        skin: float = DEFAULT_SKIN,
        check: bool = False,
    ) -> None:
        """
        Args:
            model: moved to `device` and `dtype` here.
            names: the outputs to use.
            name: for the log.
            skin: A, of the kept neighbour lists.
            check: let metatomic check the consistency of inputs and outputs in each call.
        """
        self._model = model.to(device=device, dtype=dtype)
        self._names = names
        self._check = check
        self._names_inside = names_inside(model, names)
        self._checked_numbers: Tensor | None = None  # of the last batch, known elements all of them
        self._specializes = device.type != "cpu"
        self._list_options = model.requested_neighbor_lists()
        requests = [
            PairRequest(each.engine_cutoff(LENGTH_UNIT), each.full_list) for each in self._list_options
        ]
        self._neighbors = NeighborLists(requests, skin=skin)
        self._pair_components = [Labels("xyz", torch.arange(3, device=device).reshape(3, 1))]
        self._pair_properties = Labels("distance", torch.zeros(1, 1, dtype=torch.int64, device=device))
        self._capabilities = Capabilities(
            name=name,
            elements=frozenset(model.capabilities().atomic_types),
            cutoff=_find_cutoff(model, requests),
            dtype=dtype,
            device=device,
            conservative=True,
            direct=names.direct_force is not None,
            direct_virial=names.direct_stress is not None,
            direct_virial_wants_volume=True,  # it is made of a stress
            any_image=True,
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def neighbor_statistics(self) -> NeighborStatistics:
        """What the neighbour lists have cost so far."""
        return self._neighbors.statistics

    def twin(self) -> MetatomicPotential:
        """The same model for another thread, with the same weights, compiled code and neighbour lists.

        The rest is its own: models keep tables that they convert in every call, and two threads in one model crash.
        """
        twin = copy.copy(self)
        twin._model = copy.deepcopy(self._model)
        for copied, own in zip(twin._model.parameters(), self._model.parameters(), strict=True):
            copied.data = own.data
        return twin

    def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        """Evaluate a batch. Direct forces alone build no graph; both kinds share one forward pass.

        Direct virials are None where the model has no direct stress, and where a structure of the batch is not
        periodic in all directions, so that it has none either.

        Raises:
            ModelError: no direct head but direct forces wanted, an unknown element, or a failure inside.
            torch.OutOfMemoryError: the batch does not fit on the device.
        """
        if DIRECT in want:
            self._require_direct_head()
        self._require_known_elements(batch)
        with self._explain_failures():
            pairs = self._neighbors.find(batch)
            if CONSERVATIVE in want:
                energies, conservative, results = conservative_forces_and_more(
                    lambda strained: self._forward(strained, pairs, want), batch
                )
            else:
                conservative = None
                # Not inference_mode: what a model caches under it could never enter a backward pass again.
                with torch.no_grad():
                    energies, results = self._forward(batch, pairs, want)
            direct = self._read_direct(results, batch) if DIRECT in want else None
            return Evaluation(energies, conservative=conservative, direct=direct)

    def _forward(
        self, batch: Batch, pairs: Sequence[BatchPairs], want: frozenset[ForceKind]
    ) -> tuple[Tensor, dict[str, TensorMap]]:
        """Run the model: energies (n_structures,) eV, and everything that it gave."""
        systems = self._build_systems(batch, pairs)
        with torch.jit.optimized_execution(self._specializes):  # type: ignore[attr-defined]  # documented, but not listed
            results = self._run(systems, self._names.requests(direct=DIRECT in want))
        return read_energies(results, self._names, batch), results

    def _run(self, systems: list[System], requests: dict[str, ModelOutput]) -> dict[str, TensorMap]:
        results: dict[str, TensorMap]
        if self._names_inside is None or self._check:
            options = ModelEvaluationOptions(length_unit=LENGTH_UNIT, outputs=requests)
            results = self._model(systems, options, check_consistency=self._check)
            return results
        names = {name: self._names_inside[name] for name in requests}
        with torch.profiler.record_function("Model::forward"):  # as metatomic's wrapper calls it
            results = self._model.module(systems, {own: requests[name] for name, own in names.items()}, None)
        return {name: results[own] for name, own in names.items()}

    def _read_direct(self, results: Mapping[str, TensorMap], batch: Batch) -> Forces:
        return Forces(
            forces=read_direct_forces(results, self._names, batch),
            virials=read_direct_virials(results, self._names, batch),
        )

    def _build_systems(self, batch: Batch, pairs: Sequence[BatchPairs]) -> list[System]:
        """metatomic wants each structure apart: cut from arrays of the batch, because every call has its price on a GPU."""
        # It wants the cell vectors of non-periodic directions to be zero.
        cells = batch.cells * batch.pbc.unsqueeze(-1)
        systems = [
            System(types=types, positions=positions, cell=cell, pbc=pbc)
            for types, positions, cell, pbc in zip(
                batch.atomic_numbers.to(torch.int32).split(batch.n_atoms),
                batch.positions.split(batch.n_atoms),
                cells.unbind(),
                batch.pbc.unbind(),
                strict=True,
            )
        ]
        for options, of_list in zip(self._list_options, pairs, strict=True):
            for system, block in zip(
                systems, self._build_blocks(of_list, batch.positions, cells), strict=True
            ):
                system.add_neighbor_list(options, block)
        return systems

    def _build_blocks(self, pairs: BatchPairs, positions: Tensor, cells: Tensor) -> Iterator[TensorBlock]:
        """The vectors of the pairs, attached to the graph, under the labels that metatomic wants."""
        columns = (pairs.first_atom[:, None], pairs.second_atom[:, None], pairs.shifts)
        samples = torch.cat([column.to(torch.int32) for column in columns], dim=1)
        vectors = pairs.vectors(positions, cells).unsqueeze(-1)
        for values, labels in zip(vectors.split(pairs.n_pairs), samples.split(pairs.n_pairs), strict=True):
            yield TensorBlock(
                values=values,
                samples=Labels(PAIR_LABELS, labels, assume_unique=True),
                components=self._pair_components,
                properties=self._pair_properties,
            )

    def _require_direct_head(self) -> None:
        if self._names.direct_force is None:
            others = list_outputs(self._model.capabilities().outputs, DIRECT_FORCE)
            raise ModelError(
                f"direct forces were asked of {self._capabilities.name}, which has none that go with its output "
                f"'{self._names.energy}' (direct outputs: {others}). Remedy: --forces conservative, a second model "
                "with --direct, or direct_variant=NAME where there are such outputs"
            )

    def _require_known_elements(self, batch: Batch) -> None:
        """A GPU does not survive an index that no table of the model has. Batches of one simulation share their elements."""
        if batch.atomic_numbers is self._checked_numbers:
            return
        known = self._capabilities.elements or frozenset()
        unknown = frozenset(batch.atomic_numbers.tolist()) - known
        if unknown:
            raise ModelError(
                f"{self._capabilities.name} knows {_name_elements(known)}, but the structure holds "
                f"{_name_elements(unknown)}. Remedy: a model that was trained on these elements"
            )
        self._checked_numbers = batch.atomic_numbers

    @contextmanager
    def _explain_failures(self) -> Iterator[None]:
        """Translate what metatomic and TorchScript raise, once, at this edge."""
        try:
            yield
        except (ForceServerError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError) as error:
            # TorchScript turns an exhausted memory into a plain RuntimeError.
            if is_out_of_memory(error):
                raise torch.OutOfMemoryError(one_line(error)) from error
            raise ModelError(f"{self._capabilities.name} failed: {one_line(error)}") from error


def _find_cutoff(model: AtomisticModel, requests: Sequence[PairRequest]) -> float | None:
    """The largest cutoff of a neighbour list; without any list, the interaction range if it is finite."""
    if requests:
        return max(request.cutoff for request in requests)
    interaction_range = float(model.capabilities().engine_interaction_range(LENGTH_UNIT))
    return interaction_range if math.isfinite(interaction_range) else None


def _read_flag(key: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise UsageError(f"metatomic: option '{key}' must be true or false, got '{text}'")
    return text.lower() == "true"


def _name_elements(numbers: frozenset[int]) -> str:
    return ", ".join(chemical_symbols[number] for number in sorted(numbers))
