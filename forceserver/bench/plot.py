"""One figure: the time of every contender over that of ours, case by case; and time and memory against size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forceserver.bench.contenders import CONTENDERS
from forceserver.bench.results import CaseResult, Entry
from forceserver.bench.scaling import AXES, Axis, ScalingResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Our own in blues, i-PI's in oranges and greens, the limits in greys, whatever the selection.
COLOURS = dict(
    zip(
        CONTENDERS,
        (
            "#1f4e9c",
            "#4f7fd0",
            "#86a9e3",
            "#b9cdf0",
            "#b3541e",
            "#d97b33",
            "#eda765",
            "#c9a227",
            "#4c8c4a",
            "#888888",
            "#bbbbbb",
        ),
        strict=True,
    )
)


def draw(path: Path, results: Sequence[CaseResult], scaling: ScalingResult) -> bool:
    """Write the figure. False where there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = [result for result in results if result.measured]
    axes_of_scaling = [axis for axis in AXES if scaling.of(axis)]
    n_rows = len(drawn) + len(axes_of_scaling)
    if not n_rows:
        return False
    heights = [0.6 + 0.25 * len(result.measured) for result in drawn] + [3.0] * len(axes_of_scaling)
    figure, rows = plt.subplots(
        n_rows, 1, figsize=(8, sum(heights) + 0.5), height_ratios=heights, layout="constrained", squeeze=False
    )
    for result, (axes,) in zip(drawn, rows, strict=False):
        _draw_case(axes, result)
    for axis, (axes,) in zip(axes_of_scaling, rows[len(drawn) :], strict=True):
        _draw_scaling(axes, axis, scaling)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def _draw_case(axes: Axes, result: CaseResult) -> None:
    """Bars: how much longer than ours (without ours: than the fastest) each one takes."""
    entries = sorted(result.measured, key=lambda entry: entry.time.median, reverse=True)
    reference: Entry = result.find("ours") or entries[-1]
    ratios = [entry.slower_than(reference) for entry in entries]
    names = [entry.contender.name for entry in entries]
    medians = [ratio.median for ratio in ratios]
    # nan, of two that were never measured in turns, draws no bar.
    errors = [
        [ratio.median - ratio.low for ratio in ratios],
        [ratio.high - ratio.median for ratio in ratios],
    ]
    style: dict[str, Any] = {"xerr": errors, "capsize": 2, "color": [COLOURS[name] for name in names]}
    axes.barh(names, medians, **style)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_title(f"{result.case.name}: {result.case.title}", fontsize="medium", loc="left")
    axes.set_xlabel(
        f"time per step / that of {reference.contender.name} ({1e3 * reference.time.median:.1f} ms)"
    )


def _draw_scaling(axes: Axes, axis: Axis, scaling: ScalingResult) -> None:
    memory_axes = axes.twinx()
    for name in scaling.contenders(axis):
        sizes, times, memory = scaling.series(axis, name)
        axes.loglog(sizes, times, "o-", color=COLOURS[name], label=f"{name}, time")
        memory_axes.loglog(sizes, memory, "s:", color=COLOURS[name], alpha=0.6, label=f"{name}, memory")
    axes.set(xlabel=f"number of {axis}", ylabel="s per step")
    memory_axes.set_ylabel("peak MB")
    axes.legend(loc="upper left", fontsize="small")
    memory_axes.legend(loc="lower right", fontsize="small")
