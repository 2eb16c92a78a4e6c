"""Learns which structures will be asked for again, so that one forward pass gives both kinds of forces.

In multiple time stepping every geometry of the slow, conservative force is one of the fast, direct force too: i-PI asks for
the direct forces of the last inner step, and once it has them for the conservative ones of the same geometry. Who knows that
beforehand evaluates both at once. Nothing in i-PI's protocol says it, but simulations have a rhythm:

- The structures that one simulation asks of one model are counted as they come. One that was asked for before, the same to the
  last bit, is a repetition: it is not counted, but remembered with the kinds of forces that are wanted of it in all.
- A cycle lasts until something new follows a repetition: an outer step, however many beads ask, and in whatever order. What
  describes it is its number of structures, and which of them were asked for again.
- Two equal cycles in a row are a rhythm. From then on, what stands where a structure was asked for again is evaluated for all
  the kinds at once, and its result kept until the cycle is over.
- A surprise ends the rhythm, and it must be learnt again: a repetition that was not foreseen (another number of inner steps, a
  restart, estimators that displace atoms), or one that was and did not come, at the cost of one conservative evaluation.

A ring-polymer contraction that asks for both kinds on the contracted beads repeats those; one that asks there for the
conservative kind alone never repeats anything, so nothing is foreseen.
Foresight decides when something is evaluated, never what is answered: a kept result goes to the same geometry alone.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from forceserver.parts import Part
from forceserver.structures import ForceKind, Structure

LONGEST_CYCLE = 4096  # structures without a repetition after which to start counting anew

Kinds = frozenset[ForceKind]


@dataclass(eq=False, slots=True)
class Job:
    """One structure to be evaluated once, for all who ask for it."""

    structure: Structure
    model: str
    kinds: Kinds  # grows until it is evaluated
    is_fused: bool = False  # for more kinds than its first asker wants
    part: Part | None = None  # once it is evaluated

    def widen(self, kinds: Kinds) -> None:
        if not kinds <= self.kinds:
            self.kinds |= kinds
            self.is_fused = True

    def answers(self, other: Job) -> bool:
        """Whether its result is there, and all that another job of this model wants."""
        return (
            self.part is not None
            and other.kinds <= self.kinds
            and same_geometry(self.structure, other.structure)
        )


@dataclass
class ForesightStatistics:
    """What foresight was worth so far."""

    n_recalled: int = 0  # requests answered from what was kept
    n_mispredicted: int = 0  # structures evaluated for a kind of forces that nobody asked for then


@dataclass(frozen=True)
class Cycle:
    """A number of structures, and the kinds of forces wanted in all of those that are asked for again."""

    n_structures: int
    wanted: Mapping[int, Kinds]  # {place in the cycle: kinds}


class Foresight:
    """Plans each gathering: who can be answered together, or from what is kept.

    Args:
        models: those for which both kinds from one forward pass are cheaper than one pass for each.
        statistics: to write to.
    """

    def __init__(self, models: Collection[str], statistics: ForesightStatistics) -> None:
        self.statistics = statistics
        self._models = frozenset(models)
        self._streams: dict[tuple[Hashable, str], _Stream] = {}
        self._n_gatherings = 0

    def plan(self, jobs: Sequence[Job], askers: Sequence[Hashable]) -> Sequence[Job]:
        """For each job the one that answers it: itself, another of the same geometry, or one that is evaluated already.

        Args:
            jobs: one for each structure that is asked for at the moment. Their kinds may be widened here.
            askers: the simulation behind each.
        """
        streams = [self._stream_of(job, asker) for job, asker in zip(jobs, askers, strict=True)]
        if not any(stream and stream.is_followed for stream in streams):
            return jobs
        self._n_gatherings += 1
        here: dict[tuple[_Stream, int], Job] = {}
        return [
            stream.place(job, here, self._n_gatherings) if stream and stream.is_followed else job
            for job, stream in zip(jobs, streams, strict=True)
        ]

    @property
    def n_kept(self) -> int:
        """Results that are held at the moment."""
        return sum(stream.n_kept for stream in self._streams.values())

    def forget(self) -> None:
        """An evaluation failed: what was planned did not happen."""
        for stream in self._streams.values():
            stream.forget()

    def _stream_of(self, job: Job, asker: Hashable) -> _Stream | None:
        """None where fusion gains nothing."""
        if job.model not in self._models:
            return None
        stream = self._streams.get((asker, job.model))
        if stream is None:
            stream = self._streams[asker, job.model] = _Stream(self.statistics)
        stream.kinds_asked.add(job.kinds)
        return stream


@dataclass(eq=False)
class _Stream:
    """What one simulation asks of one model."""

    statistics: ForesightStatistics
    kinds_asked: set[Kinds] = field(default_factory=set)
    _rhythm: Cycle | None = None
    _previous: Cycle | None = None
    # The cycle that is under way:
    _places: dict[int, int] = field(default_factory=dict)  # {fingerprint of a geometry: its place}
    _asked_first: list[Kinds] = field(default_factory=list)  # by place
    _wanted: dict[int, Kinds] = field(default_factory=dict)  # as in `Cycle`
    _kept: dict[int, Job] = field(default_factory=dict)  # {place: foreseen, and perhaps evaluated}
    _repeated_in: int | None = None  # the gathering of the last repetition, if nothing new came after it

    @property
    def is_followed(self) -> bool:
        """False for a simulation that has only ever asked for one kind of forces: nothing is spent on it."""
        return len(self.kinds_asked) > 1

    @property
    def n_kept(self) -> int:
        return len(self._kept)

    def place(self, job: Job, here: dict[tuple[_Stream, int], Job], gathering: int) -> Job:
        """The job that answers this one; see `Foresight.plan`.

        Args:
            job: the next of this stream.
            here: the jobs of this gathering so far, by geometry.
            gathering: its number.
        """
        geometry = fingerprint(job.structure)
        place = self._places.get(geometry)
        if place is None:
            if self._is_over(gathering):
                self._close()
            self._append(geometry, job)
            here[self, geometry] = job
            return job
        self._repeat(place, job.kinds, gathering)
        kept = self._kept.get(place)
        if kept is not None and kept.answers(job):
            self.statistics.n_recalled += 1
            return kept
        other = here.setdefault((self, geometry), job)
        if other is job or not same_geometry(other.structure, job.structure):
            return job
        other.widen(job.kinds)
        return other

    def forget(self) -> None:
        self._rhythm = self._previous = None
        self._start()

    def _append(self, geometry: int, job: Job) -> None:
        """A structure that is new."""
        place = len(self._asked_first)
        self._places[geometry] = place
        self._asked_first.append(job.kinds)
        self._repeated_in = None
        foreseen = self._rhythm.wanted.get(place) if self._rhythm else None
        if foreseen is not None:
            job.widen(foreseen)
            self._kept[place] = job

    def _repeat(self, place: int, kinds: Kinds, gathering: int) -> None:
        """A structure that was asked for before."""
        wanted = self._wanted.get(place, self._asked_first[place]) | kinds
        self._wanted[place] = wanted
        self._repeated_in = gathering
        if self._rhythm and not wanted <= self._rhythm.wanted.get(place, frozenset()):
            self._rhythm = None

    def _is_over(self, gathering: int) -> bool:
        """Whether a new structure begins a new cycle. Within a gathering the order means nothing."""
        n_structures = len(self._asked_first)
        if self._rhythm:
            return n_structures == self._rhythm.n_structures
        repeated = self._repeated_in is not None and self._repeated_in < gathering
        return repeated or n_structures == LONGEST_CYCLE

    def _close(self) -> None:
        """Compare the cycle with the one before, and start another."""
        cycle = Cycle(len(self._asked_first), self._wanted)
        for place, job in self._kept.items():
            asked = self._wanted.get(place, self._asked_first[place])
            self.statistics.n_mispredicted += job.is_fused and not job.kinds <= asked
        self._rhythm = cycle if cycle == self._previous and cycle.wanted else None
        self._previous = cycle
        self._start()

    def _start(self) -> None:
        self._places, self._asked_first, self._wanted, self._kept = {}, [], {}, {}
        self._repeated_in = None


def fingerprint(structure: Structure) -> int:
    """A number that equal geometries share, and others hardly ever."""
    return hash((structure.positions.tobytes(), structure.cell.tobytes()))


def same_geometry(first: Structure, second: Structure) -> bool:
    """Whether two structures are equal in all that a potential sees."""
    return all(
        one is other or np.array_equal(one, other)
        for one, other in (
            (first.positions, second.positions),
            (first.cell, second.cell),
            (first.atomic_numbers, second.atomic_numbers),
            (first.pbc, second.pbc),
        )
    )
