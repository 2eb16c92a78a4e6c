"""report.json: what it holds, under which keys, in which units. Keys are stable within a version of the schema."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from analysis.assessment import Assessment
from analysis.inputfile import RunFacts
from analysis.rules import RULES
from analysis.statistics import Estimate
from analysis.verdicts import Verdict, finite_sigmas

SCHEMA_VERSION = 1


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EstimateModel(_Model):
    """A number with its error."""

    value: float | None = Field(description="in `unit`; null where it is not finite")
    error: float | None = Field(description="one standard error, in `unit`")
    unit: str
    n_effective: float | None = Field(description="independent samples (or blocks) behind it")
    text: str = Field(description="value(error in the last digits) unit")


class AttributionModel(_Model):
    """A suspected cause."""

    cause: str = Field(description="name of the cause in analysis/rules.py")
    because: str
    remedy: str


class VerdictModel(_Model):
    """One check."""

    rule: str = Field(description="name of the rule in analysis/rules.py")
    subject: str = Field(description="species, mode, band, pair, bonds; empty for the run as a whole")
    title: str
    status: Literal["pass", "warn", "fail", "too short"]
    deviation: EstimateModel = Field(description="from what was expected")
    expected: float = Field(description="what relative tolerances refer to, in the unit of the deviation")
    sigmas: float | None = Field(
        description="deviation in standard errors, as a normal deviate; null if infinite"
    )
    warn: float = Field(description="tolerance, in the unit of the deviation")
    fail: float | None = Field(description="tolerance; null: at worst a warning")
    more_ps: float = Field(description="how much longer to run for a verdict, ps; 0 unless too short")
    reference: str
    attributions: list[AttributionModel]


class FactsModel(_Model):
    """What the input says."""

    ensemble: str
    temperature_K: float | None
    thermostat: str | None
    tau_fs: float | None
    timestep_fs: float = Field(description="of the outermost level")
    inner_steps: int = Field(description="M, innermost steps per outer step")
    n_beads: int
    n_atoms: int | None
    species: dict[str, int]
    components: list[str] = Field(description="role or name, weight and MTS weights of each force component")


class BrokenBondModel(_Model):
    """A bond of the first frame that is not there in the last."""

    atoms: tuple[int, int] = Field(description="from 0")
    length: float = Field(description="A, in the last frame")
    step: int = Field(description="of i-PI, from which on it is too long")


class RunModel(_Model):
    """One run."""

    name: str
    status: Literal["pass", "warn", "fail", "too short"]
    duration_ps: float
    facts: FactsModel | None = Field(description="null where no input was found")
    estimates: dict[str, EstimateModel]
    verdicts: list[VerdictModel] = Field(description="the worst first")
    broken_bonds: list[BrokenBondModel] = Field(description="in the order of breaking")
    gaps: list[str] = Field(description="what could not be computed, why, and what to add to the input")


class ReportModel(_Model):
    """The whole file."""

    schema_version: int = SCHEMA_VERSION
    reference: str | None = Field(description="name of the run that the others were compared with")
    runs: list[RunModel]


def report_model(assessments: list[Assessment], reference: Assessment | None) -> ReportModel:
    """The content of report.json."""
    return ReportModel(
        reference=reference.run.name if reference is not None else None,
        runs=[_run(assessment) for assessment in assessments],
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _estimate(own: Estimate) -> EstimateModel:
    return EstimateModel(
        value=_finite(own.value),
        error=_finite(own.error),
        unit=own.unit,
        n_effective=_finite(own.n_effective),
        text=str(own),
    )


def _verdict(own: Verdict) -> VerdictModel:
    return VerdictModel(
        rule=own.deviation.rule,
        subject=own.deviation.subject,
        title=own.title,
        status=own.status,
        deviation=_estimate(own.deviation.estimate),
        expected=own.deviation.expected,
        sigmas=finite_sigmas(own),
        warn=own.warn,
        fail=own.fail,
        more_ps=own.more_ps if math.isfinite(own.more_ps) else 0.0,
        reference=RULES[own.deviation.rule].reference,
        attributions=[
            AttributionModel(cause=cause.cause, because=cause.because, remedy=cause.remedy)
            for cause in own.attributions
        ],
    )


def _facts(facts: RunFacts) -> FactsModel:
    labels = facts.atoms.labels if facts.atoms is not None else ()
    return FactsModel(
        ensemble=facts.ensemble,
        temperature_K=facts.temperature_K,
        thermostat=facts.thermostat.mode if facts.thermostat is not None else None,
        tau_fs=facts.thermostat.tau_fs if facts.thermostat is not None else None,
        timestep_fs=facts.timestep_fs,
        inner_steps=facts.inner_steps,
        n_beads=facts.n_beads,
        n_atoms=len(labels) or None,
        species={label: labels.count(label) for label in dict.fromkeys(labels)},
        components=[
            f"{own.role or own.name or own.forcefield} x {own.weight:g} {list(own.mts_weights)}"
            for own in facts.components
        ],
    )


def _run(assessment: Assessment) -> RunModel:
    run = assessment.run
    return RunModel(
        name=run.name,
        status=assessment.status,
        duration_ps=run.duration_ps,
        facts=_facts(run.facts) if run.facts is not None else None,
        estimates={name: _estimate(own) for name, own in assessment.measured.estimates.items()},
        verdicts=[_verdict(own) for own in assessment.verdicts],
        broken_bonds=[
            BrokenBondModel(atoms=own.atoms, length=own.length, step=own.step)
            for own in assessment.measured.broken_bonds
        ],
        gaps=assessment.measured.gaps,
    )
