"""How a deviation becomes a verdict: size and significance, runs that are too short, and what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import read_run
from analysis.assessment import assess
from analysis.measure import measure
from analysis.rules import CAUSES, RULES
from analysis.statistics import Estimate
from analysis.verdicts import Deviation, judge
from analysis_judged import SETTING, alarms, run_of, verdict
from analysis_runs import (
    clean_columns,
    water_positions,
    water_velocities,
    with_,
    write_clean,
    write_setting,
    write_table,
    write_trajectory,
)


def test_short_run_says_how_much_longer(tmp_path):
    found = run_of(tmp_path / "short", SETTING, 250, 13)
    own = verdict(found, "equipartition", "O")
    assert found.status == "too short"
    assert own.status == "too short"
    assert own.more_ps > 0
    enough = int(250 * (1.0 + 1.5 * own.more_ps / 1.0))
    assert verdict(run_of(tmp_path / "long", SETTING, enough, 13), "equipartition", "O").status == "pass"


def test_time_that_is_missing_follows_from_the_error_bar():
    """Error 2 K against 3 K tolerated at 4 sigmas: (4 * 2/3)^2 = 7.1 times as long."""
    own = judge(Deviation("temperature", "", Estimate(0.5, 2.0, "K", 1e6), 300.0), duration_ps=10.0)
    assert own.status == "too short"
    assert own.more_ps == pytest.approx(10.0 * ((4.0 * 2.0 / 3.0) ** 2 - 1.0), rel=1e-4)


def test_a_large_deviation_with_an_error_bar_from_few_blocks_is_no_pass():
    """Diffusion 43 % off, by 6.2 errors of 8 blocks: what is not enough to fail is not enough to pass."""
    apart = Estimate(-0.10, 0.016, "A^2/ps", 8.0)
    own = judge(Deviation("diffusion", "", apart, 0.23), duration_ps=50.0)
    assert own.status == "too short"
    assert 50.0 < own.more_ps < 500.0
    more = Estimate(-0.10, 0.008, "A^2/ps", 8.0)
    assert judge(Deviation("diffusion", "", more, 0.23), duration_ps=200.0).status == "fail"


@pytest.mark.parametrize(
    ("value", "error", "status"),
    [
        (0.5, 0.2, "pass"),
        (2.0, 0.2, "warn"),
        (9.0, 0.3, "fail"),
        (9.0, 4.0, "too short"),
        (-9.0, 0.3, "fail"),
    ],
)
def test_a_verdict_needs_both_size_and_significance(value, error, status):
    own = judge(Deviation("temperature", "", Estimate(value, error, "K", 1e4), 300.0), duration_ps=10.0)
    assert own.status == status


def test_a_mean_far_outside_the_spread_of_one_sample_is_significant_however_few_samples():
    slow = Estimate(-150.0, 16.0, "K", 2.3)
    assert judge(Deviation("molecules", "vibration", slow, 300.0), duration_ps=4.0).status == "too short"
    known = Deviation("molecules", "vibration", slow, 300.0, sample_spread=30.6)
    assert judge(known, duration_ps=4.0).status == "fail"


def test_many_subjects_raise_the_significance_that_is_wanted():
    borderline = Deviation("modes", "mode 3", Estimate(8.0, 1.9, "K", 1e5), 300.0)
    assert judge(borderline, duration_ps=10.0).status == "fail"
    assert judge(borderline, duration_ps=10.0, n_subjects=32).status != "fail"


def test_every_rule_names_causes_that_exist_and_a_reference():
    for rule in RULES.values():
        assert set(rule.causes) <= set(CAUSES)
        assert rule.reference
        assert rule.fail is None or rule.fail >= rule.warn > 0


def test_missing_columns_leave_gaps_and_the_rest_is_computed(tmp_path):
    columns = clean_columns(SETTING, 2500, 14)
    kept = {name: columns[name] for name in ("step", "time{picosecond}", "conserved{electronvolt}")}
    write_setting(tmp_path, SETTING)
    write_table(tmp_path / "simulation.out", kept)
    found = assess(read_run(tmp_path))
    assert "drift" in found.measured.estimates
    assert any("add temperature{kelvin}" in gap for gap in found.measured.gaps)


@pytest.fixture
def without_temperatures(tmp_path) -> Path:
    """A run of 2 waters at constant energy with trajectories, and only `conserved` among its properties."""
    setting = with_(SETTING, ensemble="nve", n_waters=2)
    columns = clean_columns(setting, 2200, 14)
    kept = {name: columns[name] for name in ("step", "time{picosecond}", "conserved{electronvolt}")}
    write_setting(tmp_path / "run", setting)
    write_table(tmp_path / "run" / "simulation.out", kept)
    positions = water_positions(setting) + 0.01 * np.random.default_rng(14).normal(size=(2200, 6, 3))
    velocities = water_velocities(setting, 2200, 14)
    write_trajectory(tmp_path / "run" / "simulation.pos.xyz", setting, positions, "positions", "angstrom")
    write_trajectory(tmp_path / "run" / "simulation.vel.xyz", setting, velocities, "velocities", "a/ps")
    return tmp_path / "run"


def test_molecules_without_a_temperature_to_compare_with_are_a_gap(without_temperatures):
    found = assess(read_run(without_temperatures))
    assert "temperature.rotation" in found.measured.estimates
    assert not any(own.deviation.rule == "molecules" for own in found.verdicts)
    assert sum("parts of the system are judged against it" in gap for gap in found.measured.gaps) == 1
    assert "" in found.measured.spectra


def test_bands_without_a_temperature_of_their_own_are_judged_by_that_of_the_reference(without_temperatures):
    run = read_run(without_temperatures)
    with_columns = without_temperatures.parent / "reference"
    write_clean(with_columns, with_(SETTING, ensemble="nve", n_waters=2), 2200, 14)
    for name in ("simulation.pos.xyz", "simulation.vel.xyz"):
        (with_columns / name).write_bytes((without_temperatures / name).read_bytes())
    found = assess(run, assess(read_run(with_columns)))
    bands = [own for own in found.verdicts if own.deviation.rule == "bands"]
    assert bands
    assert all(own.deviation.estimate.value == pytest.approx(0.0, abs=1e-9) for own in bands)


def test_correction_of_diffusion_without_a_temperature_is_a_gap(without_temperatures, monkeypatch):
    monkeypatch.setattr("analysis.dynamics.displacement", lambda run: None)
    monkeypatch.setattr("analysis.dynamics.diffusion", lambda moved: Estimate(0.2, 0.01, "A^2/ps", 8.0))
    found = measure(read_run(without_temperatures), viscosity_mPa_s=0.9)
    assert "diffusion_corrected" not in found.estimates
    assert any("finite-size correction of diffusion wants a temperature" in gap for gap in found.gaps)


def test_runs_without_an_input_are_judged_by_what_they_wrote(tmp_path):
    run = write_clean(tmp_path, SETTING, 2500)
    (run / "input.xml").unlink()
    write_trajectory(
        run / "simulation.pos_0.xyz", SETTING, water_positions(SETTING)[None], "positions", "angstrom"
    )
    found = assess(read_run(run))
    assert "drift" in found.measured.estimates
    assert alarms(found) == []
