"""Runs with known truth, judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from analysis import read_run
from analysis.assessment import Assessment, assess
from analysis.verdicts import Verdict
from analysis_runs import Setting, write_clean

SETTING = Setting(tau_fs=100.0)
LONG = 15_000  # 60 ps


def verdict(found: Assessment, rule: str, subject: str = "") -> Verdict:
    return next(
        own for own in found.verdicts if (own.deviation.rule, own.deviation.subject) == (rule, subject)
    )


def alarms(found: Assessment) -> list[str]:
    return [own.title for own in found.verdicts if own.status in ("warn", "fail")]


def causes(own: Verdict) -> list[str]:
    return [cause.cause for cause in own.attributions]


def run_of(
    directory: Path, setting: Setting, n_frames: int = LONG, seed: int = 0, **changed: np.ndarray
) -> Assessment:
    return assess(read_run(write_clean(directory, setting, n_frames, seed, **changed)))
