"""Estimates from correlated series: mean, width, slope, each with a calibrated error.

Units are those of the series. Effective sample sizes and Monte Carlo standard errors are arviz-stats'; this module is
the only one that knows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analysis.errors import TooShort
from analysis.series import FloatArray, IntArray, Series

MIN_SAMPLES = 8
MAX_SAMPLES = 20_000
MIN_BLOCKS = 100  # fewer do not tell their own variance
BLOCKING_ERROR = 0.25  # of n_effective, relative: scatter over OU series of 2,000 to 1,000,000 samples
SETTLING_SIGMAS = 4.0
MAX_DISCARDED = 0.5  # of a series; what needs more than that to settle has not settled
SLOPE_BLOCKS = 48
# Variance that a random walk gains per block over the variance of a block mean, and the odds of each: even odds for no
# walk at all, the rest spread over every strength that 48 blocks can tell apart.
WALK_RATIOS = np.concatenate([[0.0], np.logspace(-2.5, 3.0, 12)])
WALK_ODDS = np.array([0.5] + 12 * [0.5 / 12])


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error, its unit and the number of independent samples behind it."""

    value: float
    error: float  # one standard error, in `unit`
    unit: str
    n_effective: float

    def sigmas_from(self, expected: float) -> float:
        """Distance from `expected` in standard errors, as a normal deviate of the same significance.

        An error bar estimated from few samples is itself uncertain: the distance is judged by Student's law with
        n_effective - 1 degrees of freedom and given as the normal deviate with the same tail probability.
        """
        if self.error == 0.0:
            return 0.0 if self.value == expected else math.copysign(math.inf, self.value - expected)
        distance = (self.value - expected) / self.error
        freedom = max(self.n_effective - 1.0, 1.0)
        if freedom > 1e4 or not math.isfinite(distance):
            return distance
        from scipy.stats import norm, t

        tail = float(t.logsf(abs(distance), freedom))
        return math.copysign(float(norm.isf(math.exp(tail))), distance) if tail > -700 else distance

    def minus(self, other: Estimate) -> Estimate:
        """Difference of two independent estimates; its degrees of freedom are Welch's (Biometrika 34, 28 (1947))."""
        error = math.hypot(self.error, other.error)
        n_effective = min(self.n_effective, other.n_effective)
        if error > 0.0:
            shares = [(own.error / error) ** 4 / max(own.n_effective - 1.0, 1.0) for own in (self, other)]
            n_effective = 1.0 + 1.0 / sum(shares)
        return Estimate(self.value - other.value, error, self.unit, n_effective)

    def scaled(self, factor: float, *, unit: str) -> Estimate:
        """The same estimate in another unit."""
        return Estimate(self.value * factor, self.error * abs(factor), unit, self.n_effective)

    def shifted(self, offset: float) -> Estimate:
        """The same estimate measured from another zero."""
        return Estimate(self.value + offset, self.error, self.unit, self.n_effective)

    @property
    def number(self) -> str:
        """Value and error without the unit, for a table whose head has it."""
        return format_uncertain(self.value, self.error)

    def __str__(self) -> str:
        return f"{self.number} {self.unit}".rstrip()


def errors_of(sigmas: float, n_effective: float) -> float:
    """How many standard errors are as significant as so many sigmas, if the error comes from `n_effective` samples.

    The inverse of `Estimate.sigmas_from`.
    """
    from scipy.stats import norm, t

    return float(t.isf(norm.sf(sigmas), max(n_effective - 1.0, 1.0)))


def format_uncertain(value: float, error: float) -> str:
    """`12.8(5)`: the error in units of the last digit, with one digit, or two where it starts with a 1."""
    if not (math.isfinite(value) and math.isfinite(error)):
        return f"{value:g}({error:g})"
    if error <= 0.0:
        return f"{value:.4g}"
    size = math.floor(math.log10(max(abs(value), error)))
    if not -4 <= size <= 5:
        return f"{format_uncertain(value / 10.0**size, error / 10.0**size)}e{size:+d}"
    digits = 2 if f"{error:.1e}".startswith("1") else 1
    rounded = float(f"{error:.{digits - 1}e}")
    decimals = digits - 1 - math.floor(math.log10(rounded))
    value = round(value, decimals) + 0.0  # no minus before zero
    if decimals <= 0:
        return f"{value:.0f}({rounded:.0f})"
    shown = f"{rounded:.{decimals}f}" if rounded >= 1.0 else f"{rounded * 10.0**decimals:.0f}"
    return f"{value:.{decimals}f}({shown})"


def mean(series: Series) -> Estimate:
    """Mean of a stationary series; cut the equilibration first (`settled`).

    Error: sd / sqrt(n_effective), n_effective by Geyer's initial monotone sequence over the split series (Vehtari et
    al., Bayesian Anal. 16, 667 (2021), as in arviz-stats).

    Raises:
        TooShort: fewer than 8 samples.
    """
    _require_samples(series)
    coarse = coarsened(series).values
    error = float(np.std(coarse, ddof=1)) / math.sqrt(effective_samples(coarse))
    variance = float(np.var(series.values, ddof=1))
    n_effective = min(variance / error**2, float(len(series))) if error > 0 else float(len(series))
    return Estimate(float(np.mean(series.values)), error, series.unit, n_effective)


def coarsened(series: Series) -> Series:
    """Block means of a very long series, at most 20,000: the same mean and error for a fraction of the work."""
    size = len(series) // MAX_SAMPLES
    if size < 2:
        return series
    kept = slice(len(series) % size, None)
    times, values = (part[kept].reshape(-1, size).mean(axis=1) for part in (series.time_ps, series.values))
    return Series(times, values, series.unit, series.name)


def standard_deviation(series: Series) -> Estimate:
    """Standard deviation of a stationary series, with the error of the mean squared deviation behind it.

    Raises:
        TooShort: fewer than 8 samples.
    """
    _require_samples(series)
    spread = float(np.std(series.values, ddof=1))
    if spread == 0.0:
        return Estimate(0.0, 0.0, series.unit, float(len(series)))
    squares = (series.values - series.values.mean()) ** 2
    n_effective = effective_samples(squares)
    error = float(np.std(squares, ddof=1)) / math.sqrt(n_effective) / (2.0 * spread)
    return Estimate(spread, error, series.unit, n_effective)


def effective_samples(values: FloatArray) -> float:
    """Number of independent samples worth as much as `values` (n_samples,) for the mean.

    The least over the series and its block means (2, 4, 8, ... samples; Flyvbjerg and Petersen, J. Chem. Phys. 91, 461
    (1989)): near-harmonic motion makes kinetic energies oscillate, Geyer's sequence ends at the first trough, and the
    slow decay that comes after it would be missed. Never above n_samples: anticorrelation is real, but not what a short
    series can prove.
    """
    from arviz_stats.base import array_stats

    if np.ptp(values) == 0.0:
        return float(len(values))
    variance, blocks, found = float(np.var(values, ddof=1)), values, float(len(values))
    while True:
        n_effective = min(float(array_stats.ess(blocks[None, :], method="mean")), float(len(blocks)))
        found = min(found, variance / float(np.var(blocks, ddof=1)) * n_effective)
        if len(blocks) < 2 * MIN_BLOCKS:
            return max(found, 1.0)
        blocks = blocks[len(blocks) % 2 :].reshape(-1, 2).mean(axis=1)
        if np.ptp(blocks) == 0.0:
            return max(found, 1.0)


def autocorrelation_time(series: Series) -> Estimate:
    """Integrated autocorrelation time tau = dt n / (2 n_effective), in ps.

    Error: Sokal's (1996), relative sqrt(2 (2 W + 1) / n) with a window W of 5 tau, and a quarter in quadrature, for
    n_effective is the least of several noisy numbers: tau leans to the long side by a tenth. n and W count blocks where the
    series is so long that `mean` looks at block means.
    """
    n_effective = mean(series).n_effective
    n_samples = len(coarsened(series))
    tau = series.interval_ps * len(series) / (2.0 * n_effective)
    window = 5.0 * max(n_samples / (2.0 * n_effective), 0.5)
    relative = math.hypot(math.sqrt(2.0 * (2.0 * window + 1.0) / n_samples), BLOCKING_ERROR)
    return Estimate(tau, tau * relative, "ps", n_effective)


def settled(series: Series) -> Series:
    """What is left of a series once its equilibration is cut off.

    The cut maximises the number of effective samples that remain (Chodera, J. Chem. Theory Comput. 12, 1799 (2016)),
    on a grid of twentieths, and is made only if the mean of what is cut is 4 standard errors from the rest, as the
    fluctuations of the rest have it: effective samples are themselves noisy, and a cut that follows the noise picks a
    quiet stretch with too small an error. At most half is cut, so that a steady drift is not mistaken for
    equilibration; `has_settled` tells.
    """
    _require_samples(series)
    coarse = coarsened(series)
    cuts = [int(len(coarse) * part / 20) for part in range(int(20 * MAX_DISCARDED) + 1)]
    kept = [effective_samples(coarse.values[cut:]) for cut in cuts if len(coarse) - cut >= MIN_SAMPLES]
    best = int(np.argmax(kept))
    if best == 0:
        return series
    head, tail = coarse.values[: cuts[best]], coarse.values[cuts[best] :]
    n_head = max(1.0, kept[best] * len(head) / len(tail))
    error = float(np.std(tail, ddof=1)) * math.sqrt(1.0 / n_head + 1.0 / kept[best])
    if abs(float(head.mean() - tail.mean())) < SETTLING_SIGMAS * error:
        return series
    return series.after(float(coarse.time_ps[cuts[best]]))


def has_settled(series: Series, *, sigmas: float = 4.0) -> bool:
    """Whether the kept part of a series shows no trend: its slope is within `sigmas` of zero."""
    kept = settled(series)
    return len(kept) < 2 * MIN_SAMPLES or abs(slope(kept).sigmas_from(0.0)) < sigmas


def slope(series: Series) -> Estimate:
    """Slope of a line through a series, in `unit`/ps, for any mixture of bounded noise and random walk.

    Energy that forces inject at random times makes the residuals of `conserved` a random walk, for which the error of
    ordinary least squares is far too small, even after correction for the autocorrelation. So block means are fitted
    by generalised least squares with covariance white + ratio x walk, and averaged over the ratio with its restricted
    likelihood (Harville, J. Am. Stat. Assoc. 72, 320 (1977)) as weight. Both limits come out right: ordinary least
    squares for white noise, (last - first)/duration for a walk. Where 48 blocks cannot tell a weak walk from none, the
    error is the cautious one.

    n_effective counts the blocks, which share all samples as evenly as they can. Assumes that the steps of a walk forget
    within a block (duration/48).

    Raises:
        TooShort: fewer than 8 samples.
    """
    _require_samples(series)
    n_blocks = min(SLOPE_BLOCKS, len(series))
    edges = np.linspace(0, len(series), n_blocks + 1).astype(int)
    sizes = np.diff(edges)
    times = np.add.reduceat(series.time_ps, edges[:-1]) / sizes
    heights = np.add.reduceat(series.values, edges[:-1]) / sizes
    scale = float(np.ptp(heights))
    if scale == 0.0:
        return Estimate(0.0, 0.0, f"{series.unit}/ps", float(n_blocks))
    span = times[-1] - times[0]
    value, error = _line_fit((times - times.mean()) / span, (heights - heights.mean()) / scale, sizes)
    return Estimate(value * scale / span, error * scale / span, f"{series.unit}/ps", float(n_blocks))


def _line_fit(times: FloatArray, heights: FloatArray, sizes: IntArray) -> tuple[float, float]:
    """Slope and its standard error, averaged over WALK_RATIOS with odds times restricted likelihood.

    `heights` are means of `sizes` samples each.
    """
    n_blocks = len(times)
    design = np.column_stack([np.ones(n_blocks), times])
    widths = sizes / sizes.mean()
    centres = np.cumsum(widths) - 0.5 * widths
    white = np.diag(1.0 / widths)
    walk = np.minimum.outer(centres, centres) - np.diag(widths / 6.0)  # of block means of a unit random walk
    slopes, variances, likelihoods = [], [], []
    for ratio in WALK_RATIOS:
        factor = np.linalg.cholesky(white + ratio * walk)
        whitened = np.linalg.solve(factor, np.column_stack([design, heights]))
        normal = whitened[:, :2].T @ whitened[:, :2]
        line = np.linalg.solve(normal, whitened[:, :2].T @ whitened[:, 2])
        residual = float(np.sum((whitened[:, 2] - whitened[:, :2] @ line) ** 2)) + 1e-30
        logdets = 2.0 * np.sum(np.log(np.diag(factor))) + np.linalg.slogdet(normal)[1]
        slopes.append(line[1])
        variances.append(residual / (n_blocks - 2) * np.linalg.inv(normal)[1, 1])
        likelihoods.append(-0.5 * ((n_blocks - 2) * math.log(residual) + logdets))
    weights = WALK_ODDS * np.exp(np.array(likelihoods) - max(likelihoods))
    weights /= weights.sum()
    value = float(weights @ np.array(slopes))
    variance = float(weights @ (np.array(variances) + (np.array(slopes) - value) ** 2))
    return value, math.sqrt(variance)


def from_blocks(block_values: FloatArray, unit: str) -> Estimate:
    """Estimate from the same quantity in independent blocks (n_blocks,): mean and standard error of the mean."""
    if len(block_values) < 2:
        raise TooShort(f"wanted at least 2 blocks for an error bar, got {len(block_values)}: run longer")
    error = float(np.std(block_values, ddof=1)) / math.sqrt(len(block_values))
    return Estimate(float(np.mean(block_values)), error, unit, float(len(block_values)))


def _require_samples(series: Series) -> None:
    if len(series) < MIN_SAMPLES:
        raise TooShort(
            f"'{series.name or 'series'}': wanted at least {MIN_SAMPLES} samples for an error bar, got {len(series)}; "
            "run longer or write it more often"
        )
