"""The thermostat matrices in the inputs do what their headers say, by exact solution of a harmonic mode.

Atomic units, as gle4md.org gives the matrices. A mode of frequency omega with position q, momentum p and additional momenta
s obeys a linear stochastic equation dz = -F z dt + noise; its covariance solves F C + C F^T = D.
"""

from __future__ import annotations

import numpy as np
import pytest
from ipi.utils.units import unit_to_internal
from scipy.linalg import solve_continuous_lyapunov

from ipi_inputs import load
from ipi_inputs.document import find, value_of
from ipi_inputs.reading import numbers

WAVENUMBER = unit_to_internal("frequency", "inversecm", 1.0)
KELVIN = unit_to_internal("temperature", "kelvin", 1.0)


def matrix(name: str, tag: str) -> np.ndarray:
    element = find(load(name).facts.systems[0].thermostats[0].element, tag)
    assert element is not None
    shape = [int(n) for n in element.get("shape", "").strip("()").split(",")]
    return np.array(numbers(value_of(element))).reshape(shape)


def drift(frequency: float, friction: np.ndarray) -> np.ndarray:
    """F of a mass-scaled harmonic mode, for z = (q, p, s)."""
    full = np.zeros((len(friction) + 1,) * 2)
    full[1:, 1:] = friction
    full[0, 1] = -1.0
    full[1, 0] += frequency**2
    return full


def stationary_covariance(frequency: float, friction: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Covariance of (q, p, s) where (p, s) alone would have the covariance `noise`."""
    diffusion = np.zeros((len(friction) + 1,) * 2)
    diffusion[1:, 1:] = friction @ noise + noise @ friction.T
    covariance: np.ndarray = solve_continuous_lyapunov(drift(frequency, friction), diffusion)
    return covariance


def energy_correlation_time(frequency: float, friction: np.ndarray) -> float:
    """Integrated autocorrelation time of the potential energy of a harmonic mode at equilibrium."""
    start = np.zeros(len(friction) + 1)
    start[0] = 1.0  # <z(0) q(0)>, in units of <q^2>
    integral: np.ndarray = solve_continuous_lyapunov(drift(frequency, friction), np.outer(start, start))
    return float(integral[0, 0])


def test_gle_noise_exists() -> None:
    friction = matrix("nvt-gle", "A")
    assert np.linalg.eigvalsh(friction + friction.T).min() > -1e-12


@pytest.mark.parametrize(
    ("wavenumber", "efficiency"), [(3, 0.1), (10, 0.4), (50, 0.85), (1000, 0.2), (4000, 0.1)]
)
def test_gle_samples_all_modes_from_3_to_4000_per_cm(wavenumber: float, efficiency: float) -> None:
    frequency = wavenumber * WAVENUMBER
    assert 1 / (frequency * energy_correlation_time(frequency, matrix("nvt-gle", "A"))) >= efficiency - 5e-3


def test_the_correlation_time_of_white_noise_is_the_closed_form() -> None:
    """Closed form for Langevin friction g: the correlation time of q^2 is 1/(2 g) + g/(2 omega^2)."""
    frequency, friction = 0.01, 0.004
    expected = 0.5 / friction + 0.5 * friction / frequency**2
    assert energy_correlation_time(frequency, np.array([[friction]])) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("wavenumber", "tolerance"),
    [(10, 0.005), (500, 0.005), (1600, 0.005), (2500, 0.005), (3500, 0.005), (4000, 0.005), (5000, 0.021)],
)
def test_piglet_gives_a_harmonic_mode_its_quantum_fluctuation(wavenumber: float, tolerance: float) -> None:
    """<q^2> of the beads against hbar coth(hbar omega/2kT)/(2 omega), for 4 beads at 298 K."""
    frictions, noises = matrix("pimd-piglet", "A"), matrix("pimd-piglet", "C") * KELVIN
    n_beads, thermal = len(frictions), 298 * KELVIN
    frequency = wavenumber * WAVENUMBER
    springs = 2 * n_beads * thermal * np.sin(np.arange(n_beads) * np.pi / n_beads)
    of_modes = [
        stationary_covariance(np.hypot(frequency, spring), friction, noise)[0, 0]
        for spring, friction, noise in zip(springs, frictions, noises, strict=True)
    ]
    exact = 0.5 / frequency / np.tanh(0.5 * frequency / thermal)
    assert np.mean(of_modes) == pytest.approx(exact, rel=tolerance)


def test_four_beads_without_colored_noise_miss_most_of_the_quantum_fluctuation() -> None:
    """What PIGLET is for: white noise on 4 beads gives 43 % of <q^2> at 3500 /cm."""
    thermal, frequency = 298 * KELVIN, 3500 * WAVENUMBER
    springs = 2 * 4 * thermal * np.sin(np.arange(4) * np.pi / 4)
    classical = np.mean(4 * thermal / (frequency**2 + springs**2))
    exact = 0.5 / frequency / np.tanh(0.5 * frequency / thermal)
    assert classical / exact == pytest.approx(0.43, abs=0.01)


def test_piglet_holds_the_centroid_at_the_temperature_of_the_ring_polymer() -> None:
    assert np.array_equal(matrix("pimd-piglet", "C")[0], 4 * 298 * np.eye(9))
