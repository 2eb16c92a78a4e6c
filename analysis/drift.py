"""Energy balance of a run: drift of `conserved`, heat that goes to the bath, work of the non-conservative forces.

Units: meV/ps/atom for powers, K/ps for heating, eV for energies. For path integrals everything is per bead, as i-PI
writes it: the energy scale of the physical system.
"""

from __future__ import annotations

import numpy as np

from analysis.errors import AnalysisError
from analysis.run import Run
from analysis.series import Series
from analysis.statistics import Estimate, slope, standard_deviation
from analysis.units import LIGHT_CM_PER_FS, boltzmann, spring_wavenumber

POWER_UNIT = "meV/ps/atom"
FRICTION_EXCESS_K = {"obabo": 2e-3, "baoab": 4.4e-4}  # of `friction_power`, by the splitting, at 0.5 fs


def energy_drift(source: Run | Series, n_atoms: int | None = None) -> Estimate:
    """Slope of i-PI's `conserved`, in meV/ps/atom.

    `conserved` is the energy plus the heat that went to the bath, so that its slope is the power that comes from
    nowhere: forces that are not the gradient of the energy, or an integrator out of its depth. The whole series is
    used: a drift needs no equilibration and must not be cut as if it were one.

    Args:
        source: a run, or the series of `conserved` in eV.
        n_atoms: needed with a series.

    Raises:
        MissingOutput: the run has no column `conserved`.
        TooShort: fewer than 8 rows.
    """
    series = source.series("conserved") if isinstance(source, Run) else source
    if isinstance(source, Run):
        n_atoms = source.atoms.n_atoms
    if n_atoms is None:
        raise AnalysisError("energy_drift of a series: wanted n_atoms, got none")
    return slope(series).scaled(1e3 / n_atoms, unit=POWER_UNIT)


def energy_fluctuation(conserved: Series, n_atoms: int) -> Estimate:
    """Standard deviation of `conserved` about its own line, in meV per atom: the noise of the integrator."""
    time = conserved.time_ps - conserved.time_ps[0]
    rest = conserved.values - np.polyval(np.polyfit(time, conserved.values, 1), time)
    return standard_deviation(conserved.with_values(rest, unit="eV")).scaled(1e3 / n_atoms, unit="meV/atom")


def heating_rate(temperature: Series) -> Estimate:
    """Slope of a kinetic temperature, in K/ps: what a drift at constant energy looks like to a user."""
    return slope(temperature).scaled(1.0, unit="K/ps")


def bath_heat(run: Run) -> Series:
    """Energy that went to the thermostat (and barostat) since the start, in eV per bead.

    i-PI has no column for it; conserved - potential - kinetic_md - spring is what is left. With `fixcom` and forces
    that have a net force, i-PI books the work of that net force here as well.

    Raises:
        MissingOutput: one of the four columns is not there (spring is only needed with several beads).
    """
    rest = run.series("conserved").minus(run.series("potential")).minus(run.series("kinetic_md"))
    if run.facts is not None and run.facts.n_beads > 1:
        rest = rest.minus(run.series("spring"))
    return rest.with_values(rest.values - rest.values[0], unit="eV", name="heat to the bath")


def friction_power(run: Run) -> float:
    """Power that the friction of PILE puts through the bath of a ring polymer with exact forces, in meV/ps/atom; 0 without it.

    Velocity Verlet does not conserve energy while internal modes are damped as strongly as their springs drive them. Measured
    with q-TIP4P/F at 300 K (analysis/README.md): as much as 0.002 K of excess kinetic temperature would drive into that friction
    at steps of 0.5 fs, on 8 beads and on 32, and the fourth power of the step. So it is here

        0.002 K (dt/0.5 fs)^4 3 k_B sum_{k>0} 2 lambda omega_k

    (with splitting="baoab" 0.7/3.2 of that, as on 8 beads at 0.5 fs), with dt the innermost step, and omega_k = 2 P k_B T/hbar
    sin(pi k/P) (Ceriotti, Parrinello, Markland, Manolopoulos, J. Chem. Phys. 133, 124104 (2010)). An estimate for stiff molecules
    with hydrogen: softer ones have less.
    """
    facts = run.facts
    if facts is None or facts.thermostat is None or not facts.thermostat.is_pile or facts.n_beads < 2:
        return 0.0
    springs = sum(
        spring_wavenumber(facts.n_beads, facts.temperature_K or 0.0, mode) for mode in range(1, facts.n_beads)
    )
    frictions = 2.0 * facts.thermostat.pile_lambda * 2.0 * np.pi * springs * LIGHT_CM_PER_FS * 1e3  # 1/ps
    shortness = facts.timestep_fs / facts.inner_steps / 0.5
    excess = FRICTION_EXCESS_K.get(facts.splitting, FRICTION_EXCESS_K["obabo"])
    return float(excess * shortness**4 * 3.0 * boltzmann() * frictions * 1e3)


def langevin_power(excess_K: Estimate, n_freedom: float, tau_fs: float, n_atoms: int) -> Estimate:
    """Power that keeps a Langevin bath of friction 1/tau at T_kin - T: P = (n_freedom k_B / tau)(T_kin - T).

    With n_freedom = 3N this is the steady state of dK/dt = P - (2/tau)(K - K_target), each degree of freedom
    being damped.
    """
    factor = n_freedom * boltzmann() / (tau_fs * 1e-3) * 1e3 / n_atoms
    return excess_K.scaled(factor, unit=POWER_UNIT)


def svr_power(excess_K: Estimate, n_freedom: float, tau_fs: float, n_atoms: int) -> Estimate:
    """The same for stochastic velocity rescaling, whose kinetic energy relaxes with tau: half the power.

    Bussi, Donadio, Parrinello, J. Chem. Phys. 126, 014101 (2007).
    """
    return langevin_power(excess_K, n_freedom / 2.0, tau_fs, n_atoms)
