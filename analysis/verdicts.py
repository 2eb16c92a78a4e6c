"""Verdicts: a deviation, a rule, and what follows from the two; with a cause where the evidence names one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.evidence import Evidence
from analysis.rules import CAUSES, RULES, SIGMAS
from analysis.statistics import Estimate, errors_of

Status = Literal["pass", "warn", "fail", "too short"]
ORDER: tuple[Status, ...] = ("fail", "warn", "too short", "pass")


@dataclass(frozen=True)
class Deviation:
    """How far a quantity is from what theory or a reference expects of it."""

    rule: str  # a name in RULES
    subject: str  # "O", "mode 3"; "" for the run as a whole
    estimate: Estimate  # of the deviation; zero is perfect
    expected: float = 0.0  # what was expected, to which relative tolerances refer
    exact: bool = False  # a fact, not an estimate: no error bar to wait for
    sample_spread: float = math.inf  # standard deviation that theory gives a single sample, where it does


@dataclass(frozen=True)
class Attribution:
    """A cause, why it is suspected here, and what to change."""

    cause: str
    because: str
    remedy: str


@dataclass(frozen=True)
class Verdict:
    """The outcome of one rule for one subject."""

    deviation: Deviation
    status: Status
    sigmas: float
    warn: float  # tolerances in the unit of the deviation
    fail: float | None
    more_ps: float  # how much longer to run for a verdict; 0 unless "too short"
    attributions: tuple[Attribution, ...] = ()

    @property
    def title(self) -> str:
        """What was found, in words."""
        rule = RULES[self.deviation.rule]
        subject = f" ({self.deviation.subject})" if self.deviation.subject else ""
        return (rule.broken if self.status in ("fail", "warn") else rule.title) + subject


def required_sigmas(n_subjects: int) -> float:
    """Significance that keeps the false alarms of a rule constant, however many subjects it is applied to."""
    if n_subjects <= 1:
        return SIGMAS
    from scipy.stats import norm

    return float(norm.isf(norm.sf(SIGMAS) / n_subjects))


def judge(deviation: Deviation, *, duration_ps: float, n_subjects: int = 1) -> Verdict:
    """Apply its rule to a deviation.

    Fail or warn: beyond the tolerance, and significant. Too short: a deviation that should fail could hide in the error
    bar, an error bar from few samples being as uncertain here as it is there, or there are too few independent samples for
    an error bar at all; the time that is missing follows from error ~ 1/sqrt(time). Pass: the rest.

    Where theory gives the spread of a single sample, a mean that is many such spreads away is significant however slowly
    the series moves: no mean is less certain than one sample.
    """
    rule = RULES[deviation.rule]
    unit = abs(deviation.expected) if rule.relative else 1.0
    warn, fail = rule.warn * unit, None if rule.fail is None else rule.fail * unit
    estimate = deviation.estimate
    size, wanted = abs(estimate.value), required_sigmas(n_subjects)
    sigmas = estimate.sigmas_from(0.0)
    at_least = estimate.value / deviation.sample_spread
    enough = estimate.n_effective >= rule.min_effective
    if abs(at_least) > abs(sigmas) or (abs(at_least) >= wanted and not enough):
        sigmas, enough = at_least, True
    decisive = fail if fail is not None else warn
    errors = errors_of(wanted, max(estimate.n_effective, rule.min_effective))
    growth = max(
        (errors * estimate.error / decisive) ** 2, rule.min_effective / max(estimate.n_effective, 1e-3)
    )
    status: Status
    if size > warn and (deviation.exact or (abs(sigmas) >= wanted and enough)):
        status = "fail" if fail is not None and size > fail else "warn"
    elif growth > 1.0 and rule.can_wait and not deviation.exact:
        status = "too short"
    else:
        status = "pass"
    more = duration_ps * (growth - 1.0) if status == "too short" else 0.0
    return Verdict(deviation, status, sigmas, warn, fail, more)


def attribute(verdict: Verdict, evidence: Evidence) -> Verdict:
    """Add the causes that the evidence supports, likeliest first; at most two."""
    if verdict.status not in ("fail", "warn"):
        return verdict
    names = dict.fromkeys(RULES[verdict.deviation.rule].causes)
    found = [CAUSES[name] for name in names if CAUSES[name].applies(evidence)][:2]
    return Verdict(
        deviation=verdict.deviation,
        status=verdict.status,
        sigmas=verdict.sigmas,
        warn=verdict.warn,
        fail=verdict.fail,
        more_ps=verdict.more_ps,
        attributions=tuple(Attribution(c.name, c.because(evidence), c.remedy(evidence)) for c in found),
    )


def worst(verdicts: Sequence[Verdict]) -> Status:
    """The status of a run: its worst verdict; "too short" where nothing but rows and input could be judged."""
    present = {verdict.status for verdict in verdicts}
    status: Status = next((status for status in ORDER if status in present), "too short")
    is_measured = any(not verdict.deviation.exact for verdict in verdicts)
    return "too short" if status == "pass" and not is_measured else status


def finite_sigmas(verdict: Verdict) -> float | None:
    """Sigmas for a file: None where they are infinite or undefined."""
    return verdict.sigmas if math.isfinite(verdict.sigmas) else None
