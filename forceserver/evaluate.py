"""From structures and the forces wanted to results: group, evaluate in few calls, blend, refuse what is not finite.

Units: eV and angstrom. Nothing here knows of sockets.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import torch

from forceserver.dump import dump_structure
from forceserver.errors import BadForces, ForceServerError, ModelError, OutOfMemory, one_line
from forceserver.foresight import Foresight, ForesightStatistics, Job, Kinds
from forceserver.parallel import Crew
from forceserver.parts import Part
from forceserver.potentials.interface import Capabilities, Potential, is_out_of_memory
from forceserver.structures import CONSERVATIVE, DIRECT, FloatArray, ForceRole, Result, Structure

log = logging.getLogger(__name__)

VirialSource = Literal["own", "conservative", "none"]

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
    n_fused_passes: int = 0  # that gave a structure more kinds of forces than its first asker wanted
    foresight: ForesightStatistics = field(default_factory=ForesightStatistics)

    def note(self, calls: Sequence[Sequence[Job]]) -> None:
        """Calls of a model that succeeded, and the jobs of each."""
        self.n_forward_passes += len(calls)
        for jobs in calls:
            self.n_structures += len(jobs)
            self.batch_sizes[len(jobs)] += 1
            self.n_fused_passes += any(job.is_fused for job in jobs)


class Evaluator:
    """Evaluates mixed work on several models. One thread at a time may ask, unless `share_out` says otherwise.

    Args:
        models: by the name that an `<ffsocket>` can ask for.
        keep_net_force: leave the net force of direct forces. By default its mean is taken away, as every peer does:
            conservative forces of a translation-invariant energy have none, and a constant push heats the centre of mass.
        virial: where the virial of a direct role comes from: the model's own direct stress, its conservative virial (costs
            a backward pass each time), or nowhere.
        dump_directory: where the structure behind a bad result is written.
        fusion: evaluate both kinds of forces at once where one is expected to be asked for after the other.
    """

    def __init__(
        self,
        models: Mapping[str, Potential],
        *,
        keep_net_force: bool = False,
        virial: VirialSource = "own",
        dump_directory: Path = Path(),
        fusion: bool = True,
    ) -> None:
        self.models = models
        self.statistics = EvaluationStatistics()
        n_threads = torch.get_num_threads()
        self._crews = {name: Crew(potential, n_threads) for name, potential in models.items()}
        self._keep_net_force = keep_net_force
        self.virial = virial
        self._dump_directory = dump_directory
        fusing = [name for name, potential in models.items() if _gains_from_fusion(potential.capabilities)]
        self._foresight = Foresight(fusing, self.statistics.foresight) if fusion and fusing else None
        self._largest_batch: dict[tuple[str, Kinds], int] = {}  # atoms that are known to fit
        self._planning = threading.Lock()  # held for all but the work of the models, which takes the time

    def evaluate(self, work: Work, askers: Sequence[Hashable] = ()) -> list[Result]:
        """Results in the order of `work`: one model call for each model, set of kinds and periodicity, if memory allows and
        several at the same time are not faster (see `parallel`).

        Args:
            work: what is asked for at the moment.
            askers: the simulation behind each; without them nothing is foreseen or kept.

        Raises:
            BadForces: a result is not finite; the structure was written to a file that the message names.
            ModelError: the model failed on a structure, likewise written.
            OutOfMemory: one structure alone does not fit.
        """
        jobs: Sequence[Job] = [Job(structure, role.model, self._kinds(role)) for structure, role in work]
        foresight = self._foresight
        if foresight is None or not askers:
            return self._evaluate_jobs(jobs, work)
        with self._planning:
            jobs = foresight.plan(jobs, askers)
        try:
            return self._evaluate_jobs(jobs, work)
        except ModelError as error:
            with self._planning:
                foresight.forget()
            if not (isinstance(error, OutOfMemory) and any(job.is_fused for job in jobs)):
                raise
        log.warning("both kinds of forces at once do not fit in memory: from now on each is evaluated alone")
        self._foresight = None
        return self.evaluate(work)

    @property
    def n_at_once(self) -> int:
        """Structures of any model that are evaluated at the same time; 1 where they share a call, however many."""
        return min(crew.n_at_once for crew in self._crews.values())

    @property
    def gains_from_batches(self) -> bool:
        """Whether a batch costs little more than one structure: on a GPU, and hardly on a CPU."""
        return any(potential.capabilities.device.type != "cpu" for potential in self.models.values())

    def share_out(self, n_atoms: Sequence[int]) -> bool:
        """Let several threads call `evaluate` at the same time, each with structures of so many atoms.

        Returns:
            False: a model does not allow it, or nothing would be gained.
        """
        crews = self._crews.values()
        if self.n_at_once > 1 and all(crew.share_out(n_atoms) for crew in crews):
            return True
        for crew in crews:  # the first may have agreed before the next one did not
            crew.share_out(n_atoms[:1])
        return False

    @property
    def n_kept(self) -> int:
        """Results that are held at the moment, for requests that are foreseen."""
        return self._foresight.n_kept if self._foresight else 0

    def _evaluate_jobs(self, jobs: Sequence[Job], work: Work) -> list[Result]:
        """Results for `work` from the jobs that answer it, after evaluating those that are not evaluated yet."""
        for group in _alike([job for job in dict.fromkeys(jobs) if job.part is None]):
            self._evaluate_group(group[0].model, group[0].kinds, group)
        return [self._result(job, structure, role) for job, (structure, role) in zip(jobs, work, strict=True)]

    def _kinds(self, role: ForceRole) -> Kinds:
        if self.virial == "conservative" and DIRECT in role.kinds:
            return frozenset({CONSERVATIVE, DIRECT})
        return role.kinds

    def _evaluate_group(self, model: str, kinds: Kinds, jobs: Sequence[Job]) -> None:
        """Evaluate in as few calls as memory allows; a call that does not fit is repeated with half of its structures."""
        n_done = 0
        alone = False
        while n_done < len(jobs):
            chunk = _first_that_fit(jobs[n_done:], self._largest_batch.get((model, kinds)))
            try:
                self._call(model, kinds, chunk, alone=alone)
                n_done += len(chunk)
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if len(chunk) == 1 and (alone or not self._crews[model].is_shared):
                    device = self.models[model].capabilities.device
                    raise OutOfMemory(
                        f"one structure of {chunk[0].structure.n_atoms} atoms does not fit in the memory of {device}; "
                        "use a larger device or a smaller model"
                    ).on(chunk[0].structure) from error
            # Out here, where no exception holds the tensors of that call any more.
            alone = len(chunk) == 1
            if not alone:
                self._remember_half(model, kinds, chunk)

    def _remember_half(self, model: str, kinds: Kinds, jobs: Sequence[Job]) -> None:
        torch.cuda.empty_cache()  # does nothing without a GPU
        largest = sum(job.structure.n_atoms for job in jobs[: len(jobs) // 2])
        self._largest_batch[model, kinds] = largest
        self.statistics.n_splits += 1
        log.warning(
            "out of memory with %d structures; from now on at most %d atoms in one call", len(jobs), largest
        )

    def _call(self, model: str, kinds: Kinds, jobs: Sequence[Job], *, alone: bool = False) -> None:
        """Do the jobs at once: in one call of the model, or in several at the same time; alone: while nobody else evaluates."""
        crew = self._crews[model]
        structures = [job.structure for job in jobs]
        cuts = crew.cut([structure.n_atoms for structure in structures])
        try:
            parts = (
                crew.evaluate_alone(structures, kinds)
                if alone
                else crew.evaluate([structures[cut] for cut in cuts], kinds)
            )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self._blame(model, kinds, jobs, error)
        for job, part in zip(jobs, parts, strict=True):
            job.part = part
        with self._planning:
            self.statistics.note([jobs[cut] for cut in cuts])

    def _blame(self, model: str, kinds: Kinds, jobs: Sequence[Job], error: Exception) -> NoReturn:
        """A model raised: find the structure on which it does, write it, and say so."""
        if len(jobs) > 1:
            for job in jobs:
                self._call(model, kinds, [job])
            raise ModelError(
                f"the model failed on a batch of {len(jobs)} structures ({one_line(error)}), but on none of them alone; "
                "serve it with one connection and no batches: --connections 1"
            ) from error
        structure = jobs[0].structure
        reason = (
            one_line(error)
            if isinstance(error, ForceServerError)
            else f"{type(error).__name__}: {one_line(error)}"
        )
        path = dump_structure(structure, self._dump_directory, reason=reason, role=None)
        raise ModelError(f"the model failed: {reason}. The structure is in {path}").on(structure) from error

    def _result(self, job: Job, structure: Structure, role: ForceRole) -> Result:
        """What a role wants of a job that is done, if it is fit to be sent."""
        part = job.part
        assert part is not None
        result = self._blend(part, role)
        if not part.is_finite or result.forces.shape[0] != structure.n_atoms:
            self._refuse_bad(result, structure, role)
        return result

    def _blend(self, part: Part, role: ForceRole) -> Result:
        """Blend what one structure needs, in float64."""
        fraction = role.direct_fraction
        if fraction == 0.0:
            return Result(part.energy, _wanted(part.conservative_forces), part.conservative_virial)
        direct_forces = _wanted(part.direct_forces)
        if not self._keep_net_force:
            direct_forces = direct_forces - direct_forces.mean(axis=0)
        direct_virial = part.conservative_virial if self.virial == "conservative" else part.direct_virial
        if self.virial == "none":
            direct_virial = None
        if fraction == 1.0:
            return Result(part.energy, direct_forces, direct_virial)
        forces = (1.0 - fraction) * _wanted(part.conservative_forces) + fraction * direct_forces
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


def _alike(jobs: Sequence[Job]) -> Collection[Sequence[Job]]:
    """Jobs for the same model, kinds of forces and periodicity, which share a call."""
    if len(jobs) < 2:
        return [jobs] if jobs else []
    groups: dict[tuple[str, Kinds, bytes], list[Job]] = defaultdict(list)
    for job in jobs:
        groups[job.model, job.kinds, job.structure.pbc.tobytes()].append(job)
    return groups.values()


def _first_that_fit(jobs: Sequence[Job], largest: int | None) -> Sequence[Job]:
    """As much of the front of `jobs` as has at most `largest` atoms, and never nothing."""
    if largest is None:
        return jobs
    n_atoms = np.cumsum([job.structure.n_atoms for job in jobs])
    return jobs[: max(1, int(np.searchsorted(n_atoms, largest, side="right")))]


def _gains_from_fusion(capabilities: Capabilities) -> bool:
    return capabilities.conservative and capabilities.direct and capabilities.shares_forward_pass


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
