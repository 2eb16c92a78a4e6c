"""Verdicts on ring polymers, colored noise and constrained centroids: which temperatures are the target, and which are not."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import read_run
from analysis.assessment import assess
from analysis_judged import LONG, SETTING, alarms, causes, run_of, verdict
from analysis_runs import (
    K_B,
    clean_columns,
    ring_polymer_columns,
    water_velocities,
    with_,
    write_clean,
    write_setting,
    write_table,
)


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
