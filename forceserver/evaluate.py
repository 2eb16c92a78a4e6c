"""From structures and the forces wanted to results: group, evaluate in few calls, blend, refuse what is not finite.

Units: eV and angstrom. Nothing here knows of sockets.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import torch

from forceserver.dump import dump_structure
from forceserver.errors import BadForces, ForceServerError, ModelError, OutOfMemory, one_line
from forceserver.parts import Part, Parts, take_apart
from forceserver.potentials.interface import BatchBuilder, Potential
from forceserver.structures import CONSERVATIVE, DIRECT, FloatArray, ForceKind, ForceRole, Result, Structure

log = logging.getLogger(__name__)

VirialSource = Literal["own", "conservative", "none"]
OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory")

Work = Sequence[tuple[Structure, ForceRole]]


@dataclass
class EvaluationStatistics:
    """What was evaluated so far, for the report at the end."""

    n_forward_passes: int = 0
    n_structures: int = 0
    batch_sizes: dict[int, int] = field(
        default_factory=lambda: defaultdict(int)
    )  # {structures in a call: calls}
    n_splits: int = 0  # calls repeated in halves because they did not fit in memory


class Evaluator:
    """Evaluates mixed work on several models.

    Args:
        models: by the name that an `<ffsocket>` can ask for.
        keep_net_force: leave the net force of direct forces. By default its mean is taken away, as every peer does:
            conservative forces of a translation-invariant energy have none, and a constant push heats the centre of mass.
        virial: where the virial of a direct role comes from: the model's own direct stress, its conservative virial (costs
            a backward pass each time), or nowhere.
        dump_directory: where the structure behind a bad result is written.
    """

    def __init__(
        self,
        models: Mapping[str, Potential],
        *,
        keep_net_force: bool = False,
        virial: VirialSource = "own",
        dump_directory: Path = Path(),
    ) -> None:
        self.models = models
        self.statistics = EvaluationStatistics()
        self._builders = {
            name: BatchBuilder(potential.capabilities.dtype, potential.capabilities.device)
            for name, potential in models.items()
        }
        self._keep_net_force = keep_net_force
        self.virial = virial
        self._dump_directory = dump_directory
        self._largest_batch: dict[tuple[str, frozenset[ForceKind]], int] = {}  # atoms that are known to fit

    def evaluate(self, work: Work) -> list[Result]:
        """Results in the order of `work`: one model call for each model, set of kinds and periodicity, if memory allows.

        Raises:
            BadForces: a result is not finite; the structure was written to a file that the message names.
            ModelError: the model failed on a structure, likewise written.
            OutOfMemory: one structure alone does not fit.
        """
        groups: dict[tuple[str, frozenset[ForceKind], bytes], list[int]] = defaultdict(list)
        for index, (structure, role) in enumerate(work):
            groups[role.model, self._kinds(role), structure.pbc.tobytes()].append(index)
        results: dict[int, Result] = {}
        for (model, kinds, _), indices in groups.items():
            evaluated = self._evaluate_group(model, kinds, [work[index] for index in indices])
            results.update(zip(indices, evaluated, strict=True))
        return [results[index] for index in range(len(work))]

    def _kinds(self, role: ForceRole) -> frozenset[ForceKind]:
        if DIRECT in role.kinds and self.virial == "conservative":
            return frozenset({CONSERVATIVE, DIRECT})
        return role.kinds

    def _evaluate_group(self, model: str, kinds: frozenset[ForceKind], work: Work) -> list[Result]:
        """Evaluate in as few calls as memory allows; a call that does not fit is repeated with half of its structures."""
        results: list[Result] = []
        while len(results) < len(work):
            chunk = _first_that_fit(work[len(results) :], self._largest_batch.get((model, kinds)))
            try:
                results += self._evaluate_chunk(model, kinds, chunk)
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if len(chunk) == 1:
                    device = self.models[model].capabilities.device
                    raise OutOfMemory(
                        f"one structure of {chunk[0][0].n_atoms} atoms does not fit in the memory of {device}; "
                        "use a larger device or a smaller model"
                    ).on(chunk[0][0]) from error
            # Out here, where no exception holds the tensors of that call any more.
            self._remember_half(model, kinds, chunk)
        return results

    def _evaluate_chunk(self, model: str, kinds: frozenset[ForceKind], work: Work) -> list[Result]:
        structures = [structure for structure, _ in work]
        taken = self._call(model, kinds, structures)
        results = [self._result(part, role) for part, (_, role) in zip(taken.parts, work, strict=True)]
        for result, (structure, role) in zip(results, work, strict=True):
            if not taken.all_finite or result.forces.shape[0] != structure.n_atoms:
                self._refuse_bad(result, structure, role)
        return results

    def _remember_half(self, model: str, kinds: frozenset[ForceKind], work: Work) -> None:
        torch.cuda.empty_cache()  # does nothing without a GPU
        largest = sum(structure.n_atoms for structure, _ in work[: len(work) // 2])
        self._largest_batch[model, kinds] = largest
        self.statistics.n_splits += 1
        log.warning(
            "out of memory with %d structures; from now on at most %d atoms in one call", len(work), largest
        )

    def _call(self, model: str, kinds: frozenset[ForceKind], structures: Sequence[Structure]) -> Parts:
        potential = self.models[model]
        batch = self._builders[model].build(structures)
        try:
            taken = take_apart(
                potential(batch, kinds), structures
            )  # a GPU's errors surface where results are read
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self._blame(model, kinds, structures, error)
        self.statistics.n_forward_passes += 1
        self.statistics.n_structures += len(structures)
        self.statistics.batch_sizes[len(structures)] += 1
        return taken

    def _blame(
        self, model: str, kinds: frozenset[ForceKind], structures: Sequence[Structure], error: Exception
    ) -> NoReturn:
        """A model raised: find the structure on which it does, write it, and say so."""
        if len(structures) > 1:
            for structure in structures:
                self._call(model, kinds, [structure])
            raise ModelError(
                f"the model failed on a batch of {len(structures)} structures ({one_line(error)}), but on none of them alone; "
                "serve it with one connection and no batches: --connections 1"
            ) from error
        reason = (
            one_line(error)
            if isinstance(error, ForceServerError)
            else f"{type(error).__name__}: {one_line(error)}"
        )
        path = dump_structure(structures[0], self._dump_directory, reason=reason, role=None)
        raise ModelError(f"the model failed: {reason}. The structure is in {path}").on(
            structures[0]
        ) from error

    def _result(self, part: Part, role: ForceRole) -> Result:
        """Blend what one structure needs, in float64."""
        fraction = role.direct_fraction
        direct_virial = part.conservative_virial if self.virial == "conservative" else part.direct_virial
        if self.virial == "none":
            direct_virial = None
        direct_forces = part.direct_forces
        if direct_forces is not None and not self._keep_net_force:
            direct_forces = direct_forces - direct_forces.mean(axis=0)
        if fraction == 0.0:
            return Result(part.energy, _wanted(part.conservative_forces), part.conservative_virial)
        if fraction == 1.0:
            return Result(part.energy, _wanted(direct_forces), direct_virial)
        forces = (1.0 - fraction) * _wanted(part.conservative_forces) + fraction * _wanted(direct_forces)
        virial = None
        if part.conservative_virial is not None and direct_virial is not None:
            virial = (1.0 - fraction) * part.conservative_virial + fraction * direct_virial
        return Result(part.energy, forces, virial)

    def _refuse_bad(self, result: Result, structure: Structure, role: ForceRole) -> None:
        reason = _what_is_bad(result, structure)
        if reason is None:
            return
        path = dump_structure(structure, self._dump_directory, reason=reason, role=role)
        raise BadForces(
            f"{reason} ({role} forces of model '{role.model}', {structure.n_atoms} atoms); nothing of it was sent to i-PI. "
            f"The structure is in {path}"
        ).on(structure)


def is_out_of_memory(error: Exception) -> bool:
    """torch says it with a type of its own on a GPU, and in words alone on a CPU and from inside TorchScript."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS)


def _first_that_fit(work: Work, largest: int | None) -> Work:
    """As much of the front of `work` as has at most `largest` atoms, and never nothing."""
    if largest is None:
        return work
    n_atoms = np.cumsum([structure.n_atoms for structure, _ in work])
    return work[: max(1, int(np.searchsorted(n_atoms, largest, side="right")))]


def _wanted(forces: FloatArray | None) -> FloatArray:
    if forces is None:
        raise BadForces("the model did not return forces of the kind that it was asked for")
    return forces


def _what_is_bad(result: Result, structure: Structure) -> str | None:
    if result.forces.shape != (structure.n_atoms, 3):
        return f"the model returned forces of shape {result.forces.shape}, wanted {(structure.n_atoms, 3)}"
    if not np.isfinite(result.energy):
        return f"the model returned a potential energy that is not finite ({result.energy})"
    if not np.isfinite(result.forces).all():
        n_bad = int((~np.isfinite(result.forces).all(axis=1)).sum())
        return f"the model returned forces that are not finite (on {n_bad} of {structure.n_atoms} atoms)"
    if result.virial is not None and not np.isfinite(result.virial).all():
        return "the model returned a virial that is not finite"
    return None
