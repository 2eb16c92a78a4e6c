"""Kinetic temperatures: of everything, of each species, of ring-polymer normal modes; and the width of the distribution.

Units: K. A temperature is <sum p^2/m> / (k_B g) with g the degrees of freedom that the selection really has: with the
centre of mass fixed, g = 3 N_s - 3 M_s/M_tot; of atoms that are fixed, none; of centroids that are constrained, none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from analysis.errors import AnalysisError, MissingOutput
from analysis.evidence import fastest_vibration
from analysis.run import Run
from analysis.series import Series
from analysis.statistics import Estimate, mean, settled, standard_deviation
from analysis.units import LIGHT_CM_PER_FS, boltzmann


@dataclass(frozen=True)
class Freedom:
    """Degrees of freedom of a selection, in the extended (ring-polymer) system."""

    total: float  # 3 N_s per bead, times the beads that are looked at
    removed: float  # by fixing the centre of mass, atoms, or centroids

    @property
    def remaining(self) -> float:
        return self.total - self.removed


def degrees_of_freedom(run: Run, atom: str = "", mode: int | None = None) -> Freedom:
    """Degrees of freedom behind `temperature(atom=...;nm=...)`.

    The centroid (mode 0) carries all that `fixcom` removes. Fixed atoms lose their part of every mode, and in the
    ensemble nvt-cc every atom loses its centroid.

    Raises:
        MissingOutput: internal modes of nvt-cc with fixed atoms, for which i-PI's own count is that of one bead less; or
            constrained dynamics, whose constraints i-PI does not count either.
    """
    facts, atoms = run.facts, run.atoms
    if facts is not None and facts.ensemble == "constrained_dynamics":
        raise MissingOutput(
            "temperatures are not defined here for constrained dynamics: constraints are not counted"
        )
    chosen = atoms.where(atom)
    if facts is None:
        return Freedom(3.0 * np.count_nonzero(chosen), 0.0)
    per_mode = 3.0 * np.count_nonzero(chosen)
    total = per_mode * (facts.n_beads if mode is None else 1)
    n_fixed = float(sum(chosen[own // 3] for own in facts.fixed_dof))  # of each mode
    if facts.ensemble == "nvt-cc":
        if n_fixed and mode:
            raise MissingOutput(
                "temperatures of internal modes are not defined here for nvt-cc with fixed atoms"
            )
        if mode:
            return Freedom(total, 0.0)
        return Freedom(total, per_mode + (n_fixed * (facts.n_beads - 1) if mode is None else 0.0))
    if n_fixed:
        return Freedom(total, n_fixed * (facts.n_beads if mode is None else 1))
    share = float(atoms.masses[chosen].sum() / atoms.masses.sum())
    return Freedom(total, 3.0 * share if facts.fixcom and not mode else 0.0)


def is_canonical(run: Run, mode: int | None = None) -> bool:
    """Whether momenta are to have k_B T in a normal mode, or in all: a quantum <C> (PIGLET) or BAOAB does not, by design."""
    off = run.facts.noncanonical_modes if run.facts is not None else frozenset()
    return (not off if mode is None else mode not in off) and not is_cold_by_splitting(run)


def is_cold_by_splitting(run: Run) -> bool:
    """Whether the fastest vibration is more than 1 % too cold at the end of a step of the splitting BAOAB.

    There <p^2> = m k_B T (1 - (omega dt)^2/4), while positions are sampled right (Leimkuhler and Matthews, Appl. Math. Res.
    Express 2013, 34). i-PI writes momenta there. With an even number of inner steps the thermostat acts between two of
    them, where momenta are right.
    """
    facts = run.facts
    if facts is None or facts.splitting != "baoab" or facts.thermostat is None or facts.inner_steps % 2 == 0:
        return False
    phase = 2.0 * np.pi * fastest_vibration(run) * LIGHT_CM_PER_FS * facts.timestep_fs / facts.inner_steps
    return bool(0.25 * phase**2 > 0.01)


def temperature_series(run: Run, atom: str = "", mode: int | None = None) -> Series:
    """Kinetic temperature along the run, for the degrees of freedom that are really there.

    From `kinetic_md`, or from i-PI's `temperature`. The latter pads the fixed degrees of freedom with the *target*
    temperature where the ensemble has one, and with zero where it has none: the padding is taken off here, else a hot
    species looks cooler by M_s/(N_s M_tot) and, at constant energy, everything looks too cold.

    Raises:
        MissingOutput: neither column is there; the message says which to add.
        AnalysisError: nothing of the selection moves.
    """
    arguments: dict[str, object] = {} if not atom else {"atom": atom}
    if mode is not None:
        arguments["nm"] = mode
    freedom = degrees_of_freedom(run, atom, mode)
    n_beads = run.facts.n_beads if run.facts is not None else 1
    name = f"T({atom or 'all'}{'' if mode is None else f', mode {mode}'})"
    if freedom.remaining <= 0.0:
        raise AnalysisError(f"{run.name}: {name} is not defined, the input holds all of it fixed")
    if run.has("kinetic_md", **arguments):
        energy = run.series("kinetic_md", **arguments)  # per bead; of one mode alone
        factor = 2.0 / (boltzmann() * freedom.remaining) / (n_beads if mode is not None else 1)
        return energy.with_values(energy.values * factor, unit="K", name=name)
    column = run.series("temperature", **arguments)
    padding = 0.0
    if run.facts is not None and run.facts.temperature_K is not None:
        padding = freedom.removed * run.facts.temperature_K
    return column.with_values(
        (column.values * freedom.total - padding) / freedom.remaining, unit="K", name=name
    )


def temperature(run: Run, atom: str = "", mode: int | None = None) -> Estimate:
    """Mean kinetic temperature of a selection after equilibration."""
    return mean(settled(temperature_series(run, atom, mode)))


def species_temperatures(run: Run) -> dict[str, Estimate]:
    """Mean kinetic temperature of each species that moves and has a column `temperature(X)` or `kinetic_md(X)`.

    Raises:
        MissingOutput: it wrote none; the message names the columns to add.
    """
    found = {
        label: temperature(run, label)
        for label in moving_species(run)
        if run.has("temperature", atom=label) or run.has("kinetic_md", atom=label)
    }
    if not found:
        wanted = ", ".join(f"temperature({label}){{kelvin}}" for label in run.atoms.species)
        raise MissingOutput(f"{run.name}: no temperature by species; add {wanted} to <properties>")
    return found


def moving_species(run: Run) -> list[str]:
    """Species of which not every atom is held fixed."""
    return [label for label in run.atoms.species if degrees_of_freedom(run, label).remaining > 0.0]


def mode_temperatures(run: Run) -> dict[int, Estimate]:
    """Mean kinetic temperature of each ring-polymer normal mode that moves and was written; 0 is the centroid."""
    n_beads = run.require_facts("temperatures of normal modes").n_beads
    return {
        mode: temperature(run, mode=mode)
        for mode in range(n_beads)
        if (run.has("temperature", nm=mode) or run.has("kinetic_md", nm=mode))
        and degrees_of_freedom(run, mode=mode).remaining > 0.0
    }


def width_temperature(run: Run) -> Estimate:
    """Temperature that the width of the kinetic-energy distribution tells, in K.

    2 K/(k_B T) follows a chi-squared law of g degrees of freedom, so that sd(K) = k_B T sqrt(g/2) and
    T = sd(K)/(k_B sqrt(g/2)) = sd(T_kin) sqrt(g/2). A rescaling thermostat that forgets its noise, or one that acts on
    the centroid only, has the right mean and the wrong width (Merz and Shirts, PLoS ONE 13, e0202764 (2018)).
    Assumes the canonical ensemble: at constant energy the width means something else.
    """
    series = settled(temperature_series(run))
    remaining = degrees_of_freedom(run).remaining
    return standard_deviation(series).scaled(float(np.sqrt(remaining / 2.0)), unit="K")


def remembering_bath(run: Run, estimate: Estimate, spread: float, mode: int | None = None) -> Estimate:
    """A mean of kinetic energies, with an error of at least spread sqrt(tau/duration), tau that of the thermostat.

    Under friction 1/tau the energy of a vibration forgets with exp(-t/tau). So its kinetic energy, which has half of it,
    keeps half of its variance `spread`^2 for that long, and the other half for femtoseconds: the error that a short run
    shows is that of the fast half. Holds for one bead, and for the centroid (`mode` 0) of several: internal modes have a
    friction of their own. Nothing is known of thermostats without a single tau.
    """
    facts = run.facts
    if facts is None or facts.thermostat is None or (facts.n_beads > 1 and mode != 0):
        return estimate
    share = min(0.5, facts.thermostat.tau_fs / max(run.duration_ps * 1e3, 1e-9))
    return replace(estimate, error=max(estimate.error, spread * float(np.sqrt(share))))


def require_target(run: Run) -> float:
    """Temperature of the ensemble.

    Raises:
        AnalysisError: the run has none, as at constant energy.
    """
    target = run.target_K
    if target is None:
        raise AnalysisError(f"{run.name}: no target temperature (constant energy, or no input)")
    return target
