"""How long a run must be until an artifact of a given strength is called a failure or a warning.

    python benchmarks/analysis_detection.py

Synthetic water, 64 molecules, velocities that forget within 50 fs. For each artifact and length: the share of seeded runs
in which the rule that is meant raises an alarm. The first length with nine in ten is printed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from analysis import read_run
from analysis.assessment import assess
from analysis_runs import Setting, clean_columns, water_velocities, with_, write_setting, write_table

SETTING = Setting()
LENGTHS_PS = (1, 2, 5, 10, 20, 50, 100)
SEEDS = 10
Columns = dict[str, np.ndarray]


def drifting(columns: Columns, strength: float) -> Columns:
    return columns | {
        "conserved{electronvolt}": columns["conserved{electronvolt}"]
        + strength * 0.192 * columns["time{picosecond}"]
    }


def hot(name: str) -> Callable[[Columns, float], Columns]:
    return lambda columns, strength: columns | {name: columns[name] * (1.0 + strength / 300.0)}


def narrow(columns: Columns, strength: float) -> Columns:
    energy = columns["kinetic_md{electronvolt}"]
    return columns | {"kinetic_md{electronvolt}": energy.mean() + (1.0 - strength) * (energy - energy.mean())}


ARTIFACTS = (
    (
        "drift at constant energy / meV/ps/atom",
        "drift",
        with_(SETTING, ensemble="nve"),
        drifting,
        (0.03, 0.3, 3.0),
    ),
    ("power through the bath / meV/ps/atom", "throughput", SETTING, drifting, (0.3, 3.0)),
    ("hot O / K", "equipartition", SETTING, hot("temperature(O){kelvin}"), (5.0, 10.0, 20.0, 50.0)),
    ("hot all / K", "temperature", SETTING, hot("kinetic_md{electronvolt}"), (3.0, 6.0, 12.0, 50.0)),
    ("narrow kinetic energy / share missing", "width", SETTING, narrow, (0.2, 0.4, 0.8)),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for title, rule, setting, spoil, strengths in ARTIFACTS:
            write_setting(directory, setting)
            for strength in strengths:
                print(
                    f"{title:42s} {strength:6g}   {_length(directory, rule, setting, spoil, strength)}",
                    flush=True,
                )


def _length(
    directory: Path, rule: str, setting: Setting, spoil: Callable[[Columns, float], Columns], strength: float
) -> str:
    for length_ps in LENGTHS_PS:
        n_frames = int(length_ps / setting.interval_ps)
        detected = 0
        for seed in range(SEEDS):
            velocities = water_velocities(setting, n_frames, seed)
            write_table(
                directory / "simulation.out",
                spoil(clean_columns(setting, n_frames, seed, velocities), strength),
            )
            found = assess(read_run(directory)).verdicts
            detected += any(own.deviation.rule == rule and own.status in ("warn", "fail") for own in found)
        if detected >= 0.9 * SEEDS:
            return f"{length_ps} ps"
    return f"more than {LENGTHS_PS[-1]} ps"


if __name__ == "__main__":
    main()
