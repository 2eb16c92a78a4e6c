"""Numbers that repeats give: medians with intervals for any distribution of noise, ratios in pairs, exponents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WANTED_COVERAGE = 0.95


@dataclass(frozen=True)
class Interval:
    """A median and the values between which the true one lies."""

    median: float
    low: float
    high: float
    coverage: float  # probability that low and high enclose the median of the distribution


def median_interval(values: Sequence[float]) -> Interval:
    """The median, and the narrowest pair of ordered values that encloses the true one with 95 % or more.

    Each value lies below the true median with probability 1/2, so the number that do is binomial. Of fewer than six values not
    even the outermost enclose it that surely (five: 93.75 %); those are taken then, and `coverage` says how sure they are.

    Raises:
        ValueError: no values.
    """
    ordered = sorted(values)
    n = len(ordered)
    if not n:
        raise ValueError("the median of no values")
    outside = 0  # values left out at each end
    while 2 * (outside + 1) < n and _coverage(n, outside + 1) >= WANTED_COVERAGE:
        outside += 1
    return Interval(
        float(np.median(ordered)), ordered[outside], ordered[n - 1 - outside], _coverage(n, outside)
    )


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Of times that were taken in the same repeats: the median of their ratios.

    Raises:
        ValueError: not as many of one as of the other, or none.
    """
    return median_interval([a / b for a, b in zip(numerators, denominators, strict=True)])


@dataclass(frozen=True)
class Exponent:
    """time ~ size^value."""

    value: float
    error: float  # standard error of the fit; nan of two points


def fit_exponent(sizes: Sequence[float], times: Sequence[float]) -> Exponent:
    """Least squares through the logarithms.

    Raises:
        ValueError: fewer than two sizes.
    """
    if len(set(sizes)) < 2:
        raise ValueError("an exponent needs two sizes or more")
    x, y = np.log(np.asarray(sizes, dtype=float)), np.log(np.asarray(times, dtype=float))
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    error = math.sqrt(float(rest @ rest) / (len(x) - 2) / float(x @ x)) if len(x) > 2 else math.nan
    return Exponent(slope, error)


def seconds_per_step(ended: Sequence[Sequence[float]]) -> float:
    """Wall time per step of simulations that ran at once, from the moments at which their steps ended (s).

    The first of the moments is when the first step began. That step is not counted where there are others: it pays for the rest
    before it. Of several simulations those steps count that fall into the time when all were running, whose sum is the rate.

    Raises:
        ValueError: a simulation without a step.
    """
    counted = [moments[1:] if len(moments) > 2 else moments for moments in ended]
    if any(len(moments) < 2 for moments in counted):
        raise ValueError("a simulation made no step")
    begin, end = max(moments[0] for moments in counted), min(moments[-1] for moments in counted)
    if end <= begin:
        raise ValueError("the simulations did not run at the same time; give more --steps")
    n_steps = sum(_steps_between(moments, begin, end) for moments in counted)
    return (end - begin) / n_steps


def _steps_between(moments: Sequence[float], begin: float, end: float) -> float:
    """Steps between two moments, with fractions."""
    first, last = np.interp([begin, end], moments, np.arange(len(moments)))
    return float(last - first)


def _coverage(n: int, outside: int) -> float:
    """Of the interval between ordered values that leaves out so many at each end."""
    return 1.0 - 2.0 * sum(math.comb(n, k) for k in range(outside + 1)) / 2.0**n
