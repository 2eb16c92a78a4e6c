"""Verdicts: injected artifacts are detected and named, sound runs pass, short ones say how much longer."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ipi_inputs
from analysis import read_run, report
from analysis.assessment import Assessment, assess
from analysis.evidence import gather, half_period_fs
from analysis.inputfile import read_facts
from analysis.measure import measure
from analysis.rules import CAUSES, RULES
from analysis.run import Run
from analysis.statistics import Estimate
from analysis.verdicts import Deviation, Verdict, judge
from analysis_runs import (
    K_B,
    Setting,
    clean_columns,
    kinetic_energies,
    ornstein_uhlenbeck,
    water_positions,
    water_velocities,
    with_,
    write_clean,
    write_setting,
    write_table,
    write_trajectory,
)

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


@pytest.mark.parametrize(
    ("rise_meV", "timestep_fs", "status"),
    [(3.5, 0.5, "pass"), (9.0, 0.5, "warn"), (9.0, 1.0, "pass"), (3.5, 0.25, "warn")],
)
def test_power_that_the_friction_of_internal_modes_makes_by_itself_is_no_alarm(
    tmp_path, rise_meV, timestep_fs, status
):
    """Exact forces put 3.2 meV/ps/atom through the bath of PILE on 8 beads at 0.5 fs, a sixteenth at half the step."""
    setting = with_(SETTING, n_beads=8, thermostat="pile_l", timestep_fs=timestep_fs)
    columns = ring_polymer_columns(setting, LONG, 3, 300.0)
    columns["conserved{electronvolt}"] += 1e-3 * rise_meV * 192 * columns["time{picosecond}"]
    own = verdict(run_of(tmp_path, setting, LONG, 3, **columns), "ring throughput")
    assert own.status == status
    assert own.deviation.expected == pytest.approx(3.267 * (timestep_fs / 0.5) ** 4, rel=1e-3)
    beyond = max(rise_meV - own.deviation.expected, 0.0)
    assert own.deviation.estimate.value == pytest.approx(beyond, rel=0.01, abs=1e-9)


@pytest.mark.parametrize(
    ("thermostat", "more", "rule"),
    [("pile_l", "<pile_centroid_t> 300 </pile_centroid_t>", "ring throughput"),
     ("langevin", "", "throughput"),
     ("nm_gle", "", None)],
)  # fmt: skip
def test_the_rule_for_the_bath_follows_what_is_known_of_its_friction(tmp_path, thermostat, more, rule):
    setting = with_(SETTING, n_beads=4, thermostat=thermostat, gle=more)
    found = run_of(tmp_path, setting, 2500, 3, **ring_polymer_columns(setting, 2500, 3, 300.0))
    judged = {own.deviation.rule for own in found.verdicts} & {"drift", "throughput", "ring throughput"}
    assert judged == ({rule} if rule else set())
    assert any("power through the bath is not judged" in gap for gap in found.measured.gaps) == (rule is None)


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


def ring_polymer_columns(
    setting: Setting, n_frames: int, seed: int, internal_K: float
) -> dict[str, np.ndarray]:
    """Columns of a ring polymer with the centroid at the target and the internal modes at `internal_K`.

    Kinetic energies of modes are chi-squared variables; K_cv and K_td differ by what the internal modes account for.
    """
    rng = np.random.default_rng(seed)
    target, n_beads, n_atoms = setting.temperature_K, setting.n_beads, 3 * setting.n_waters
    freedom = np.array([3 * n_atoms - 3] + [3 * n_atoms] * (n_beads - 1))
    means = np.array([target] + [internal_K] * (n_beads - 1))
    noise = ornstein_uhlenbeck(n_frames, (n_beads,), 3.0, rng)
    modes = means * (1.0 + noise * np.sqrt(2.0 / freedom))
    columns = clean_columns(with_(setting, n_beads=1), n_frames, seed)
    columns["kinetic_md{electronvolt}"] = 0.5 * K_B * (modes @ freedom)
    whole = (modes @ freedom + 3.0 * target) / (3 * n_atoms * n_beads)
    columns["temperature{kelvin}"] = whole
    for mode in range(n_beads):
        padding = 3.0 * target if mode == 0 else 0.0
        columns[f"temperature(nm={mode}){{kelvin}}"] = (modes[:, mode] * freedom[mode] + padding) / (
            3 * n_atoms
        )
    virial = 30.0 + ornstein_uhlenbeck(n_frames, (), 3.0, rng) * 0.3
    internal = 1.5 * n_atoms * (n_beads - 1) * K_B * (modes[:, 1:].mean(axis=1) - target)
    columns["kinetic_cv{electronvolt}"] = virial
    columns["kinetic_td{electronvolt}"] = virial - internal
    return columns


def test_thermostat_on_the_centroid_only_is_detected_in_the_modes_and_in_the_estimators(tmp_path):
    setting = with_(SETTING, n_beads=4, thermostat="pile_l")
    found = run_of(tmp_path, setting, LONG, 5, **ring_polymer_columns(setting, LONG, 5, 320.0))
    assert verdict(found, "modes", "centroid").status == "pass"
    assert {verdict(found, "modes", f"mode {k}").status for k in (1, 2, 3)} == {"fail"}
    own = verdict(found, "estimators")
    assert own.status == "fail"
    assert causes(own)[0] == "internal modes"
    accounted = found.measured.estimates["mismatch_from_modes"]
    assert accounted.value == pytest.approx(found.measured.estimates["estimator_mismatch"].value, rel=0.05)


def test_clean_ring_polymer_passes(tmp_path):
    setting = with_(SETTING, n_beads=4, thermostat="pile_l")
    found = run_of(tmp_path, setting, LONG, 6, **ring_polymer_columns(setting, LONG, 6, 300.0))
    assert alarms(found) == []


def test_heat_of_the_centroid_is_seen_by_its_temperature_and_not_by_the_estimators(tmp_path):
    setting = with_(SETTING, n_beads=4, thermostat="pile_l")
    columns = ring_polymer_columns(setting, LONG, 7, 300.0)
    columns["temperature(nm=0){kelvin}"] += 15.0
    columns["temperature{kelvin}"] += 15.0 / 4
    found = run_of(tmp_path, setting, LONG, 7, **columns)
    assert verdict(found, "modes", "centroid").status == "fail"
    assert verdict(found, "estimators").status == "pass"


@pytest.mark.parametrize(
    ("timestep_fs", "named"), [(0.5, ["time step of the beads", "unexplained"]), (0.25, ["unexplained"])]
)
def test_a_mismatch_of_estimators_is_not_blamed_on_modes_that_are_at_the_target(tmp_path, timestep_fs, named):
    setting = with_(SETTING, n_beads=4, thermostat="pile_l", timestep_fs=timestep_fs)
    columns = ring_polymer_columns(setting, 5000, 7, 300.0)
    columns["kinetic_td{electronvolt}"] += 5e-3 * 192
    own = verdict(run_of(tmp_path, setting, 5000, 7, **columns), "estimators")
    assert own.status == "fail"
    assert causes(own) == named


def gle(*temperatures: float, coupling: float = 0.0) -> str:
    """<A> and <C> of one additional momentum for each normal mode; `coupling` makes all but the first quantum."""
    drift = "0.01, 0.001, -0.001, 0.0001, " * len(temperatures)
    blocks = [
        f"{own}, {coupling * bool(mode)}, {coupling * bool(mode)}, {own}"
        for mode, own in enumerate(temperatures)
    ]
    shape = f'shape="({len(temperatures)}, 2, 2)"'
    return f'<A {shape}> [{drift[:-2]}] </A> <C {shape} units="kelvin"> [{", ".join(blocks)}] </C>'


PIGLET = with_(
    SETTING, n_beads=4, thermostat="nm_gle", gle=gle(1200.0, 1975.0, 1975.0, 1975.0, coupling=-205.0)
)


def test_quantum_thermostat_is_judged_by_its_classical_centroid_only(tmp_path):
    """PIGLET holds internal modes far above k_B T by design; what heats the centroid is still seen."""
    columns = ring_polymer_columns(PIGLET, 5000, 7, 900.0)
    found = run_of(tmp_path / "sound", PIGLET, 5000, 7, **columns)
    assert alarms(found) == []
    judged = {(own.deviation.rule, own.deviation.subject) for own in found.verdicts}
    assert judged == {("finite", ""), ("modes", "centroid")}
    assert any("power through the bath is not judged" in gap for gap in found.measured.gaps)
    assert any("modes 1, 2, 3 off k_B T, which is quantum by design" in gap for gap in found.measured.gaps)
    assert found.measured.estimates["temperature.mode.1"].value == pytest.approx(900.0, rel=0.01)
    columns["temperature(nm=0){kelvin}"] += 15.0
    hot = run_of(tmp_path / "hot", PIGLET, 5000, 7, **columns)
    assert verdict(hot, "modes", "centroid").status == "fail"
    assert causes(verdict(hot, "modes", "centroid"))[0] == "quantum noise"


@pytest.mark.parametrize("matrices", ["", gle(1200.0, 1200.0, 1200.0, 1200.0)])
def test_classical_coloured_noise_is_judged_like_any_thermostat(tmp_path, matrices):
    setting = with_(PIGLET, gle=matrices)
    found = run_of(tmp_path, setting, 5000, 7, **ring_polymer_columns(setting, 5000, 7, 320.0))
    assert {verdict(found, "modes", f"mode {k}").status for k in (1, 2, 3)} == {"fail"}
    assert {verdict(found, rule).status for rule in ("temperature", "estimators")} == {"fail"}


def test_quantum_thermostat_on_one_bead_leaves_nothing_to_compare_with_the_target(tmp_path):
    shape = 'shape="(2, 2)"'
    matrices = f"<A {shape}> [0.01, 0.001, -0.001, 0.0001] </A> <C {shape} units='kelvin'> [900, -100, -100, 900] </C>"
    setting = with_(SETTING, thermostat="gle", gle=matrices)
    hot = clean_columns(setting, 2500, 8, water_velocities(with_(setting, temperature_K=900.0), 2500, 8))
    found = run_of(tmp_path, setting, 2500, 8, **hot)
    assert {own.deviation.rule for own in found.verdicts} == {"finite", "throughput"}
    assert any("all motion off k_B T" in gap for gap in found.measured.gaps)


def test_constrained_centroids_have_no_degrees_of_freedom(tmp_path):
    """nvt-cc: i-PI pads the centroid's kinetic energy, which is zero, with the target temperature."""
    setting = with_(SETTING, n_beads=4, thermostat="pile_l", ensemble="nvt-cc")
    columns = ring_polymer_columns(setting, 5000, 9, 300.0)
    internal = columns["kinetic_md{electronvolt}"] - 0.5 * K_B * (
        columns["temperature(nm=0){kelvin}"] * 3 * 192 - 3 * 300.0
    )
    columns |= {"kinetic_md{electronvolt}": internal, "temperature(nm=0){kelvin}": np.full(5000, 300.0)}
    for label, n_own in (("O", 64), ("H", 128)):
        columns.pop(f"temperature({label}){{kelvin}}")
        columns[f"kinetic_md({label}){{electronvolt}}"] = internal * n_own / 192
    write_setting(tmp_path, setting)
    write_table(tmp_path / "simulation.out", columns)
    found = assess(read_run(tmp_path))
    assert alarms(found) == []
    assert found.measured.estimates["temperature"].value == pytest.approx(300.0, rel=0.01)
    assert "temperature.mode.0" not in found.measured.estimates
    assert {own.deviation.subject for own in found.verdicts if own.deviation.rule == "modes"} == {
        f"mode {k}" for k in (1, 2, 3)
    }
    assert not [gap for gap in found.measured.gaps if "no temperature(nm=0)" in gap]


def test_constraints_are_not_counted_so_temperatures_are_not_judged(tmp_path):
    path = write_clean(tmp_path, SETTING, 2500) / "input.xml"
    text = path.read_text()
    begin, end = text.index("<motion"), text.index("</motion>")
    path.write_text(text[:begin] + '<motion mode="constrained_dynamics">' + text[end:])
    found = assess(read_run(tmp_path))
    assert "temperature" not in found.measured.estimates
    assert any("constraints are not counted" in gap for gap in found.measured.gaps)


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
