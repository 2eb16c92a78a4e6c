"""How time and memory grow with atoms and beads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from forceserver.bench.results import CaseResult
from forceserver.bench.statistics import Exponent, fit_exponent

Axis = Literal["atoms", "beads"]
AXES: tuple[Axis, ...] = ("atoms", "beads")
SCALING_CONTENDERS = ("ours", "limit")


@dataclass
class ScalingResult:
    atoms: list[CaseResult] = field(default_factory=list)
    beads: list[CaseResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was not done, and why

    def of(self, axis: Axis) -> Sequence[CaseResult]:
        return self.atoms if axis == "atoms" else self.beads

    def add(self, axis: Axis, result: CaseResult) -> None:
        """The result of one contender, to those of others for the same case if there are any."""
        results = self.atoms if axis == "atoms" else self.beads
        for known in results:
            if known.case == result.case:
                known.entries += result.entries
                return
        results.append(result)

    def size(self, axis: Axis, result: CaseResult) -> int:
        return result.n_atoms if axis == "atoms" else result.case.n_beads

    def contenders(self, axis: Axis) -> list[str]:
        return list(dict.fromkeys(entry.contender.name for each in self.of(axis) for entry in each.entries))

    def series(self, axis: Axis, name: str) -> tuple[list[int], list[float], list[float]]:
        """Sizes, seconds per step and peak memory in MB of one contender, where it was measured."""
        found = [(self.size(axis, each), each.find(name)) for each in self.of(axis)]
        rows = [(size, entry) for size, entry in found if entry is not None]
        return (
            [size for size, _ in rows],
            [entry.time.median for _, entry in rows],
            [entry.memory.peak_MB if entry.memory else float("nan") for _, entry in rows],
        )

    def exponents(self, axis: Axis, name: str) -> tuple[Exponent, Exponent] | None:
        """Through all sizes, and through the larger half of them, where what does not grow no longer counts."""
        sizes, times, _ = self.series(axis, name)
        if len(sizes) < 2:
            return None
        first = min(len(sizes) // 2, len(sizes) - 2)
        return fit_exponent(sizes, times), fit_exponent(sizes[first:], times[first:])

    def describe(self, axis: Axis) -> Iterator[str]:
        """In words."""
        for name in self.contenders(axis):
            exponents = self.exponents(axis, name)
            if exponents is not None:
                whole, upper = exponents
                error = "" if math.isnan(whole.error) else f" (error {whole.error:.2f})"
                yield (
                    f"{name}: time ~ {axis}^{whole.value:.2f}{error}; "
                    f"^{upper.value:.2f} from the middle size on"
                )
        yield from (note for note in self.notes if note.startswith(axis))
        for result in self.of(axis):
            for entry in result.entries:
                if entry.failure or entry.left_out:
                    yield f"{result.case.name}, {entry.contender.name}: {entry.failure or entry.left_out}"
