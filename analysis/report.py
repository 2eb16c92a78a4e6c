"""The report of one or several runs: report.json and a self-contained report.html.

Writes to a temporary name and renames, so that a reader never meets half a report.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analysis.assessment import Assessment
from analysis.evidence import Evidence
from analysis.figures import Figure, figures_of
from analysis.schema import report_model
from analysis.statistics import Estimate
from analysis.verdicts import Attribution, Verdict

HIGHLIGHTS = ("drift", "temperature", "width_temperature", "heating_rate", "diffusion", "estimator_mismatch")
WORDS = {
    "drift": "slope of the conserved quantity",
    "fluctuation": "fluctuation of the conserved quantity",
    "heating_rate": "heating",
    "temperature": "temperature",
    "width_temperature": "temperature told by the width",
    "bath_power": "heat to the bath",
    "nonconservative_power": "work of f - f_C",
    "autocorrelation_time.potential": "autocorrelation time of the potential",
    "evaluations_per_sample": "force evaluations per independent sample",
    "diffusion": "diffusion in this box",
    "diffusion_corrected": "diffusion, corrected for the box",
    "kinetic_cv": "quantum kinetic energy, centroid virial",
    "kinetic_td": "quantum kinetic energy, thermodynamic",
    "estimator_mismatch": "K_cv - K_td",
    "mismatch_from_modes": "K_cv - K_td that internal modes account for",
    "force_difference.rms": "f_D - f_C, root mean square",
    "force_difference.net": "net force of f_D - f_C per atom",
    "force_difference.correlation_time": "correlation time of f_D - f_C",
    "stretch_shift": "shift of the highest band",
    "volume": "volume",
    "volume_drift": "drift of the volume",
}


@dataclass(frozen=True)
class RunView:
    """One run as the page shows it."""

    assessment: Assessment
    figures: list[Figure]
    headline: str
    setting: str
    advice: list[Attribution]
    highlights: list[tuple[str, Estimate]]


def write_report(
    assessments: list[Assessment], directory: Path, *, reference: Assessment | None = None
) -> tuple[Path, Path]:
    """Write report.json and report.html into `directory`, creating it.

    Returns:
        The paths of the two files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    data = report_model(assessments, reference).model_dump_json(indent=2) + "\n"
    return (
        _replace(directory / "report.json", data),
        _replace(directory / "report.html", render_html(assessments, reference)),
    )


def _replace(path: Path, text: str) -> Path:
    scratch = path.with_suffix(path.suffix + ".part")
    scratch.write_text(text, encoding="utf-8")
    return scratch.replace(path)


def render_html(assessments: list[Assessment], reference: Assessment | None = None) -> str:
    """The page, with styles and figures inside."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("analysis", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["words"] = words
    environment.filters["time"] = time_text
    environment.filters["sigmas"] = sigma_text
    environment.filters["tolerated"] = tolerance_text
    page = environment.get_template("report.html.j2").render(
        views=[_view(own, reference) for own in assessments],
        reference=reference.run.name if reference is not None else None,
        comparison=comparison(assessments, reference),
    )
    return str(page)


def _view(own: Assessment, reference: Assessment | None) -> RunView:
    found = own.measured.estimates
    species = [name for name in found if _is_species(own, name)]
    names = [name for name in (*HIGHLIGHTS[:2], *species, *HIGHLIGHTS[2:]) if name in found]
    return RunView(
        assessment=own,
        figures=figures_of(own, reference),
        headline=headline(own),
        setting=setting(own),
        advice=advice_of(own),
        highlights=[(words(name), found[name]) for name in names[:6]],
    )


def _is_species(own: Assessment, key: str) -> bool:
    facts = own.run.facts
    return (
        facts is not None
        and facts.atoms is not None
        and key.removeprefix("temperature.") in facts.atoms.species
    )


def advice_of(own: Assessment) -> list[Attribution]:
    """Every cause once, that of the worst verdict first."""
    found: dict[str, Attribution] = {}
    for verdict in own.verdicts:
        for attribution in verdict.attributions:
            found.setdefault(attribution.cause, attribution)
    return list(found.values())


def sigma_text(verdict: Verdict) -> str:
    """Standard errors for people: nothing for facts, no more than 999."""
    return "" if verdict.deviation.exact else f"{round(max(min(verdict.sigmas, 999.0), -999.0), 1) + 0.0:.1f}"


def tolerance_text(verdict: Verdict) -> str:
    """What makes a warning, and what a failure."""
    return f"{verdict.warn:.2g}" + (f" / {verdict.fail:.2g}" if verdict.fail is not None else "")


def words(key: str) -> str:
    """An estimate's key in words."""
    if key in WORDS:
        return WORDS[key]
    name, _, subject = key.partition(".")
    kinds = {
        "temperature": "temperature of",
        "gyration": "radius of gyration of",
        "g_distance": "g(r) from reference,",
    }
    subject = subject.replace("mode.0", "the centroid").replace("mode.", "mode ").replace("band.", "band ")
    if name == "force_difference":
        return f"f_D - f_C on {subject.removeprefix('rms.')}"
    return f"{kinds.get(name, name)} {subject}".strip()


def time_text(duration_ps: float) -> str:
    """A time for people: 40 fs, 3.2 ps, 1.5 ns."""
    if duration_ps >= 1000.0:
        return f"{duration_ps / 1000.0:.3g} ns"
    return f"{duration_ps:.3g} ps" if duration_ps >= 0.1 else f"{duration_ps * 1000.0:.3g} fs"


def headline(own: Assessment) -> str:
    """One sentence that says how the run is."""
    worst = [verdict for verdict in own.verdicts if verdict.status == own.status]
    if own.status in ("fail", "warn"):
        first = worst[0]
        more = f", and {len(worst) - 1} more" if len(worst) > 1 else ""
        return f"{_capital(first.title)}: off by {first.deviation.estimate}{_significance(first)}{more}."
    if own.status == "too short" and not worst:
        return "Nothing could be judged; what is missing, and why, stands under 'Not computed'."
    if own.status == "too short":
        longest = max((verdict.more_ps for verdict in worst), default=0.0)
        checks = "a check needs" if len(worst) == 1 else f"{len(worst)} checks need up to"
        return f"Nothing wrong was found, but {checks} {time_text(longest)} more."
    return "Nothing wrong was found."


def _significance(verdict: Verdict) -> str:
    return "" if verdict.deviation.exact else f" ({min(abs(verdict.sigmas), 999.0):.0f} standard errors)"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def setting(own: Assessment) -> str:
    """Ensemble, thermostat, steps, beads and length in a line."""
    facts, evidence = own.run.facts, own.evidence
    parts = [time_text(own.run.duration_ps)]
    if facts is not None:
        parts = [facts.ensemble.upper(), evidence.thermostat, _forces(evidence), _steps(evidence), *parts]
        if facts.n_beads > 1:
            parts.append(f"{facts.n_beads} beads")
        if facts.atoms is not None:
            parts.append(f"{facts.atoms.n_atoms} atoms")
    return " · ".join(part for part in parts if part and part != "none")


def _forces(evidence: Evidence) -> str:
    if evidence.acts_directly:
        return "direct forces"
    if evidence.corrects_directly:
        return "direct forces, corrected"
    return "conservative forces" if evidence.forces_stated else "forces not stated"


def _steps(evidence: Evidence) -> str:
    if evidence.inner_steps > 1:
        return f"{evidence.outer_step_fs:g} fs = {evidence.inner_steps} x {evidence.inner_step_fs:g} fs"
    return f"{evidence.outer_step_fs:g} fs"


def comparison(
    assessments: list[Assessment], reference: Assessment | None
) -> list[tuple[str, list[tuple[Estimate | None, float | None]]]]:
    """Rows of the table of several runs: an estimate per run, and its distance from the reference in sigmas."""
    if len(assessments) < 2:
        return []
    keys = dict.fromkeys(key for own in assessments for key in own.measured.estimates)
    rows = []
    for key in keys:
        base = reference.measured.estimates.get(key) if reference is not None else None
        cells: list[tuple[Estimate | None, float | None]] = []
        for own in assessments:
            found = own.measured.estimates.get(key)
            apart = None
            if (
                found is not None
                and base is not None
                and own is not reference
                and found.error + base.error > 0
            ):
                apart = found.minus(base).sigmas_from(0.0)
            cells.append((found, apart))
        if sum(cell[0] is not None for cell in cells) > 1:
            rows.append((words(key), cells))
    return rows
