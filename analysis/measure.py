"""Everything that can be measured of a run, with what could not be and why.

Units are those of the estimators. Keys of estimates are stable: they are the keys of report.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from analysis import (
    bonds,
    drift,
    dynamics,
    efficiency,
    kinetics,
    molecules,
    nonconservative,
    path_integrals,
    structure,
)
from analysis.errors import AnalysisError, MissingOutput
from analysis.outputs import key
from analysis.run import Run
from analysis.series import Series
from analysis.statistics import Estimate, autocorrelation_time, mean, settled, slope
from analysis.verdicts import Deviation

SMALLEST_POWER = 0.1  # meV/ps/atom, of what is expected to run through the bath of a ring polymer


@dataclass
class Measurements:
    """What was measured; filled once by `measure`, then only read."""

    estimates: dict[str, Estimate] = field(default_factory=dict)
    deviations: list[Deviation] = field(default_factory=list)
    series: dict[str, Series] = field(default_factory=dict)  # for the figures
    spectra: dict[str, dynamics.Spectrum] = field(default_factory=dict)  # by species; "" is all
    distributions: dict[tuple[str, str], structure.RadialDistribution] = field(default_factory=dict)
    displacement: dynamics.Displacement | None = None
    broken_bonds: list[bonds.BrokenBond] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)  # what is missing, why, and the remedy

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Whatever lacks its outputs becomes a gap; the rest goes on."""
        try:
            yield
        except AnalysisError as error:
            if str(error) not in self.gaps:
                self.gaps.append(str(error))

    def deviate(
        self, rule: str, subject: str, estimate: Estimate, expected: float = 0.0, **known: Any
    ) -> None:
        self.deviations.append(Deviation(rule, subject, estimate, expected, **known))


Progress = Callable[[str], None]


def measure(
    run: Run, *, viscosity_mPa_s: float | None = None, progress: Progress = lambda stage: None
) -> Measurements:
    """Measure all that the outputs of a run allow.

    Args:
        run: the run.
        viscosity_mPa_s: shear viscosity for the finite-size correction of diffusion; None: no correction.
        progress: told the name of each stage before it starts.
    """
    found = Measurements()
    stages: tuple[tuple[str, Callable[[Run, Measurements], None]], ...] = (
        ("bonds", _bonds),  # first: what follows is of little worth where molecules broke
        ("energy", _energy),
        ("temperatures", _temperatures),
        ("molecules", _molecules),
        ("path integrals", _path_integrals),
        ("volume", _volume),
        ("non-conservative forces", _nonconservative),
        ("spectra", _spectra),
        ("diffusion", _diffusion),
        ("structure", _structure),
    )
    for name, stage in stages:
        progress(name)
        with found.attempt():
            stage(run, found)
    if viscosity_mPa_s is not None:
        with found.attempt():
            _correct_diffusion(run, found, viscosity_mPa_s)
    return found


def _correct_diffusion(run: Run, found: Measurements, viscosity_mPa_s: float) -> None:
    if "diffusion" not in found.estimates:
        return
    cell = run.trajectory(molecules.centre_quantities(run)[0]).cell(0)
    if not np.allclose(cell, np.eye(3) * cell[0, 0], rtol=1e-3):
        raise AnalysisError("the finite-size correction of diffusion wants a cubic box; this one is not")
    measured = found.estimates.get("temperature") if kinetics.is_canonical(run) else None
    kelvin = measured.value if measured is not None else run.target_K
    if kelvin is None:
        raise MissingOutput(
            "the finite-size correction of diffusion wants a temperature: add temperature{kelvin} to <properties>"
        )
    shift = dynamics.finite_size_correction(kelvin, viscosity_mPa_s, float(cell[0, 0]))
    found.estimates["diffusion_corrected"] = found.estimates["diffusion"].shifted(shift)


def _bonds(run: Run, found: Measurements) -> None:
    broken = bonds.broken_bonds(run)
    if broken is None:
        return
    began = bonds.bond_positions(run).step(0)
    if began > 0:
        found.gaps.append(f"bonds are followed from step {began} on, where the positions begin")
    found.broken_bonds = broken
    names = [own.name for own in broken]
    subject = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
    found.deviate("bonds", subject, Estimate(float(len(broken)), 0.0, "bonds", 1.0), exact=True)


def _energy(run: Run, found: Measurements) -> None:
    lost = sum(table.n_not_finite for table in run.tables)
    found.deviate("finite", "", Estimate(float(lost), 0.0, "rows", 1.0), exact=True)
    conserved = run.series("conserved")
    n_atoms, rate = run.atoms.n_atoms, drift.energy_drift(run)
    found.series["conserved"] = conserved.with_values(
        (conserved.values - conserved.values[0]) * 1e3 / n_atoms, unit="meV/atom"
    )
    found.estimates["drift"] = rate
    found.estimates["fluctuation"] = drift.energy_fluctuation(conserved, n_atoms)
    _balance(run, found, rate)
    _seams(run, found, conserved)
    if run.facts is not None and run.facts.thermostat is not None:
        with found.attempt():
            found.series["bath_heat"] = drift.bath_heat(run)
            heat = slope(found.series["bath_heat"]).scaled(1e3 / n_atoms, unit=drift.POWER_UNIT)
            found.estimates["bath_power"] = heat
    with found.attempt():
        potential = run.series("potential")
        memory = autocorrelation_time(settled(potential))
        found.estimates["autocorrelation_time.potential"] = memory
        if run.facts is not None and run.facts.timestep_fs > 0:
            found.estimates["evaluations_per_sample"] = efficiency.evaluations_per_sample(run.facts, memory)


def _balance(run: Run, found: Measurements, rate: Estimate) -> None:
    """The slope of `conserved`, by the rule for its ensemble: what friction makes of every step is no alarm."""
    bath = run.facts.thermostat if run.facts is not None else None
    is_ring = run.facts is not None and run.facts.n_beads > 1
    if bath is None:
        found.deviate("drift", "", rate)
    elif is_ring and bath.is_pile:
        usual = max(drift.friction_power(run), SMALLEST_POWER)
        beyond = math.copysign(max(abs(rate.value) - usual, 0.0), rate.value)
        found.deviate("ring throughput", "", replace(rate, value=beyond), usual)
    elif is_ring and not bath.friction_is_known:
        found.gaps.append(
            f"power through the bath is not judged: how much the friction of '{bath.mode}' makes of every step of a ring polymer "
            "is not known (PIGLET on 4 beads, exact forces, 0.5 fs: 33 meV/ps/atom)"
        )
    else:
        found.deviate("throughput", "", rate)


def _seams(run: Run, found: Measurements, conserved: Series) -> None:
    """Jumps of `conserved` where restarts took over, beyond its usual drift and against its usual steps."""
    table = next(table for table in run.tables if key("conserved") in table.columns)
    steps = np.diff(conserved.values) * 1e3 / run.atoms.n_atoms
    if not len(steps):
        return
    intervals = np.diff(conserved.time_ps)
    jumps = steps - np.median(steps) * intervals / np.median(intervals)
    usual = 1.4826 * float(np.median(np.abs(jumps - np.median(jumps))))
    for row in table.rewinds:
        if 0 < row <= len(steps):
            jump = Estimate(float(jumps[row - 1]), usual, "meV/atom", float(len(steps)))
            found.deviate("seam", f"at {conserved.time_ps[row]:.4g} ps", jump)


def _temperatures(run: Run, found: Measurements) -> None:
    with found.attempt():
        _whole(run, found)
    _species(run, found)


def _whole(run: Run, found: Measurements) -> None:
    whole = kinetics.temperature_series(run)
    found.series["temperature"] = whole
    found.estimates["temperature"] = mean(settled(whole))
    target = run.target_K
    if not kinetics.is_canonical(run):
        found.gaps.append(_by_design(run))
    elif target is None:
        found.estimates["heating_rate"] = drift.heating_rate(whole)
    else:
        spread = target * np.sqrt(2.0 / kinetics.degrees_of_freedom(run).remaining)
        excess = kinetics.remembering_bath(run, found.estimates["temperature"].shifted(-target), spread)
        found.deviate("temperature", "", excess, target, sample_spread=spread)
        kept = settled(whole)
        found.deviate("stationary", "", slope(kept).scaled(kept.duration_ps, unit="K"), target)
        with found.attempt():
            width = kinetics.width_temperature(run)
            found.estimates["width_temperature"] = width
            if run.facts is not None and run.facts.thermostat is not None:
                # Of the width squares count: half of the variance, forgotten in tau/2, half of that in the root.
                excess = kinetics.remembering_bath(run, width.shifted(-target), target / np.sqrt(8.0))
                found.deviate("width", "", excess, target)


def _by_design(run: Run) -> str:
    """Why temperatures are not judged."""
    facts = run.require_facts("the thermostat")
    modes = sorted(facts.noncanonical_modes)
    if not modes:
        held = (
            "at the end of a step of the splitting baoab momenta are colder than the bath by (omega dt)^2/4, positions are "
            "right; write <dynamics splitting='obabo'>, or halve the time step, to have them judged"
        )
    elif facts.thermostat is not None and facts.thermostat.mode.startswith("pile"):
        held = "pile_centroid_t gives the centroid a temperature of its own by design"
    elif len(modes) == facts.n_beads:
        held = "<C> of the thermostat holds all motion off k_B T, which is quantum by design"
    else:
        names = ", ".join(map(str, modes))
        held = f"<C> of the thermostat holds ring-polymer modes {names} off k_B T, which is quantum by design"
    return f"mean temperature, its width, equipartition and K_cv - K_td are not judged: {held}"


def _species(run: Run, found: Measurements) -> None:
    if len(run.atoms.species) < 2:
        return
    for label in kinetics.moving_species(run):
        if not (run.has("temperature", atom=label) or run.has("kinetic_md", atom=label)):
            found.gaps.append(
                f"no temperature({label}){{kelvin}} in <properties>: add it, a mean temperature hides what species do"
            )
            continue
        with found.attempt():
            own = kinetics.temperature_series(run, label)
            found.series[f"temperature.{label}"] = own
            found.estimates[f"temperature.{label}"] = mean(settled(own))
            if kinetics.is_canonical(run):
                n_freedom = kinetics.degrees_of_freedom(run, label).remaining
                _share(run, found, "equipartition", label, own, n_freedom)


def _share(
    run: Run,
    found: Measurements,
    rule: str,
    subject: str,
    own: Series,
    n_freedom: float,
    mode: int | None = None,
) -> None:
    """Whether some degrees of freedom have the temperature of the bath or, at constant energy, that of all others.

    Raises:
        MissingOutput: at constant energy, where the temperature of all others was not written.
    """
    target = run.target_K
    if target is not None:
        excess = mean(settled(own)).shifted(-target)
    elif "temperature" not in found.series:
        raise MissingOutput(
            "no temperature{kelvin} in <properties>: add it, without a thermostat parts of the system are judged against it"
        )
    else:
        whole = found.series["temperature"]
        everyone = np.interp(own.time_ps, whole.time_ps, whole.values)
        excess = mean(settled(own.with_values(own.values - everyone, unit="K")))
        target = float(np.mean(whole.values))
    spread = target * float(np.sqrt(2.0 / n_freedom))
    excess = kinetics.remembering_bath(run, excess, spread, mode)
    found.deviate(rule, subject, excess, target, sample_spread=spread)


def _molecules(run: Run, found: Measurements) -> None:
    for part, (own, n_freedom) in molecules.part_temperature_series(run).items():
        found.estimates[f"temperature.{part}"] = mean(settled(own))
        if kinetics.is_canonical(run, 0):  # trajectories are those of the centroid
            with found.attempt():
                _share(run, found, "molecules", part, own, n_freedom, mode=0)


def _path_integrals(run: Run, found: Measurements) -> None:
    if run.facts is None or run.facts.n_beads < 2:
        return
    target = run.facts.temperature_K
    with found.attempt():
        _modes(run, found)
    for label, radius in path_integrals.gyration_radii(run).items():
        found.estimates[f"gyration.{label}"] = radius
    # Suzuki-Chin sampling weights beads unequally: its kinetic energies are other estimators.
    judged = kinetics.is_canonical(run) and run.facts.ensemble not in ("sc", "scnpt")
    with found.attempt():
        found.estimates |= path_integrals.quantum_kinetic_energies(run)
        per_atom = 1e3 / run.atoms.n_atoms
        mismatch = path_integrals.estimator_mismatch(run).scaled(per_atom, unit="meV/atom")
        found.estimates["estimator_mismatch"] = mismatch
        if judged and run.target_K is not None:
            found.deviate("estimators", "", mismatch)
    if judged and target is not None:
        with found.attempt():
            accounted = path_integrals.mismatch_from_temperatures(run, target)
            found.estimates["mismatch_from_modes"] = accounted.scaled(
                1e3 / run.atoms.n_atoms, unit="meV/atom"
            )


def _modes(run: Run, found: Measurements) -> None:
    modes = kinetics.mode_temperatures(run)
    if 0 not in modes and kinetics.degrees_of_freedom(run, mode=0).remaining > 0.0:
        found.gaps.append(
            "no temperature(nm=0){kelvin}: add it, no other estimator sees the heat of the centroid"
        )
    for mode, own in modes.items():
        found.estimates[f"temperature.mode.{mode}"] = own
        target = run.target_K
        if target is not None and kinetics.is_canonical(run, mode):
            spread = target * float(np.sqrt(2.0 / kinetics.degrees_of_freedom(run, mode=mode).remaining))
            subject = "centroid" if mode == 0 else f"mode {mode}"
            excess = kinetics.remembering_bath(run, own.shifted(-target), spread, mode)
            found.deviate("modes", subject, excess, target, sample_spread=spread)


def _volume(run: Run, found: Measurements) -> None:
    if run.facts is None or run.facts.pressure_GPa is None:
        return
    volume = run.series("volume")
    found.series["volume"] = volume
    relative = 100.0 / float(np.mean(volume.values))
    found.estimates["volume"] = mean(settled(volume))
    found.estimates["volume_drift"] = slope(settled(volume)).scaled(relative, unit="%/ps")
    found.deviate("volume", "", found.estimates["volume_drift"])


def _nonconservative(run: Run, found: Measurements) -> None:
    if run.facts is None or not any(
        own.role.startswith(("direct", "blended")) for own in run.facts.components
    ):
        return
    with found.attempt():
        apart = nonconservative.force_difference(run)
        found.estimates["force_difference.rms"] = apart.rms
        found.estimates["force_difference.net"] = apart.net
        found.estimates["force_difference.correlation_time"] = apart.correlation_ps
        for label, own in apart.rms_by_species.items():
            found.estimates[f"force_difference.rms.{label}"] = own
    if run.facts.inner_steps == 1 and run.facts.n_beads == 1:
        found.series["nonconservative_power"] = nonconservative.power_series(run)
        found.estimates["nonconservative_power"] = mean(found.series["nonconservative_power"])


def _spectra(run: Run, found: Measurements) -> None:
    found.spectra[""] = dynamics.velocity_spectrum(run)
    if len(run.atoms.species) > 1:
        for label in run.atoms.species:
            found.spectra[label] = dynamics.velocity_spectrum(run, label)


def _diffusion(run: Run, found: Measurements) -> None:
    found.displacement = dynamics.displacement(run)
    found.estimates["diffusion"] = dynamics.diffusion(found.displacement)


def _structure(run: Run, found: Measurements) -> None:
    found.distributions = structure.radial_distributions(run)
