"""Estimators of correlated series: error bars that are right, on series with exactly known answers."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.errors import AnalysisError, TooShort
from analysis.series import Series
from analysis.statistics import (
    Estimate,
    autocorrelation_time,
    coarsened,
    errors_of,
    format_uncertain,
    from_blocks,
    has_settled,
    mean,
    settled,
    slope,
    standard_deviation,
)
from analysis_runs import ornstein_uhlenbeck

N_SAMPLES = 2000


def series(values: np.ndarray) -> Series:
    return Series(np.arange(len(values)) * 0.001, np.asarray(values, dtype=float), "K", "test")


def deviates(estimator, make, expected: float, n_runs: int = 200) -> np.ndarray:
    """Distances of estimates from the truth, in their own standard errors."""
    rng = np.random.default_rng(20251)
    return np.array([estimator(series(make(rng))).sigmas_from(expected) for _ in range(n_runs)])


@pytest.mark.parametrize("steps", [0.0, 5.0, 20.0])
def test_mean_of_ou_series_has_calibrated_errors(steps):
    z = deviates(mean, lambda rng: ornstein_uhlenbeck(N_SAMPLES, (), steps, rng), 0.0)
    assert 0.8 < z.std() < 1.25
    assert np.mean(np.abs(z) > 3.0) <= 0.02


@pytest.mark.parametrize("steps", [0.0, 5.0])
def test_standard_deviation_of_ou_series_has_calibrated_errors(steps):
    z = deviates(standard_deviation, lambda rng: ornstein_uhlenbeck(N_SAMPLES, (), steps, rng), 1.0)
    assert 0.8 < z.std() < 1.2
    assert np.mean(np.abs(z) > 3.0) <= 0.02


@pytest.mark.parametrize(
    "noise",
    [
        lambda rng: ornstein_uhlenbeck(N_SAMPLES, (), 0.0, rng),
        lambda rng: ornstein_uhlenbeck(N_SAMPLES, (), 5.0, rng),
        lambda rng: np.cumsum(rng.normal(size=N_SAMPLES)),
        lambda rng: np.cumsum(rng.normal(size=N_SAMPLES)) + 30.0 * rng.normal(size=N_SAMPLES),
    ],
    ids=["white", "correlated", "random walk", "walk and noise"],
)
def test_slope_is_never_overconfident_whatever_the_noise(noise):
    trend = 3.0 * np.arange(N_SAMPLES) * 0.001
    z = deviates(slope, lambda rng: trend + noise(rng), 3.0)
    assert z.std() < 1.25
    assert np.mean(np.abs(z) > 3.0) <= 0.02


def test_slope_error_of_a_random_walk_is_the_exact_one():
    """Of all slopes through a walk of diffusion q, (last - first)/T is best: error sqrt(q/T)."""
    rng = np.random.default_rng(1)
    errors = [slope(series(np.cumsum(rng.normal(size=N_SAMPLES)))).error for _ in range(50)]
    duration = N_SAMPLES * 0.001
    assert np.mean(errors) == pytest.approx(np.sqrt(N_SAMPLES) / duration, rel=0.15)


def test_slope_of_a_line_is_exact():
    found = slope(series(2.0 + 7.0 * np.arange(100) * 0.001))
    assert found.value == pytest.approx(7.0)
    assert found.error < 1e-9
    assert found.unit == "K/ps"


@pytest.mark.parametrize("n_samples", [49, 71, 95])
def test_slope_uses_the_whole_of_a_series_that_48_blocks_do_not_divide(n_samples):
    line = 2.0 + 7.0 * np.arange(n_samples) * 0.001
    assert slope(series(line)).value == pytest.approx(7.0)
    bent = np.where(np.arange(n_samples) == 0, line - 1.0, line)
    assert slope(series(bent)).value > 7.0 + 1e-3
    for noise in (lambda rng: rng.normal(size=n_samples), lambda rng: np.cumsum(rng.normal(size=n_samples))):
        assert 0.5 < deviates(slope, noise, 0.0).std() < 1.25


def test_errors_of_oscillating_series_are_calibrated():
    """(1 + cos) decay, as of the kinetic energy of a solid: positive again after the first trough."""

    def kinetic(rng: np.random.Generator) -> np.ndarray:
        wave = np.exp(0.8j * np.arange(N_SAMPLES))
        slow, turning = ornstein_uhlenbeck(N_SAMPLES, (2,), 40.0, rng).T
        return slow + np.real(wave * (turning + 1j * ornstein_uhlenbeck(N_SAMPLES, (), 40.0, rng)))

    z = deviates(mean, kinetic, 0.0)
    assert 0.7 < z.std() < 1.3


def test_autocorrelation_time_of_ou_series_is_that_of_the_process():
    """tau_int of an OU series sampled at interval dt is dt coth(dt/(2 tau))/2."""
    rng = np.random.default_rng(2)
    found = autocorrelation_time(series(ornstein_uhlenbeck(50_000, (), 10.0, rng)))
    exact = 0.001 * 0.5 / np.tanh(0.05)
    assert found.value == pytest.approx(exact, rel=0.25)  # the largest of several blockings: cautious
    assert abs(found.value - exact) < 4 * found.error


@pytest.mark.parametrize("n_samples", [100_000, 1_000_000])
@pytest.mark.parametrize("steps", [5.0, 100.0])
def test_autocorrelation_time_of_a_very_long_series_may_be_shorter_than_a_block(n_samples, steps):
    rng = np.random.default_rng(7)
    found = autocorrelation_time(series(ornstein_uhlenbeck(n_samples, (), steps, rng)))
    exact = 0.001 * 0.5 / np.tanh(0.5 / steps)
    assert found.value == pytest.approx(exact, rel=0.5)
    assert abs(found.value - exact) < 3 * found.error
    assert found.error < 0.5 * exact


def test_long_series_are_coarsened_without_changing_mean_or_error():
    rng = np.random.default_rng(3)
    long = series(ornstein_uhlenbeck(100_000, (), 50.0, rng))
    assert len(coarsened(long)) == 20_000
    assert mean(long).value == pytest.approx(np.mean(long.values), abs=1e-12)
    assert mean(long).error == pytest.approx(np.sqrt(100.0 / 100_000), rel=0.2)


def test_equilibration_is_cut_off():
    rng = np.random.default_rng(4)
    values = ornstein_uhlenbeck(N_SAMPLES, (), 2.0, rng)
    values[:300] += 20.0 * np.exp(-np.arange(300) / 60.0)
    kept = settled(series(values))
    assert 0.15 <= kept.time_ps[0] <= 0.6
    assert abs(mean(kept).sigmas_from(0.0)) < 4.0
    assert has_settled(series(values))


def test_stationary_series_is_left_whole():
    rng = np.random.default_rng(5)
    lengths = [len(settled(series(ornstein_uhlenbeck(N_SAMPLES, (), 3.0, rng)))) for _ in range(50)]
    assert np.mean(np.array(lengths) == N_SAMPLES) > 0.8


def test_steady_drift_is_not_taken_for_equilibration():
    rng = np.random.default_rng(6)
    drifting = series(ornstein_uhlenbeck(N_SAMPLES, (), 3.0, rng) + 0.01 * np.arange(N_SAMPLES))
    assert len(settled(drifting)) >= N_SAMPLES // 2
    assert not has_settled(drifting)


def test_few_samples_make_significance_modest():
    few = Estimate(4.0, 1.0, "K", 5.0)
    many = Estimate(4.0, 1.0, "K", 1e6)
    assert many.sigmas_from(0.0) == pytest.approx(4.0)
    assert 2.0 < few.sigmas_from(0.0) < 2.6  # Student's law with 4 degrees of freedom: p = 0.016


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (12.8, 0.5, "12.8(5)"),
        (12.83, 0.12, "12.83(12)"),
        (1234.0, 56.0, "1230(60)"),
        (-4.4, 0.3, "-4.4(3)"),
        (300.1, 1.4, "300.1(1.4)"),
        (300.1, 2.5, "300(2)"),
        (1e-7, 2e-8, "1.0(2)e-7"),
        (-0.001, 0.4, "0.0(4)"),
        (9.99, 0.0997, "9.99(10)"),
        (5.2, 0.97, "5(1)"),
    ],
)
def test_estimates_print_their_error_in_the_last_digit(value, error, text):
    assert format_uncertain(value, error) == text


def test_estimate_prints_value_error_and_unit():
    assert str(Estimate(12.8, 0.5, "K", 100.0)) == "12.8(5) K"


def test_difference_of_estimates_adds_errors_in_quadrature_and_has_the_freedom_of_welch():
    apart = Estimate(5.0, 3.0, "K", 40.0).minus(Estimate(1.0, 4.0, "K", 20.0))
    assert (apart.value, apart.error) == (4.0, 5.0)
    assert apart.n_effective - 1.0 == pytest.approx(25.0**2 / (9.0**2 / 39.0 + 16.0**2 / 19.0))
    exact = Estimate(5.0, 3.0, "K", 40.0).minus(Estimate(1.0, 0.0, "K", 2.0))
    assert exact.n_effective == pytest.approx(40.0)


@pytest.mark.parametrize("n_effective", [4.0, 8.0, 25.0, 1000.0])
def test_errors_that_are_wanted_are_those_that_give_so_many_sigmas(n_effective):
    wanted = errors_of(4.0, n_effective)
    assert Estimate(wanted, 1.0, "K", n_effective).sigmas_from(0.0) == pytest.approx(4.0)


def test_too_few_samples_are_refused_with_the_remedy():
    with pytest.raises(TooShort, match=r"at least 8 samples.*got 5; run longer"):
        mean(series(np.arange(5.0)))
    with pytest.raises(TooShort, match="at least 2 blocks"):
        from_blocks(np.array([1.0]), "K")


def test_series_refuses_what_it_cannot_mean():
    with pytest.raises(AnalysisError, match="not finite"):
        series(np.array([1.0, np.nan, 3.0]))
    with pytest.raises(AnalysisError, match="increase strictly"):
        Series(np.array([0.0, 0.0]), np.zeros(2), "K")


def test_constant_series_has_no_error_and_does_not_crash():
    flat = series(np.full(100, 3.0))
    assert (mean(flat).value, mean(flat).error, slope(flat).value) == (3.0, 0.0, 0.0)
    assert standard_deviation(flat).value == 0.0
