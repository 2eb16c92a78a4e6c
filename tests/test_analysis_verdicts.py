"""Verdicts: injected artifacts are detected and named, and sound runs pass."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ipi_inputs
from analysis import read_run, report
from analysis.assessment import assess
from analysis.evidence import gather, half_period_fs
from analysis.inputfile import read_facts
from analysis.rules import CAUSES
from analysis.run import Run
from analysis_judged import LONG, SETTING, alarms, causes, run_of, verdict
from analysis_runs import (
    Setting,
    clean_columns,
    kinetic_energies,
    ornstein_uhlenbeck,
    water_velocities,
    with_,
    write_clean,
    write_setting,
    write_table,
    write_trajectory,
)


def test_long_clean_run_passes_every_check(tmp_path):
    found = run_of(tmp_path, SETTING)
    assert alarms(found) == []
    assert {own.status for own in found.verdicts} == {"pass"}


@pytest.mark.parametrize("ensemble", ["nvt", "nve"])
def test_clean_runs_raise_no_alarm(tmp_path, ensemble):
    """12 seeded runs of 10 ps; the slow test below takes 300."""
    raised = [
        alarms(run_of(tmp_path / str(seed), with_(SETTING, ensemble=ensemble), 2500, seed))
        for seed in range(20)
    ]
    assert sum(map(bool, raised)) == 0, raised


@pytest.mark.slow
@pytest.mark.parametrize("tau_ps", [0.01, 0.05, 0.3])
def test_false_alarms_are_at_most_one_in_a_hundred(tmp_path, tau_ps):
    """Over 300 seeded runs of 10 ps whose velocities forget within tau: the worst verdict of all checks counts."""
    n_alarms = 0
    for seed in range(300):
        velocities = water_velocities(SETTING, 2500, seed, tau_ps=tau_ps)
        write_setting(tmp_path, SETTING)
        write_table(tmp_path / "simulation.out", clean_columns(SETTING, 2500, seed, velocities))
        n_alarms += bool(alarms(assess(read_run(tmp_path))))
    assert n_alarms <= 3


def test_drift_at_constant_energy_fails_and_direct_forces_are_named(tmp_path):
    setting = with_(SETTING, ensemble="nve", role="direct")
    columns = clean_columns(setting, 2500, 1)
    rise = columns["conserved{electronvolt}"] + 3.5e-3 * 192 * columns["time{picosecond}"]
    found = run_of(tmp_path, setting, 2500, 1, **{"conserved{electronvolt}": rise})
    own = verdict(found, "drift")
    assert own.status == "fail"
    assert own.deviation.estimate.value == pytest.approx(3.5, rel=0.01)
    assert causes(own) == ["direct forces"]


def test_the_same_drift_under_conservative_forces_is_not_blamed_on_direct_ones(tmp_path):
    setting = with_(SETTING, ensemble="nve", timestep_fs=2.0, stride=2)
    columns = clean_columns(setting, 2500, 1)
    rise = columns["conserved{electronvolt}"] + 3.5e-3 * 192 * columns["time{picosecond}"]
    own = verdict(run_of(tmp_path, setting, 2500, 1, **{"conserved{electronvolt}": rise}), "drift")
    assert own.status == "fail"
    assert causes(own) == ["time step", "unexplained"]


@pytest.mark.parametrize("stated", [True, False])
def test_forces_are_called_conservative_only_where_the_input_says_so(tmp_path, stated):
    setting = with_(SETTING, ensemble="nve")
    columns = clean_columns(setting, 2500, 1)
    columns["conserved{electronvolt}"] += 3.5e-3 * 192 * columns["time{picosecond}"]
    run = write_clean(tmp_path, setting, 2500, 1, **columns)
    if not stated:
        text = (run / "input.xml").read_text()
        (run / "input.xml").write_text(text.replace("<parameters>{forces: conservative}</parameters>", "", 1))
    found = assess(read_run(run))
    own = verdict(found, "drift").attributions[-1]
    assert own.cause == "unexplained"
    assert ("conservative forces" if stated else "forces not stated") in report.setting(found)
    assert ("the forces say that they are conservative" in own.because) == stated
    assert ("direct ones would explain it" in own.because) != stated
    assert ("write <parameters>{forces: ...}</parameters>" in own.remedy) != stated


def test_power_through_the_bath_is_a_warning_where_temperatures_hold(tmp_path):
    setting = with_(SETTING, role="direct", tau_fs=10.0)
    columns = clean_columns(setting, LONG, 1)
    rise = columns["conserved{electronvolt}"] + 3.5e-3 * 192 * columns["time{picosecond}"]
    found = run_of(tmp_path, setting, LONG, 1, **{"conserved{electronvolt}": rise})
    assert verdict(found, "throughput").status == "warn"
    assert verdict(found, "temperature").status == "pass"


def hot_oxygen(setting: Setting, n_frames: int, seed: int, excess_K: float) -> dict[str, np.ndarray]:
    """O hotter by `excess_K`, H colder so that the mean stays: what a global thermostat makes of uneven heating."""
    velocities = water_velocities(setting, n_frames, seed)
    energies = {label: own.mean() for label, own in kinetic_energies(setting, velocities).items()}
    gain = excess_K / setting.temperature_K
    oxygen = np.array(setting.labels) == "O"
    velocities[:, oxygen] *= np.sqrt(1.0 + gain)
    velocities[:, ~oxygen] *= np.sqrt(1.0 - gain * energies["O"] / energies["H"])
    return clean_columns(setting, n_frames, seed, velocities)


def test_hot_species_fails_while_the_mean_temperature_passes(tmp_path):
    """The numbers of a direct model under SVR of 10 fs: O +9.9 K, H -4.4 K, the mean right."""
    setting = with_(SETTING, thermostat="svr", tau_fs=10.0, role="direct")
    found = run_of(tmp_path, setting, LONG, 2, **hot_oxygen(setting, LONG, 2, 9.9))
    oxygen = verdict(found, "equipartition", "O")
    assert verdict(found, "temperature").status == "pass"
    assert oxygen.status == "fail"
    assert oxygen.deviation.estimate.value == pytest.approx(9.9, abs=3.0)
    assert causes(oxygen)[:2] == ["global thermostat", "direct forces"]
    assert verdict(found, "equipartition", "H").deviation.estimate.value < -3.0


def test_heating_under_weak_friction_names_the_thermostat_and_the_tau_that_would_do(tmp_path):
    """P tau/(3 N k_B) with P = 3.3 meV/ps/atom and tau = 1 ps is 12.8 K; 1 % of 300 K would take 235 fs."""
    setting = with_(SETTING, tau_fs=1000.0, role="direct")
    n_frames = LONG
    hot = water_velocities(with_(setting, temperature_K=312.8), n_frames, 3)
    columns = clean_columns(setting, n_frames, 3, hot)
    columns["conserved{electronvolt}"] += 3.3e-3 * 192 * columns["time{picosecond}"]
    own = verdict(run_of(tmp_path, setting, n_frames, 3, **columns), "temperature")
    assert own.status == "fail"
    assert causes(own)[0] == "thermostat too weak"
    assert "12.8 K" in own.attributions[0].because
    assert re.search(r"tau of 23\d fs", own.attributions[0].remedy)
    weak = CAUSES["thermostat too weak"]
    evidence = assess(read_run(tmp_path)).evidence
    assert weak.applies(evidence)
    assert not weak.applies(replace(evidence, n_beads=8)), (
        "PILE drains the internal modes by another friction"
    )


def test_wrong_width_of_the_kinetic_energy_fails_while_its_mean_passes(tmp_path):
    """Fluctuations cut to 60 %, as by a weak-coupling thermostat."""
    columns = clean_columns(SETTING, LONG, 4)
    energy = columns["kinetic_md{electronvolt}"]
    narrow = energy.mean() + 0.6 * (energy - energy.mean())
    found = run_of(tmp_path, SETTING, LONG, 4, **{"kinetic_md{electronvolt}": narrow})
    assert verdict(found, "temperature").status == "pass"
    own = verdict(found, "width")
    assert own.status == "fail"
    assert own.deviation.estimate.value == pytest.approx(-0.4 * 300, rel=0.1)
    assert causes(own)[0] == "thermostat acts on part"


def restarted(columns: dict[str, np.ndarray], end: int, again: int) -> dict[str, np.ndarray]:
    """Rows of a run that ended at row `end` and went on from row `again`."""
    return {name: np.concatenate([own[:end], own[again:]]) for name, own in columns.items()}


def test_jump_at_a_restart_fails_and_the_restart_is_named(tmp_path):
    columns = clean_columns(SETTING, 2500, 8)
    twice = restarted(columns, 1300, 1200)
    twice["conserved{electronvolt}"][1300:] += 2.0
    write_setting(tmp_path, SETTING)
    write_table(tmp_path / "simulation.out", twice)
    own = next(v for v in assess(read_run(tmp_path)).verdicts if v.deviation.rule == "seam")
    assert own.status == "fail"
    assert causes(own) == ["restart"]


def test_a_restart_that_goes_on_smoothly_passes(tmp_path):
    columns = clean_columns(SETTING, 2500, 8)
    write_setting(tmp_path, SETTING)
    write_table(tmp_path / "simulation.out", restarted(columns, 1300, 1200))
    found = assess(read_run(tmp_path))
    assert next(v for v in found.verdicts if v.deviation.rule == "seam").status == "pass"
    assert alarms(found) == []


def test_a_restart_in_a_run_that_drifts_is_no_jump(tmp_path):
    setting = with_(SETTING, ensemble="nve", stride=400)
    columns = clean_columns(setting, 500, 8)
    columns["conserved{electronvolt}"] += 7e-3 * 192 * columns["time{picosecond}"]
    write_setting(tmp_path, setting)
    write_table(tmp_path / "simulation.out", restarted(columns, 300, 250))
    found = assess(read_run(tmp_path))
    assert next(v for v in found.verdicts if v.deviation.rule == "seam").status == "pass"
    assert verdict(found, "drift").status == "fail"


def test_rows_that_are_not_finite_fail(tmp_path):
    columns = clean_columns(SETTING, 2500, 9)
    columns["conserved{electronvolt}"][2000:] = np.nan
    own = verdict(run_of(tmp_path, SETTING, 2500, 9, **columns), "finite")
    assert own.status == "fail"
    assert own.deviation.estimate.value == 500
    assert causes(own) == ["blow-up"]


def test_single_precision_energies_are_recognised(tmp_path):
    setting = with_(SETTING, ensemble="nve")
    columns = clean_columns(setting, 2500, 10)
    exact = columns["potential{electronvolt}"]
    columns["potential{electronvolt}"] = exact.astype(np.float32).astype(float)
    columns["conserved{electronvolt}"] += 0.5e-3 * 192 * columns["time{picosecond}"]
    found = run_of(tmp_path / "single", setting, 2500, 10, **columns)
    assert found.evidence.energy_resolution_eV == pytest.approx(2.0**-14)
    assert "single precision" in causes(verdict(found, "drift"))
    uncorrected = run_of(tmp_path / "direct", with_(setting, role="direct"), 2500, 10, **columns)
    assert causes(verdict(uncorrected, "drift")) == ["direct forces"], "what explains the drift a hundredfold"
    columns["potential{electronvolt}"] = exact
    assert run_of(tmp_path / "double", setting, 2500, 10, **columns).evidence.energy_resolution_eV == 0.0


def test_net_force_with_a_fixed_centre_of_mass_is_recognised(tmp_path):
    setting = with_(SETTING, ensemble="nve")
    columns = clean_columns(setting, 2500, 11)
    columns["conserved{electronvolt}"] += 0.5e-3 * 192 * columns["time{picosecond}"]
    write_clean(tmp_path, setting, 2500, 11, **columns)
    forces = np.random.default_rng(0).normal(size=(10, 192, 3))
    forces -= forces.mean(axis=1, keepdims=True)
    write_trajectory(tmp_path / "simulation.fd.xyz", setting, forces, "forces_component_raw", "ev/ang")
    assert not assess(read_run(tmp_path)).evidence.has_net_force
    write_trajectory(tmp_path / "simulation.fd.xyz", setting, forces + 0.01, "forces_component_raw", "ev/ang")
    found = assess(read_run(tmp_path))
    assert found.evidence.net_force_per_atom == pytest.approx(0.01, rel=0.01)
    assert "net force" in causes(verdict(found, "drift"))


@pytest.mark.parametrize(("outer_fs", "status"), [(4.0, "pass"), (4.5, "warn"), (5.0, "warn")])
def test_outer_step_near_half_a_period_of_the_stretch_is_a_warning(tmp_path, outer_fs, status):
    setting = with_(SETTING, mts=8, role="direct", timestep_fs=outer_fs, stride=1)
    own = verdict(run_of(tmp_path, setting, 400), "outer step")
    assert own.status == status
    assert causes(own) == (["resonance"] if status == "warn" else [])


def test_half_period_follows_the_mass_of_hydrogen_and_the_springs_of_the_ring_polymer(tmp_path):
    run = read_run(write_clean(tmp_path / "light", SETTING, 20))
    assert half_period_fs(run) == pytest.approx(4.5, abs=0.05)  # 3700 1/cm
    ring = read_run(write_clean(tmp_path / "ring", with_(SETTING, n_beads=8), 20))
    assert half_period_fs(ring) == half_period_fs(run)  # i-PI itself propagates the springs
    with_springs = 0.5e5 / (2.99792458 * np.hypot(3685.4, 3336.2))
    assert half_period_fs(ring, springs=True) == pytest.approx(with_springs, rel=1e-3)


def test_a_contracted_force_acts_on_the_slow_modes_of_the_ring_polymer_alone():
    """32 beads contracted to 4: modes up to 2 of 32, whose springs are at 2 omega_P sin(2 pi/32)."""
    path = Path(ipi_inputs.__file__).with_name("rpc-mts.xml")
    facts = read_facts(path)
    run = Run("rpc-mts", replace(facts, thermostat=None), (), ())
    springs = 2.0 * 32 * 300.0 * 0.695034800 * np.sin(2.0 * np.pi / 32)
    slow = 0.5e5 / (2.99792458 * np.hypot(3700.0 / np.sqrt(1.00794), springs))
    assert half_period_fs(run, springs=True) == pytest.approx(slow, rel=1e-3)
    assert not gather(run, None, None, None).near_resonance
    assert facts.thermostat is not None
    for mode, counts in (("pile_l", False), ("nm_gle", False), ("langevin", True)):
        damped = Run("rpc-mts", replace(facts, thermostat=replace(facts.thermostat, mode=mode)), (), ())
        expected = half_period_fs(run, springs=counts)
        assert half_period_fs(damped, springs=True) == pytest.approx(expected), "as the linter has it"


def test_argon_is_not_told_to_make_its_hydrogen_heavier(tmp_path):
    text = with_(SETTING, mts=8, role="direct", timestep_fs=20.0).text()
    (tmp_path / "start.xyz").write_text("2\n\nAr 0 0 0\nAr 0 0 4\n")
    (tmp_path / "input.xml").write_text(text)
    evidence = gather(Run("argon", read_facts(tmp_path / "input.xml"), (), ()), None, None, None)
    assert evidence.outer_half_period_fs == pytest.approx(0.5e5 / (2.99792458 * 1000.0))
    assert evidence.near_resonance
    assert "hydrogen" not in CAUSES["resonance"].remedy(evidence)


def test_inner_steps_of_a_single_level_make_it_shorter_and_no_impulse(tmp_path):
    text = with_(SETTING, timestep_fs=4.4).text().replace("<nmts>", "")
    text = text.replace("</timestep>", "</timestep> <nmts> [9] </nmts>")
    write_setting(tmp_path, SETTING)
    (tmp_path / "input.xml").write_text(text)
    evidence = gather(Run("plain", read_facts(tmp_path / "input.xml"), (), ()), None, None, None)
    assert evidence.inner_steps == 1
    assert evidence.inner_step_fs == pytest.approx(4.4 / 9)


def test_direct_forces_at_both_levels_correct_nothing(tmp_path):
    write_setting(tmp_path, with_(SETTING, mts=8, role="direct"))
    path = tmp_path / "input.xml"
    corrected = gather(Run("run", read_facts(path), (), ()), None, None, None)
    assert (corrected.acts_directly, corrected.corrects_directly) == (False, True)
    path.write_text(path.read_text().replace("{forces: conservative}", "{forces: direct}"))
    both = gather(Run("run", read_facts(path), (), ()), None, None, None)
    assert (both.acts_directly, both.corrects_directly) == (True, False)


def test_volume_that_drifts_fails(tmp_path):
    setting = with_(SETTING, ensemble="npt")
    rng = np.random.default_rng(12)
    volume = 1916.0 + ornstein_uhlenbeck(LONG, (), 20.0, rng) * 5.0
    still = run_of(tmp_path / "still", setting, LONG, 12, **{"volume{angstrom3}": volume})
    assert verdict(still, "volume").status == "pass"
    swelling = volume * (1.0 + 0.002 * np.arange(LONG) * setting.interval_ps)
    moving = run_of(tmp_path / "moving", setting, LONG, 12, **{"volume{angstrom3}": swelling})
    assert verdict(moving, "volume").status == "fail"


@pytest.mark.parametrize(("duration_ps", "status"), [(20.0, "too short"), (60.0, "fail")])
def test_errors_of_kinetic_energies_remember_the_friction(tmp_path, duration_ps, status):
    """Vibrations lose their energy in tau = 1 ps; the noise of femtoseconds beside it hides how often a run has that."""
    setting = with_(SETTING, tau_fs=1000.0)
    n_frames = int(duration_ps / setting.interval_ps)
    hot = water_velocities(with_(setting, temperature_K=312.8), n_frames, 3, tau_ps=0.01)
    own = verdict(
        run_of(tmp_path, setting, n_frames, 3, **clean_columns(setting, n_frames, 3, hot)), "temperature"
    )
    one_sample = 300.0 * np.sqrt(2.0 / 573)
    assert own.deviation.estimate.error == pytest.approx(one_sample * np.sqrt(1.0 / duration_ps), rel=1e-3)
    assert own.status == status


@pytest.mark.parametrize(("splitting", "timestep_fs"), [("obabo", 0.5), ("baoab", 0.25), ("baoab", 0.5)])
def test_momenta_of_baoab_are_colder_than_the_bath_by_design(tmp_path, splitting, timestep_fs):
    setting = with_(SETTING, timestep_fs=timestep_fs)
    path = write_clean(tmp_path, setting, 2500) / "input.xml"
    path.write_text(path.read_text().replace('mode="nvt"', f'mode="nvt" splitting="{splitting}"'))
    found = assess(read_run(tmp_path))
    is_judged = "temperature" in {own.deviation.rule for own in found.verdicts}
    assert is_judged == (splitting == "obabo" or timestep_fs < 0.5)
    assert any("splitting baoab" in gap for gap in found.measured.gaps) != is_judged
