"""What a terminal shows: one table for each case, one line for each contender, and a summary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from forceserver.bench.results import CaseResult, Entry
from forceserver.bench.scaling import AXES, ScalingResult
from forceserver.bench.statistics import Interval, median_interval

HARDLY = 1e-7  # s


def print_case(console: Console, result: CaseResult) -> None:
    """The table of one case; below it who was left out and why, and where the time goes."""
    console.print(_case_table(result))
    for line in case_notes(result):
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    console.print()


def _case_table(result: CaseResult) -> Table:
    case = result.case
    each = "of any simulation" if case.n_simulations > 1 else f"of {case.timestep_fs:g} fs"
    table = Table(title=f"{case.name}: {case.title}; {result.n_atoms} atoms", title_justify="left")
    table.add_column("contender", no_wrap=True)
    heads = (
        "processes\nx threads",
        f"ms per step\n{each}",
        "CPU ms\nper step",
        "x the\nlimit",
        "ours is faster\nby a factor of",
        "peak MB\n(own MB)",
    )
    for head in heads:
        table.add_column(head, justify="right")
    ours, limit = result.find("ours"), result.limit
    for entry in sorted(result.measured, key=lambda entry: entry.time.median):
        table.add_row(
            entry.contender.name,
            _processes(entry, result),
            describe_time(entry.time),
            f"{1e3 * median_interval(entry.processor).median:.0f}" if entry.processor else "",
            f"{entry.slower_than(limit).median:.2f}" if limit is not None else "",
            "" if ours is None or entry is ours else describe_ratio(entry.slower_than(ours)),
            "" if entry.memory is None else f"{entry.memory.peak_MB:.0f} ({entry.memory.own_MB:.0f})",
        )
    for entry in result.entries:
        if entry.failure:
            table.add_row(entry.contender.name, "failed", "", "", "", "", "", style="red")
    return table


def describe_time(time: Interval) -> str:
    """Milliseconds with the interval, e.g. "48.31 [47.90, 49.22]"."""
    digits = 3 if time.median < 0.01 else 2 if time.median < 0.1 else 1 if time.median < 1 else 0
    return f"{1e3 * time.median:.{digits}f} [{1e3 * time.low:.{digits}f}, {1e3 * time.high:.{digits}f}]"


def describe_ratio(ratio: Interval) -> str:
    """A factor with its interval; "1.080 [?]" of two that were never measured in turns."""
    if math.isnan(ratio.low):
        return f"{ratio.median:.3f} [?]"
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def case_notes(result: CaseResult) -> Iterator[str]:
    """In words: what the table cannot say."""
    for entry in result.entries:
        if entry.left_out:
            yield f"without {entry.contender.name}: {entry.left_out}"
        if entry.failure:
            yield f"{entry.contender.name} failed: {entry.failure}"
    yield from (f"WARNING: {words}" for words in result.disagreements())
    for entry in result.measured:
        if entry.phases:
            own = f"our share (neither model nor i-PI) {100 * entry.own_share:.1f} %"
            yield f"{entry.contender.name}, ms per step: {_milliseconds(entry.phases)}; {own}"
        if entry.dissection:
            yield f"{entry.contender.name}, ms per step: {_milliseconds(entry.dissection)}"
        if entry.gpu_MB is not None and not (entry.plan is not None and entry.plan.is_bare):
            yield f"{entry.contender.name}: {entry.gpu_MB:.0f} MB of GPU memory"


def _milliseconds(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{phase} {1e3 * value:.3f}" for phase, value in seconds.items() if abs(value) > HARDLY)


def _processes(entry: Entry, result: CaseResult) -> str:
    plan = entry.plan
    assert plan is not None
    count = len(plan.commands) or (1 if plan.is_bare else result.case.n_simulations)
    return f"{count} x {plan.threads}"


def print_summary(console: Console, results: Sequence[CaseResult]) -> None:
    """One line for each case: ours against the limit, the best of i-PI's own ways, and the plain driver."""
    table = Table(title="ours is faster by a factor of", title_justify="left")
    table.add_column("case", no_wrap=True)
    for head in ("ours\nms per step", "the limit", "i-PI's best", "which is", "one plain driver"):
        table.add_column(head, justify="left" if head == "which is" else "right", no_wrap=True)
    for result in results:
        ours = result.find("ours")
        if ours is None:
            continue
        best, plain = result.best_peer, result.find("driver")
        table.add_row(
            result.case.name,
            describe_time(ours.time).partition(" ")[0],
            "" if result.limit is None else describe_ratio(result.limit.slower_than(ours)),
            "" if best is None else describe_ratio(best.slower_than(ours)),
            "" if best is None else best.contender.name,
            "" if plain is None else describe_ratio(plain.slower_than(ours)),
        )
    if table.row_count:
        console.print(table)


def print_scaling(console: Console, scaling: ScalingResult) -> None:
    """Time and memory against size, and the exponents."""
    for axis in AXES:
        results = scaling.of(axis)
        names = [entry.contender.name for entry in results[0].entries] if results else []
        table = Table(title=f"against the number of {axis}, conservative forces", title_justify="left")
        table.add_column(axis, justify="right")
        for name in names:
            table.add_column(f"{name}\nms per step", justify="right", no_wrap=True)
            table.add_column(f"{name}\npeak MB", justify="right", no_wrap=True)
        for result in results:
            cells = [str(scaling.size(axis, result))]
            for name in names:
                entry = result.find(name)
                cells.append("-" if entry is None else describe_time(entry.time))
                cells.append("" if entry is None or entry.memory is None else f"{entry.memory.peak_MB:.0f}")
            table.add_row(*cells)
        console.print(table)
        for line in scaling.describe(axis):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        console.print()
