"""From a run to its verdicts: measure, compare with a reference, judge, look for causes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from analysis import dynamics, structure
from analysis.evidence import Evidence, gather
from analysis.kinetics import is_canonical
from analysis.measure import Measurements, Progress, measure
from analysis.run import Run
from analysis.statistics import Estimate
from analysis.verdicts import ORDER, Deviation, Status, Verdict, attribute, judge, worst

STRETCHES = (2500.0, 4500.0)  # 1/cm


@dataclass(frozen=True, eq=False)
class Assessment:
    """A run, what was measured of it, and the verdicts, the worst first."""

    run: Run
    measured: Measurements
    evidence: Evidence
    verdicts: tuple[Verdict, ...]

    @property
    def status(self) -> Status:
        return worst(self.verdicts)


def assess(
    run: Run,
    reference: Assessment | None = None,
    *,
    viscosity_mPa_s: float | None = None,
    progress: Progress = lambda stage: None,
) -> Assessment:
    """Judge a run by the rules; with a reference, its dynamics and structure as well.

    Args:
        run: the run.
        reference: the assessment of a run that is trusted, conservative and at the same temperature.
        viscosity_mPa_s: shear viscosity for the finite-size correction of diffusion; None: no correction.
        progress: told the name of each stage before it starts.
    """
    measured = measure(run, viscosity_mPa_s=viscosity_mPa_s, progress=progress)
    if reference is not None:
        _compare(measured, run, reference)
    evidence = gather(
        run,
        measured.estimates.get("drift"),
        measured.estimates.get("nonconservative_power"),
        measured.estimates.get("mismatch_from_modes"),
        measured.broken_bonds,
    )
    measured.gaps += [
        f"{own.path.name}: {own.n_torn} torn {'frame was' if own.n_torn == 1 else 'frames were'} left out"
        for own in run.trajectories.values()
        if own.n_torn
    ]
    deviations = [*measured.deviations, *_deductions(evidence)]
    subjects = Counter(deviation.rule for deviation in deviations)
    verdicts = [
        attribute(judge(own, duration_ps=run.duration_ps, n_subjects=subjects[own.rule]), evidence)
        for own in deviations
    ]
    verdicts.sort(key=lambda verdict: ORDER.index(verdict.status))
    return Assessment(run, measured, evidence, tuple(verdicts))


def _deductions(evidence: Evidence) -> list[Deviation]:
    """What follows from the input alone."""
    if evidence.inner_steps < 2:
        return []
    ratio = evidence.outer_step_fs / evidence.outer_half_period_fs
    return [Deviation("outer step", "", Estimate(ratio, 0.0, "half periods", 1.0), exact=True)]


def _spectral_temperature(measured: Measurements, run: Run) -> Estimate | None:
    """Kinetic temperature of what a spectrum shows: of the centroid where there are several beads."""
    found = measured.estimates.get("temperature")
    if run.facts is None or run.facts.n_beads == 1:
        return found
    return measured.estimates.get("temperature.mode.0") or (found if is_canonical(run) else None)


def _compare(measured: Measurements, run: Run, reference: Assessment) -> None:
    """Distances from the reference in spectrum, diffusion and structure."""
    other = reference.measured
    kinetic = _spectral_temperature(other, reference.run)
    if "" in measured.spectra and "" in other.spectra and kinetic is not None:
        own, its = measured.spectra[""], other.spectra[""]
        for (low, high), found in dynamics.band_temperatures(own, its, kinetic.value).items():
            name = f"{low:.0f}-{high:.0f} 1/cm"
            measured.estimates[f"temperature.band.{low:.0f}-{high:.0f}"] = found
            expected = run.target_K if is_canonical(run, 0) else None
            expected = expected or (_spectral_temperature(measured, run) or kinetic).value
            if is_canonical(run, 0) == is_canonical(reference.run, 0):
                measured.deviate("bands", name, found.shifted(-expected), expected)
        if its.band(*STRETCHES).value > 0.05 * kinetic.value and dynamics.comparable(own, its, *STRETCHES):
            shift = own.centre(*STRETCHES).minus(its.centre(*STRETCHES))
            measured.estimates["stretch_shift"] = shift
            measured.deviate("spectrum", "", shift)
    if "diffusion" in measured.estimates and "diffusion" in other.estimates:
        its_rate = other.estimates["diffusion"]
        measured.deviate("diffusion", "", measured.estimates["diffusion"].minus(its_rate), its_rate.value)
    for pair, own_g in measured.distributions.items():
        if pair not in other.distributions:
            continue
        distance, floor = structure.distance_between(own_g, other.distributions[pair])
        name = "-".join(pair)
        measured.estimates[f"g_distance.{name}"] = distance
        excess = distance.shifted(-floor)
        kept = Estimate(
            max(excess.value, 0.0), float(np.hypot(excess.error, 0.5 * floor)), "A", excess.n_effective
        )
        measured.deviate("structure", name, kept)
