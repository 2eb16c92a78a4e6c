"""What is kept: all numbers as JSON, with what is needed to know where they come from. Times in s, memory in MB (10^6 bytes)."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from forceserver.bench.contenders import Setting
from forceserver.bench.measure import Options
from forceserver.bench.results import CaseResult, Entry
from forceserver.bench.scaling import AXES, Axis, ScalingResult
from forceserver.bench.statistics import Exponent, Interval
from forceserver.openmp import USERS_CHOICES
from forceserver.processes import n_cores

PACKAGES = ("forceserver", "ipi", "torch", "metatomic-torch", "vesin", "numpy")


def write_record(
    path: Path, results: Sequence[CaseResult], scaling: ScalingResult, setting: Setting, options: Options,
    model: Mapping[str, Any], structure: Path,
) -> None:  # fmt: skip
    """Write all of it, replacing what stood there in one go."""
    record = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": describe_machine(),
        "model": {"named": setting.model, **model},
        "structure": str(structure),
        "setting": {"device": setting.device, "threads": setting.threads, "clients": setting.clients},
        "options": asdict(options),
        "cases": [case_record(result) for result in results],
        "scaling": {axis: _scaling_record(scaling, axis) for axis in AXES if scaling.of(axis)},
    }
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    fresh.replace(path)


def describe_machine() -> dict[str, Any]:
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": n_cores(),
        "load_average": load,
        "openmp": openmp_environment(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def openmp_environment() -> dict[str, str]:
    """How threads wait: all processes inherit that. Their number is the bench's own affair."""
    names = (*USERS_CHOICES, "OMP_PROC_BIND", "OMP_PLACES")
    return {name: os.environ[name] for name in names if name in os.environ}


def case_record(result: CaseResult) -> dict[str, Any]:
    ours, limit = result.find("ours"), result.limit
    return {
        "name": result.case.name,
        "title": result.case.title,
        "n_atoms": result.n_atoms,
        "n_beads": result.case.n_beads,
        "n_inner_steps": result.case.n_inner_steps,
        "n_simulations": result.case.n_simulations,
        "timestep_fs": result.case.timestep_fs,
        "limit": limit.contender.name if limit else None,
        "disagreements": result.disagreements(),
        "contenders": [_entry_record(entry, ours, limit) for entry in result.entries],
    }


def _entry_record(entry: Entry, ours: Entry | None, limit: Entry | None) -> dict[str, Any]:
    record: dict[str, Any] = {"name": entry.contender.name, "is": entry.contender.title}
    if not entry.is_measured:
        return {**record, "left_out": entry.left_out or None, "failed": entry.failure or None}
    assert entry.plan is not None
    record |= {
        "commands": [" ".join(command) for _, command in entry.plan.commands],
        "threads_of_each": entry.plan.threads,
        "steps_in_a_repeat": entry.n_steps,
        "seconds_per_step": [None if math.isnan(each) else each for each in entry.seconds],
        "median": asdict(entry.time),
        "processor_seconds_per_step": entry.processor,
        "memory": asdict(entry.memory) if entry.memory else None,
        "gpu_MB": entry.gpu_MB,
        "first_geometry": dict(entry.answer),
    }
    if ours is not None and ours is not entry:
        record["ours_is_faster_by"] = _estimate(entry.slower_than(ours))
    if limit is not None:
        record["over_the_limit"] = _estimate(entry.slower_than(limit))
    if entry.phases:
        record |= {"seconds_by_phase": dict(entry.phases), "own_share": entry.own_share}
    if entry.dissection:
        record["seconds_of_the_model"] = dict(entry.dissection)
    return record


def _estimate(estimate: Interval | Exponent) -> dict[str, float | None]:
    """JSON knows no nan."""
    return {key: None if math.isnan(value) else value for key, value in asdict(estimate).items()}


def _scaling_record(scaling: ScalingResult, axis: Axis) -> dict[str, Any]:
    exponents = {name: scaling.exponents(axis, name) for name in scaling.contenders(axis)}
    return {
        "exponents": {
            name: {"all_sizes": _estimate(each[0]), "larger_half": _estimate(each[1])}
            for name, each in exponents.items()
            if each is not None
        },
        "cases": [case_record(result) for result in scaling.of(axis)],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
