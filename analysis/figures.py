"""Figures of a report, as SVG that takes its text colour from the page, so that one set is good in light and dark.

Axes say their units. Data colours were chosen to be told apart by colour-blind readers and on both backgrounds.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from analysis.assessment import Assessment
from analysis.kinetics import is_canonical
from analysis.series import FloatArray, Series
from analysis.statistics import Estimate, format_uncertain, slope

INK = "#010203"  # stands for the page's text colour
COLOURS = ("#3b82c4", "#e07b39", "#3a9d6e", "#b6589d", "#8a7fd6", "#c2a21f")
POINTS = 300
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: sharp, searchable, small
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Figure:
    """One figure of the report."""

    title: str
    caption: str
    svg: str


def figures_of(assessment: Assessment, reference: Assessment | None = None) -> list[Figure]:
    """All figures that a run has the data for."""
    drawn: list[Figure | None] = [
        draw(assessment, reference)
        for draw in (_drift, _temperatures, _equipartition, _budget, _spectrum, _distributions, _displacement)
    ]
    return [figure for figure in drawn if figure is not None]


@contextmanager
def _canvas(width: float = 5.0, height: float = 3.1) -> Iterator[tuple[Any, Callable[[], str]]]:
    """Axes to draw on, and a function that gives the SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(cast(Any, STYLE)):
        canvas = Canvas(figsize=(width, height))
        axes = canvas.add_subplot()

        def render() -> str:
            buffer = io.StringIO()
            canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
            return _for_the_page(buffer.getvalue())

        yield axes, render


def _for_the_page(svg: str) -> str:
    """Inline SVG: no prologue, page's text colour, the page's size."""
    svg = svg[svg.index("<svg") :]
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"',
        r"\1",
        re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1),
        count=1,
    )


def _thinned(series: Series, n_points: int = POINTS) -> tuple[FloatArray, FloatArray]:
    """Block means, at most `n_points`."""
    size = max(1, len(series) // n_points)
    kept = len(series) // size * size
    times, values = series.time_ps[-kept:], series.values[-kept:]
    return times.reshape(-1, size).mean(axis=1), values.reshape(-1, size).mean(axis=1)


def _drift(own: Assessment, reference: Assessment | None) -> Figure | None:
    series = own.measured.series.get("conserved")
    if series is None or len(series) < 8:
        return None
    rate = slope(series)
    with _canvas() as (axes, render):
        axes.plot(*_thinned(series), color=COLOURS[0], label=own.run.name)
        line = rate.value * (series.time_ps - series.time_ps.mean()) + series.values.mean()
        label = f"{format_uncertain(rate.value, rate.error)} meV/ps/atom"
        axes.plot(series.time_ps[[0, -1]], line[[0, -1]], color=COLOURS[1], ls="--", label=label)
        if reference is not None and "conserved" in reference.measured.series and reference is not own:
            axes.plot(
                *_thinned(reference.measured.series["conserved"]),
                color=INK,
                alpha=0.5,
                lw=1,
                label="reference",
            )
        axes.set(xlabel="time / ps", ylabel="conserved, meV/atom")
        axes.legend(fontsize=9.5)
        return Figure(
            "Energy balance",
            "The conserved quantity per atom from its first value. A slope is energy from nowhere.",
            render(),
        )


def _temperatures(own: Assessment, reference: Assessment | None) -> Figure | None:
    chosen = {
        name: series
        for name, series in own.measured.series.items()
        if name == "temperature" or name.startswith("temperature.")
    }
    if not chosen:
        return None
    with _canvas() as (axes, render):
        for colour, (name, series) in zip((INK, *COLOURS), chosen.items(), strict=False):
            axes.plot(
                *_thinned(series, 60),
                color=colour,
                label=name.removeprefix("temperature").lstrip(".") or "all",
            )
        if own.run.target_K is not None and is_canonical(own.run):
            axes.axhline(own.run.target_K, color=INK, lw=0.8, ls=":", label="target")
        axes.set(xlabel="time / ps", ylabel="kinetic temperature / K")
        axes.legend(fontsize=9.5, ncols=2)
        return Figure(
            "Temperature of each species",
            "Block means. Curves that part from each other, or from the target, are broken equipartition.",
            render(),
        )


def _equipartition(own: Assessment, reference: Assessment | None) -> Figure | None:
    rules = ("temperature", "equipartition", "molecules", "modes", "bands")
    rows = [verdict for verdict in own.verdicts if verdict.deviation.rule in rules]
    if not rows:
        return None
    order = {rule: place for place, rule in enumerate(rules)}
    rows.sort(key=lambda verdict: order[verdict.deviation.rule])
    with _canvas(5.0, 0.9 + 0.27 * len(rows)) as (axes, render):
        for place, verdict in enumerate(rows):
            found = verdict.deviation.estimate
            colour = {"fail": "#d1495b", "warn": COLOURS[1], "pass": COLOURS[2]}.get(
                verdict.status, "#888888"
            )
            if verdict.fail is not None:
                axes.barh(place, 2 * verdict.fail, left=-verdict.fail, height=0.7, color=INK, alpha=0.07)
            axes.errorbar(found.value, place, xerr=2 * found.error, fmt="o", color=colour, ms=5, capsize=2)
        axes.axvline(0.0, color=INK, lw=0.8, ls=":")
        axes.set_yticks(range(len(rows)), [verdict.deviation.subject or "all" for verdict in rows])
        axes.set(xlabel="deviation / K")
        axes.invert_yaxis()
        return Figure(
            "Who is hot, who is cold",
            "Deviation of each kind of motion, with two standard errors; the grey band is what the rule tolerates.",
            render(),
        )


def _budget(own: Assessment, reference: Assessment | None) -> Figure | None:
    found = own.measured.estimates
    names = {
        "drift": "slope of conserved",
        "nonconservative_power": "work of f − f_C",
        "bath_power": "heat to the bath",
    }
    rows: list[tuple[str, Estimate]] = [
        (label, found[name]) for name, label in names.items() if name in found
    ]
    if len(rows) < 2:
        return None
    with _canvas(5.0, 0.9 + 0.42 * len(rows)) as (axes, render):
        for place, (_, estimate) in enumerate(rows):
            axes.barh(place, estimate.value, height=0.55, color=COLOURS[place], alpha=0.85)
            axes.errorbar(estimate.value, place, xerr=2 * estimate.error, color=INK, capsize=3, lw=1)
        axes.axvline(0.0, color=INK, lw=0.7)
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.set(xlabel="power / meV/ps/atom")
        axes.invert_yaxis()
        return Figure(
            "Where the energy comes from and goes to",
            "In a steady state under a thermostat the three agree: what the non-gradient part of the forces does, "
            "what appears in the conserved quantity, what the bath takes away. Two standard errors.",
            render(),
        )


def _spectrum(own: Assessment, reference: Assessment | None) -> Figure | None:
    spectra = own.measured.spectra
    if not spectra:
        return None
    with _canvas() as (axes, render):
        names = [name for name in spectra if name] or [""]
        for colour, name in zip(COLOURS, names, strict=False):
            spectrum = spectra[name]
            inside = spectrum.wavenumber < 4500.0
            x, y, e = spectrum.wavenumber[inside], spectrum.density[inside], spectrum.error[inside]
            axes.plot(x, y, color=colour, label=name or "all", lw=1.3)
            axes.fill_between(x, y - e, y + e, color=colour, alpha=0.25, lw=0)
            if reference is not None and reference is not own and name in reference.measured.spectra:
                its = reference.measured.spectra[name]
                kept = its.wavenumber < 4500.0
                label = "reference" if name == names[0] else None
                axes.plot(its.wavenumber[kept], its.density[kept], color=INK, lw=0.8, ls="--", label=label)
        axes.set(xlabel="wavenumber / cm⁻¹", ylabel="spectrum / K cm", ylim=(0, None))
        axes.legend(fontsize=9.5)
        return Figure(
            "Velocity spectrum",
            "Its integral is the kinetic temperature: a band that grows against the reference is a hot band.",
            render(),
        )


def _distributions(own: Assessment, reference: Assessment | None) -> Figure | None:
    if not own.measured.distributions:
        return None
    with _canvas() as (axes, render):
        highest = 0.0
        for colour, (pair, found) in zip(COLOURS, own.measured.distributions.items(), strict=False):
            axes.plot(found.distance, found.mean, color=colour, label="–".join(pair), lw=1.3)
            axes.fill_between(
                found.distance,
                found.mean - found.error,
                found.mean + found.error,
                color=colour,
                alpha=0.3,
                lw=0,
            )
            beyond = found.mean[found.distance > 1.7]
            highest = max(highest, float(beyond.max()) if len(beyond) else 0.0)
            if reference is not None and reference is not own and pair in reference.measured.distributions:
                its = reference.measured.distributions[pair]
                axes.plot(its.distance, its.mean, color=INK, lw=0.8, ls="--")
        axes.set(xlabel="r / Å", ylabel="g(r)", ylim=(0, 1.15 * highest if highest else None))
        axes.legend(fontsize=9.5)
        return Figure(
            "Structure",
            "Radial distribution functions with their standard errors; bonds inside a molecule leave the frame. "
            "Dashed: the reference, where there is one.",
            render(),
        )


def _displacement(own: Assessment, reference: Assessment | None) -> Figure | None:
    moved = own.measured.displacement
    if moved is None:
        return None
    rate = own.measured.estimates["diffusion"]
    with _canvas() as (axes, render):
        spread = moved.blocks.std(axis=0, ddof=1) / np.sqrt(len(moved.blocks))
        label = f"D = {format_uncertain(rate.value, rate.error)} Å²/ps"
        axes.plot(moved.lag_ps, moved.mean, color=COLOURS[0], label=label)
        axes.fill_between(
            moved.lag_ps, moved.mean - spread, moved.mean + spread, color=COLOURS[0], alpha=0.25, lw=0
        )
        if reference is not None and reference is not own and reference.measured.displacement is not None:
            its = reference.measured.displacement
            axes.plot(its.lag_ps, its.mean, color=INK, lw=0.8, ls="--", label="reference")
        axes.set(xlabel="time / ps", ylabel="displacement² / Å²", ylim=(0, None), xlim=(0, None))
        axes.legend(fontsize=9.5)
        return Figure(
            "Diffusion", "Mean-squared displacement of molecular centres, finite box included.", render()
        )
