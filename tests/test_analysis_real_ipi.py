"""The energy balance of non-conservative forces on real i-PI runs, where theory gives every number.

Independent atoms in harmonic wells with a swirl: the stationary state follows from a Lyapunov equation, so that neither
the estimators nor i-PI are compared with themselves.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import solve_continuous_lyapunov

from analysis import Run, read_run
from analysis.drift import bath_heat, energy_drift, langevin_power, svr_power
from analysis.kinetics import mode_temperatures, temperature, temperature_series
from analysis.path_integrals import estimator_mismatch, mismatch_from_temperatures, quantum_kinetic_energies
from analysis.statistics import mean, slope
from analysis.units import boltzmann

MASS = 1822.8885 * 1.00794  # electron masses
FEMTOSECOND = 41.341373  # atomic units
KELVIN = 3.1668152e-6  # hartree
TARGET = 300.0

INPUT = """<simulation verbosity="quiet">
  <output prefix="simulation">
    <properties filename="out" stride="{stride}">
      [ step, time{{picosecond}}, conserved{{electronvolt}}, potential{{electronvolt}}, kinetic_md{{electronvolt}}{more} ]
    </properties>
  </output>
  <total_steps> {steps} </total_steps>
  <prng> <seed> {seed} </seed> </prng>
  <ffdirect name="swirl"> <pes> custom </pes> <pes_path> {pes} </pes_path>
    <parameters> {{ k: {k}, swirl: {swirl}, forces: direct }} </parameters> </ffdirect>
  <system>
    <initialize nbeads="{n_beads}">
      <file mode="xyz"> start.xyz </file> <velocities mode="thermal" units="kelvin"> {start_K} </velocities>
    </initialize>
    <forces> <force forcefield="swirl"/> </forces>
    <ensemble> <temperature units="kelvin"> 300 </temperature> </ensemble>
    <motion mode="dynamics">
      <fixcom> {fixcom} </fixcom>
      <fixatoms> {fixed} </fixatoms>
      <dynamics mode="{ensemble}">
        <timestep units="femtosecond"> {timestep_fs} </timestep>
        <thermostat mode="{thermostat}">
          <tau units="femtosecond"> {tau_fs} </tau> <pile_lambda> {pile_lambda} </pile_lambda>
        </thermostat>
      </dynamics>
    </motion>
  </system>
</simulation>
"""


@dataclass(frozen=True)
class Well:
    """Atoms in wells, and how they are driven and damped."""

    omega_per_fs: float
    swirl_over_k: float
    tau_fs: float
    timestep_fs: float
    steps: int
    n_atoms: int = 500
    thermostat: str = "langevin"
    n_beads: int = 1
    pile_lambda: float = 1.0
    start_K: float = 300.0
    seed: int = 1
    ensemble: str = "nvt"
    fixcom: bool = False
    n_fixed: int = 0

    @property
    def stiffness(self) -> float:
        return MASS * (self.omega_per_fs / FEMTOSECOND) ** 2

    def run(self, directory: Path) -> Run:
        """Run i-PI and read what it wrote."""
        rng = np.random.default_rng(self.seed)
        spread = np.sqrt(KELVIN * TARGET / self.stiffness)
        rows = "".join(
            f"{'H':>8} {where[0]:12.5e} {where[1]:12.5e} {where[2]:12.5e}\n"
            for where in rng.normal(size=(self.n_atoms, 3)) * spread
        )
        header = "# CELL(abcABC): 500 500 500 90 90 90 positions{atomic_unit} cell{atomic_unit}"
        (directory / "start.xyz").write_text(f"{self.n_atoms}\n{header}\n{rows}")
        modes = ", spring{electronvolt}, temperature{kelvin}, temperature(nm=0){kelvin}, temperature(nm=1){kelvin}, "
        modes += "kinetic_cv{electronvolt}, kinetic_td{electronvolt}"
        text = INPUT.format(
            stride=4, more=modes if self.n_beads > 1 else "", steps=self.steps, seed=self.seed,
            pes=Path(__file__).with_name("analysis_swirl.py"), k=self.stiffness, swirl=self.swirl_over_k * self.stiffness,
            n_beads=self.n_beads, start_K=self.start_K, timestep_fs=self.timestep_fs, thermostat=self.thermostat,
            tau_fs=self.tau_fs, pile_lambda=self.pile_lambda, ensemble=self.ensemble, fixcom=self.fixcom,
            fixed=list(range(self.n_fixed)),
        )  # fmt: skip
        (directory / "input.xml").write_text(text)
        command = [str(Path(sys.executable).with_name("i-pi")), "input.xml"]
        subprocess.run(command, cwd=directory, check=True, timeout=250, stdout=subprocess.DEVNULL)
        return read_run(directory)

    def exact_kelvin(self, *, omega_per_fs: float | None = None, gamma_per_fs: float | None = None) -> float:
        """Kinetic temperature of the stationary state, all three directions, from the Lyapunov equation.

        z is not driven and stays at the target. State (x, y, vx, vy), mass 1, k_B T = 1.
        """
        omega = omega_per_fs or self.omega_per_fs
        gamma = gamma_per_fs or 1.0 / self.tau_fs
        swirl = self.swirl_over_k * self.omega_per_fs**2
        drift = np.zeros((4, 4))
        drift[:2, 2:] = np.eye(2)
        drift[2:, :2] = [[-(omega**2), -swirl], [swirl, -(omega**2)]]
        drift[2:, 2:] = -gamma * np.eye(2)
        noise = np.diag([0.0, 0.0, 2.0 * gamma, 2.0 * gamma])
        assert np.linalg.eigvals(drift).real.max() < 0
        covariance = solve_continuous_lyapunov(drift, -noise)
        return TARGET * (covariance[2, 2] + covariance[3, 3] + 1.0) / 3.0


WELLS = {
    10.0: Well(omega_per_fs=0.1, swirl_over_k=0.55, tau_fs=10.0, timestep_fs=1.0, steps=1500),
    100.0: Well(omega_per_fs=0.1, swirl_over_k=0.055, tau_fs=100.0, timestep_fs=1.0, steps=3000),
    1000.0: Well(omega_per_fs=0.04, swirl_over_k=0.55 / 40, tau_fs=1000.0, timestep_fs=4.0, steps=5000),
}


@pytest.mark.parametrize("tau_fs", list(WELLS))
def test_injected_power_is_the_friction_on_the_excess_temperature(tmp_path, tau_fs):
    """P = (3 N k_B/tau)(T_kin - T) under Langevin friction, T_kin as the Lyapunov equation has it, P goes to the bath."""
    well = WELLS[tau_fs]
    run = well.run(tmp_path)
    found, power = temperature(run), energy_drift(run)
    exact = well.exact_kelvin()
    assert exact > 1.1 * TARGET
    assert abs(found.sigmas_from(exact)) < 4
    predicted = langevin_power(found.shifted(-TARGET), 3 * well.n_atoms, tau_fs, well.n_atoms)
    assert power.value > 10 * power.error
    assert abs(power.minus(predicted).sigmas_from(0.0)) < 4
    exact_power = 3 * boltzmann() * (exact - TARGET) / (tau_fs * 1e-3) * 1e3
    assert abs(power.sigmas_from(exact_power)) < 4
    heat = slope(bath_heat(run)).scaled(1e3 / well.n_atoms, unit="meV/ps/atom")
    assert abs(heat.minus(power).sigmas_from(0.0)) < 4


def test_injected_power_under_svr_is_half_as_large_for_the_same_excess(tmp_path):
    """P = (3 N k_B/(2 tau))(T_kin - T): stochastic velocity rescaling relaxes the kinetic energy with tau."""
    well = Well(
        omega_per_fs=0.1, swirl_over_k=0.02, tau_fs=100.0, timestep_fs=1.0, steps=5000, thermostat="svr"
    )
    run = well.run(tmp_path)
    settled_from = 0.5 * run.duration_ps  # the swirl takes picoseconds to gather all energy in rotation
    power = energy_drift(run.series("conserved").after(settled_from), well.n_atoms)
    excess = mean(temperature_series(run).after(settled_from)).shifted(-TARGET)
    assert excess.value > 20.0
    predicted = svr_power(excess, 3 * well.n_atoms, 100.0, well.n_atoms)
    assert abs(power.minus(predicted).sigmas_from(0.0)) < 4
    assert abs(power.minus(predicted.scaled(2.0, unit=power.unit)).sigmas_from(0.0)) > 6


def test_conservative_wells_have_no_power_and_the_target_temperature(tmp_path):
    well = Well(omega_per_fs=0.1, swirl_over_k=0.0, tau_fs=100.0, timestep_fs=0.5, steps=1000)
    run = well.run(tmp_path)
    assert abs(energy_drift(run).value) < 0.5
    assert abs(temperature(run).sigmas_from(TARGET)) < 4


RING = Well(
    omega_per_fs=0.1, swirl_over_k=0.4, tau_fs=10.0, timestep_fs=0.5, steps=4000, n_atoms=40, thermostat="pile_l",
    n_beads=4, pile_lambda=0.05,
)  # fmt: skip


def exact_quantum_kinetic_energy(well: Well) -> float:
    """Of P beads in a harmonic well without swirl: 3 N/2 k_B T sum_k omega^2/(omega^2 + omega_k^2), in eV."""
    thermal = KELVIN * TARGET * FEMTOSECOND  # k_B T/hbar, 1/fs
    modes = 2.0 * well.n_beads * thermal * np.sin(np.pi * np.arange(well.n_beads) / well.n_beads)
    share = np.sum(well.omega_per_fs**2 / (well.omega_per_fs**2 + modes**2))
    return float(1.5 * well.n_atoms * boltzmann() * TARGET * share)


def test_mismatch_of_kinetic_estimators_is_the_heat_of_the_internal_modes(tmp_path):
    """K_cv - K_td = (3N(P-1)/2) k_B (T'_{k>0} - T) under PILE, any force."""
    run = RING.run(tmp_path)
    mismatch, accounted = estimator_mismatch(run), mismatch_from_temperatures(run, TARGET)
    assert accounted.value > 8 * accounted.error
    assert abs(mismatch.minus(accounted).sigmas_from(0.0)) < 4
    assert mismatch.value > 5 * mismatch.error


def test_fixed_atoms_take_no_part_in_modes_and_estimators(tmp_path):
    """i-PI counts them in K_td, 3 P k_B T/2 each; `fixcom`, which the input asks for as well, it overrides."""
    well = replace(
        RING, swirl_over_k=0.0, pile_lambda=1.0, n_atoms=60, n_fixed=30, fixcom=True, steps=2000, tau_fs=20.0
    )
    run = well.run(tmp_path)
    padded = 1.5 * well.n_fixed * (well.n_beads - 1) * boltzmann() * TARGET
    assert abs(estimator_mismatch(run).sigmas_from(0.0)) < 4
    assert estimator_mismatch(run).error < 0.1 * padded
    moving = exact_quantum_kinetic_energy(replace(well, n_atoms=well.n_atoms - well.n_fixed))
    found = {"whole": temperature(run), **mode_temperatures(run)}
    assert {len(found), *(abs(own.sigmas_from(TARGET)) < 4 for own in found.values())} == {3, True}
    assert all(abs(own.sigmas_from(moving)) < 4 for own in quantum_kinetic_energies(run).values())


def test_constrained_centroids_have_no_temperature_and_the_rest_has_the_target(tmp_path):
    well = replace(
        RING, swirl_over_k=0.0, pile_lambda=1.0, n_atoms=60, ensemble="nvt-cc", steps=1000, fixcom=True
    )
    run = well.run(tmp_path)
    found = {"whole": temperature(run), **mode_temperatures(run)}
    assert set(found) == {"whole", 1}
    assert all(abs(own.sigmas_from(TARGET)) < 4 and own.error < 15.0 for own in found.values())
    assert abs(mismatch_from_temperatures(run, TARGET).sigmas_from(0.0)) < 4


@pytest.mark.slow
def test_estimators_agree_and_are_exact_without_the_swirl(tmp_path):
    well = replace(RING, swirl_over_k=0.0, pile_lambda=1.0, n_atoms=60, steps=8000)
    run = well.run(tmp_path)
    assert abs(estimator_mismatch(run).sigmas_from(0.0)) < 4
    found = quantum_kinetic_energies(run)
    for own in found.values():
        assert abs(own.sigmas_from(exact_quantum_kinetic_energy(well))) < 4
    assert found["kinetic_cv"].error < 0.02 * found["kinetic_cv"].value
