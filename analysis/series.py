"""A quantity sampled along a run: times in ps, values in the unit that the series carries."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.errors import AnalysisError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Series:
    """One quantity along time, finite and strictly increasing in time."""

    time_ps: FloatArray  # (n_samples,)
    values: FloatArray  # (n_samples,) in `unit`
    unit: str
    name: str = ""

    def __post_init__(self) -> None:
        if self.time_ps.shape != self.values.shape or self.values.ndim != 1:
            raise AnalysisError(
                f"series '{self.name}': wanted as many times as values, got shapes "
                f"{self.time_ps.shape} and {self.values.shape}"
            )
        if not (np.isfinite(self.values).all() and np.isfinite(self.time_ps).all()):
            raise AnalysisError(
                f"series '{self.name}' holds values that are not finite; leave them out first"
            )
        if np.any(np.diff(self.time_ps) <= 0):
            raise AnalysisError(f"series '{self.name}': times must increase strictly")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def interval_ps(self) -> float:
        """Typical time between two samples."""
        return float(np.median(np.diff(self.time_ps))) if len(self) > 1 else 0.0

    @property
    def duration_ps(self) -> float:
        """Time that the samples stand for: from the first to the last, and one interval."""
        return float(self.time_ps[-1] - self.time_ps[0]) + self.interval_ps if len(self) else 0.0

    def after(self, start_ps: float) -> Series:
        """The part from `start_ps` on."""
        keep = self.time_ps >= start_ps
        return replace(self, time_ps=self.time_ps[keep], values=self.values[keep])

    def with_values(self, values: FloatArray, *, unit: str, name: str = "") -> Series:
        """Other values at the same times."""
        return Series(time_ps=self.time_ps, values=values, unit=unit, name=name or self.name)

    def minus(self, other: Series, *, name: str = "") -> Series:
        """Difference at the times that both have."""
        own, its = aligned(self, other)
        return own.with_values(own.values - its.values, unit=self.unit, name=name)

    def scaled(self, factor: float, *, unit: str) -> Series:
        """The same quantity in another unit."""
        return self.with_values(self.values * factor, unit=unit)


def aligned(*series: Series) -> tuple[Series, ...]:
    """The parts of several series at the times that all have: columns may come from files with different strides.

    Raises:
        AnalysisError: no time in common.
    """
    ticks = [
        np.round(own.time_ps * 1e6).astype(np.int64) for own in series
    ]  # attoseconds: equal steps are equal ticks
    shared = ticks[0]
    for own in ticks[1:]:
        shared = np.intersect1d(shared, own)
    if len(shared) == 0:
        names = ", ".join(own.name for own in series)
        raise AnalysisError(
            f"{names}: no time in common; write them with strides of which one divides the other"
        )
    return tuple(
        replace(own, time_ps=own.time_ps[kept], values=own.values[kept])
        for own, kept in ((one, np.isin(tick, shared)) for one, tick in zip(series, ticks, strict=True))
    )
