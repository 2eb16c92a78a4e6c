"""Path-integral consistency: two kinetic-energy estimators, internal modes, the spread of the ring polymers.

Units: eV for kinetic energies (of the whole system), K, A. i-PI runs the ring polymer at P T and prints its columns per
bead.
"""

from __future__ import annotations

from analysis.errors import AnalysisError
from analysis.kinetics import degrees_of_freedom, temperature_series
from analysis.run import Run
from analysis.series import Series, aligned
from analysis.statistics import Estimate, mean, settled
from analysis.units import boltzmann

KINETIC = ("kinetic_cv", "kinetic_td")


def quantum_kinetic_energies(run: Run) -> dict[str, Estimate]:
    """Centroid-virial and thermodynamic estimators of the quantum kinetic energy, in eV.

    K_cv = 3 N k_B T/2 - <sum_j (q_j - qbar).f_j>/(2P), with the total force; K_td = 3 N P k_B T/2 - <spring>/P. Of
    fixed atoms, which i-PI counts in both, nothing is kept: their ring polymers are collapsed.
    """
    return {name: mean(settled(_of_moving_atoms(run, name))) for name in KINETIC if run.has(name)}


def _of_moving_atoms(run: Run, name: str) -> Series:
    """A kinetic-energy estimator without what i-PI adds for fixed atoms, 3/2 k_B T each (K_td: P times that), in eV."""
    column, facts = run.series(name), run.facts
    if facts is None or facts.temperature_K is None or not facts.fixed_dof:
        return column
    n_modes = facts.n_beads if name == "kinetic_td" else 1
    padding = 0.5 * len(facts.fixed_dof) * n_modes * boltzmann() * facts.temperature_K
    return column.with_values(column.values - padding, unit=column.unit)


def estimator_mismatch(run: Run) -> Estimate:
    """K_cv - K_td in eV, from the difference along the run: zero for any Hamiltonian sampled at the right temperature.

    Raises:
        MissingOutput: kinetic_cv or kinetic_td was not written.
    """
    return mean(settled(mismatch_series(run)))


def mismatch_series(run: Run) -> Series:
    """K_cv - K_td along the run, in eV."""
    virial, thermodynamic = (_of_moving_atoms(run, name) for name in KINETIC)
    return virial.minus(thermodynamic, name="K_cv - K_td")


def internal_temperature_series(run: Run) -> Series:
    """Mean kinetic temperature of the internal modes (k > 0), from all modes and the centroid, in K.

    Raises:
        AnalysisError: one bead has no internal modes.
        MissingOutput: the columns of the centroid or of the whole were not written.
    """
    n_beads = run.require_facts("internal modes").n_beads
    if n_beads < 2:
        raise AnalysisError(f"{run.name}: one bead has no internal modes")
    whole, central = degrees_of_freedom(run).remaining, degrees_of_freedom(run, mode=0).remaining
    if central == 0.0:
        return temperature_series(run)
    everything, centroid = aligned(temperature_series(run), temperature_series(run, mode=0))
    values = (whole * everything.values - central * centroid.values) / (whole - central)
    return everything.with_values(values, unit="K", name="T(internal modes)")


def mismatch_from_temperatures(run: Run, target_K: float) -> Estimate:
    """K_cv - K_td that the temperature of the internal modes accounts for: g/2 k_B (T_{k>0} - T), in eV.

    g = 3N(P-1), with N the atoms that move.

    Holds for any force, conservative or not, under Langevin friction on the modes, because spring and physical forces do
    work on the internal modes against the same bath. It is blind to the centroid: look at its temperature as well.
    """
    excess = mean(settled(internal_temperature_series(run))).shifted(-target_K)
    freedom = degrees_of_freedom(run).remaining - degrees_of_freedom(run, mode=0).remaining
    return excess.scaled(0.5 * freedom * boltzmann(), unit="eV")


def gyration_radii(run: Run) -> dict[str, Estimate]:
    """Mean radius of gyration of the ring polymers of each species that was written as r_gyration(X), in A."""
    return {
        label: mean(settled(run.series("r_gyration", atom=label)))
        for label in run.atoms.species
        if run.has("r_gyration", atom=label)
    }
