"""What came of a case: who was measured, who could not take part and why, who broke down. Times in s, memory in MB."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forceserver.bench.cases import Case
from forceserver.bench.contenders import Contender, Plan
from forceserver.bench.memory import Memory
from forceserver.bench.statistics import Interval, median_interval, paired_ratio

ENERGY_TOLERANCE_eV = (
    1e-3  # per atom: far above the rounding of float32, far below the error of another model
)
IPI, MODEL = "i-PI and the way to it", "model"  # phases of a step that are not our doing
FORCE_TOLERANCE = 1e-2  # relative


@dataclass
class Entry:
    """What became of one contender in one case."""

    contender: Contender
    plan: Plan | None = None
    left_out: str = ""  # why it has no part in this case
    failure: str = ""  # how it broke down
    seconds: list[float] = field(default_factory=list)  # per step, one of each repeat; nan: it had no turn
    processor: list[float] = field(
        default_factory=list
    )  # s of all cores per step, of those turns that it had
    n_steps: int = 0  # asked for in a repeat
    answer: Mapping[str, Any] = field(default_factory=dict)  # to the forces of the first geometry
    memory: Memory | None = None
    gpu_MB: float | None = None
    phases: Mapping[str, float] = field(default_factory=dict)  # of our server, s per step
    dissection: Mapping[str, float] = field(default_factory=dict)  # of the bare model, s per step

    @property
    def samples(self) -> list[float]:
        return [seconds for seconds in self.seconds if not math.isnan(seconds)]

    @property
    def is_measured(self) -> bool:
        return bool(self.samples) and not self.failure

    @property
    def time(self) -> Interval:
        return median_interval(self.samples)

    @property
    def own_share(self) -> float:
        """Of our server: the part of a step that is neither the model nor i-PI: unpacking, neighbour lists, packing."""
        own = sum(value for phase, value in self.phases.items() if phase not in (IPI, MODEL))
        return own / sum(self.phases.values())

    def note_time(self, repeat: int, seconds: float) -> None:
        """In one of the repeats of the case, counted through all rounds."""
        self.seconds += [math.nan] * (repeat - len(self.seconds))
        self.seconds.append(seconds)

    def slower_than(self, other: Entry) -> Interval:
        """The time of this one over that of the other, repeat by repeat.

        Two that never were in one round have no repeat in common: then it is the ratio of their medians, without an interval.
        """
        pairs = [
            pair for pair in zip(self.seconds, other.seconds, strict=False) if not any(map(math.isnan, pair))
        ]
        if pairs:
            return paired_ratio([mine for mine, _ in pairs], [theirs for _, theirs in pairs])
        return Interval(self.time.median / other.time.median, math.nan, math.nan, 0.0)


@dataclass
class CaseResult:
    case: Case
    n_atoms: int
    entries: list[Entry]

    @property
    def measured(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.is_measured]

    def find(self, name: str) -> Entry | None:
        """A contender that was measured."""
        return next((entry for entry in self.measured if entry.contender.name == name), None)

    @property
    def limit(self) -> Entry | None:
        """The bare model, in batches or one by one, whichever is faster here."""
        bare = [entry for entry in self.measured if entry.plan is not None and entry.plan.is_bare]
        return min(bare, key=lambda entry: entry.time.median, default=None)

    @property
    def best_peer(self) -> Entry | None:
        """The fastest of i-PI's own ways."""
        peers = [entry for entry in self.measured if entry.contender.is_peer]
        return min(peers, key=lambda entry: entry.time.median, default=None)

    def disagreements(self) -> list[str]:
        """Contenders whose energy or forces of the first geometry are not those of the first contender: not the same work."""
        return [
            f"{entry.contender.name} computes something else than {first.contender.name}: {difference}"
            for first in self.measured[:1]
            for entry in self.measured[1:]
            if (difference := _difference(first.answer, entry.answer, self.n_atoms))
        ]


def _difference(one: Mapping[str, Any], other: Mapping[str, Any], n_atoms: int) -> str:
    """In words; "" where there is none to speak of. The bare model tells no force."""
    energies = [float(each["potential_eV"]) for each in (one, other)]
    if not math.isclose(*energies, rel_tol=0.0, abs_tol=ENERGY_TOLERANCE_eV * n_atoms):
        return f"energies of {energies[0]:.6g} and {energies[1]:.6g} eV"
    forces = [each["force"] for each in (one, other)]
    if None not in forces and not math.isclose(*forces, rel_tol=FORCE_TOLERANCE, abs_tol=1e-6):
        return f"forces of modulus {forces[0]:.6g} and {forces[1]:.6g} eV/A"
    return ""
