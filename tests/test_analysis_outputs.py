"""Reading properties files and finding runs: units, torn lines, restarts, and everything that is not i-PI's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ipi_inputs
from analysis import read_run
from analysis.assessment import assess
from analysis.cli import analyze
from analysis.drift import bath_heat, energy_drift
from analysis.errors import AnalysisError, MissingOutput, UnreadableRun
from analysis.inputfile import read_facts
from analysis.kinetics import species_temperatures
from analysis.outputs import Key, key, read_properties
from analysis_runs import (
    Setting,
    clean_columns,
    water_positions,
    with_,
    write_clean,
    write_setting,
    write_table,
    write_trajectory,
)

SETTING = Setting()


def table(n_rows: int = 50, **more: np.ndarray) -> dict[str, np.ndarray]:
    steps = np.arange(n_rows, dtype=float)
    return {
        "step": steps,
        "time{picosecond}": steps * 0.004,
        "conserved{electronvolt}": -900.0 + 0.1 * steps,
    } | more


@pytest.mark.parametrize(
    ("text", "name", "unit"),
    [
        ("temperature(O){kelvin}", key("temperature", atom="O"), "kelvin"),
        ("temperature(atom=O;nm=2){kelvin}", key("temperature", atom="O", nm=2), "kelvin"),
        ("kinetic_md(nm=0)", key("kinetic_md", nm=0), ""),
        ("conserved{electronvolt}", key("conserved"), "electronvolt"),
        ("forces_component_raw(1){ev/ang}", key("forces_component_raw", index=1), "ev/ang"),
    ],
)
def test_specifications_are_parsed_as_i_pi_does(text, name, unit):
    assert Key.parse(text) == (name, unit)


def test_units_come_from_the_header_and_atomic_units_where_it_has_none(tmp_path):
    path = tmp_path / "out"
    columns = {"step": np.arange(9.0), "time{femtosecond}": np.arange(9.0), "conserved": np.arange(9.0),
               "potential{kelvin}": np.arange(9.0), "pressure_md{megapascal}": np.arange(9.0)}  # fmt: skip
    write_table(path, columns)
    read = read_properties(path)
    assert read.columns[key("time")][1] == pytest.approx(1e-3)
    assert read.columns[key("conserved")][1] == pytest.approx(27.2114, rel=1e-5)
    assert read.columns[key("potential")][1] == pytest.approx(8.617333e-5, rel=1e-5)
    assert read.columns[key("pressure_md")][1] == pytest.approx(1e-3)
    assert (read.units[key("conserved")], read.units[key("time")]) == ("eV", "ps")


def test_unknown_unit_is_named(tmp_path):
    write_table(tmp_path / "out", {"step": np.arange(9.0), "conserved{electronvoltt}": np.arange(9.0)})
    with pytest.raises(UnreadableRun, match="electronvoltt"):
        read_properties(tmp_path / "out")


def test_vector_columns_keep_their_components(tmp_path):
    rows = np.arange(40.0).reshape(10, 4)
    header = "# column   1     --> step : help.\n# cols.    2-4   --> vcom{m/s} : help.\n"
    body = "\n".join(" ".join(f"{number:.8e}" for number in row) for row in rows)
    (tmp_path / "out").write_text(header + body + "\n")
    read = read_properties(tmp_path / "out")
    assert read.columns[key("vcom")].shape == (10, 3)
    assert read.columns[key("vcom")][0, 0] == pytest.approx(1.0 * 0.01, rel=1e-6)  # m/s in A/ps


@pytest.mark.parametrize("cut", [1, 5, 20, 45])
def test_torn_last_line_is_left_out(tmp_path, cut):
    path = tmp_path / "out"
    write_table(path, table())
    path.write_bytes(path.read_bytes()[:-cut])
    read = read_properties(path)
    assert read.n_rows == 49
    assert read.n_dropped == 1


def test_duplicate_steps_after_a_restart_keep_the_later_row(tmp_path):
    columns = table()
    restarted = {name: np.concatenate([own[:40], own[30:]]) for name, own in columns.items()}
    restarted["conserved{electronvolt}"][40:] += 1000.0
    write_table(tmp_path / "out", restarted)
    read = read_properties(tmp_path / "out")
    assert np.array_equal(read.columns[key("step")], np.arange(50.0))
    assert read.columns[key("conserved")][29] < 0 < read.columns[key("conserved")][30]
    assert read.rewinds == (30,)


def test_not_finite_rows_are_left_out_and_counted(tmp_path):
    columns = table()
    columns["conserved{electronvolt}"][10:13] = np.nan
    write_table(tmp_path / "out", columns)
    read = read_properties(tmp_path / "out")
    assert (read.n_rows, read.n_not_finite) == (47, 3)


def test_broken_lines_in_the_middle_are_left_out(tmp_path):
    path = tmp_path / "out"
    write_table(path, table())
    lines = path.read_text().splitlines()
    lines[20:20] = ["disk full", "1.0 2.0"]
    path.write_text("\n".join(lines) + "\n")
    read = read_properties(path)
    assert (read.n_rows, read.n_dropped) == (50, 2)


def test_binary_junk_is_refused_with_what_was_wanted(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "out").write_bytes(rng.integers(0, 256, 5000, dtype=np.uint8).tobytes())
    with pytest.raises(UnreadableRun, match="wanted an i-PI properties file"):
        read_properties(tmp_path / "out")
    write_table(tmp_path / "junk", table(3))
    with (tmp_path / "junk").open("ab") as stream:
        stream.write(b"".join(bytes(rng.integers(11, 256, 30, dtype=np.uint8)) + b"\n" for _ in range(40)))
    with pytest.raises(UnreadableRun, match="wanted rows of 3 numbers"):
        read_properties(tmp_path / "junk")


def test_outputs_of_different_runs_in_one_file_are_refused(tmp_path):
    write_table(tmp_path / "a", table())
    write_table(tmp_path / "b", table(**{"volume{angstrom3}": np.ones(50)}))
    (tmp_path / "out").write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    with pytest.raises(UnreadableRun, match="two different headers"):
        read_properties(tmp_path / "out")


def test_columns_in_another_order_or_unit_in_one_file_are_refused(tmp_path):
    columns = table(**{"volume{angstrom3}": np.ones(50)})
    swapped = {
        name: columns[name] for name in [*list(columns)[:2], "volume{angstrom3}", "conserved{electronvolt}"]
    }
    other_unit = {name.replace("electronvolt", "kelvin"): own for name, own in columns.items()}
    write_table(tmp_path / "a", columns)
    for name, later in (("swapped", swapped), ("unit", other_unit), ("fewer", table())):
        write_table(tmp_path / "b", later)
        (tmp_path / name).write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
        with pytest.raises(UnreadableRun, match="two different headers"):
            read_properties(tmp_path / name)
    second = {name: own + 50.0 for name, own in columns.items()}
    write_table(tmp_path / "b", second)
    (tmp_path / "same").write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    assert read_properties(tmp_path / "same").n_rows == 100


def test_a_run_is_found_by_directory_input_and_prefix(tmp_path):
    run = write_clean(tmp_path / "run", SETTING, 400)
    found = [
        read_run(path) for path in (run, run / "input.xml", run / "simulation", str(run / "simulation.out"))
    ]
    assert {str(energy_drift(own)) for own in found} == {str(energy_drift(found[0]))}
    assert found[0].facts is not None
    assert found[0].atoms.n_atoms == 192
    assert found[0].atoms.masses[:3] == pytest.approx([15.9994, 1.00794, 1.00794])


def test_a_run_whose_prefix_begins_like_another_is_not_mixed_with_it(tmp_path):
    write_setting(tmp_path, SETTING)
    text = (tmp_path / "input.xml").read_text()
    for prefix, n_rows in (("nvt", 100), ("nvt.300K", 200)):
        (tmp_path / f"{prefix}.xml").write_text(text.replace('prefix="simulation"', f'prefix="{prefix}"'))
        write_table(tmp_path / f"{prefix}.out", clean_columns(SETTING, n_rows, 1))
    (tmp_path / "input.xml").unlink()
    for path, n_rows in (("nvt.xml", 100), ("nvt", 100), ("nvt.300K.xml", 200), ("nvt.300K", 200)):
        assert len(read_run(tmp_path / path).series("conserved")) == n_rows


def test_dynamics_beside_atoms_that_swap_have_their_time_step(tmp_path):
    write_setting(tmp_path, SETTING)
    path = tmp_path / "input.xml"
    text = path.read_text().replace(
        '<motion mode="dynamics">', '<motion mode="multi"> <motion mode="dynamics">'
    )
    swap = '<motion mode="atomswap"> <atomswap> <names> [O, H] </names> </atomswap> </motion> </motion>'
    path.write_text(text.replace("</motion>", f"</motion> {swap}"))
    facts = read_facts(path)
    assert (facts.ensemble, facts.timestep_fs) == ("nvt", pytest.approx(0.5))
    assert facts.thermostat is not None


def test_facts_of_the_input(tmp_path):
    write_setting(
        tmp_path, with_(SETTING, mts=8, thermostat="svr", tau_fs=10.0, role="direct", timestep_fs=4.0)
    )
    facts = read_facts(tmp_path / "input.xml")
    assert (facts.ensemble, facts.temperature_K, facts.timestep_fs, facts.nmts) == (
        "nvt",
        pytest.approx(300),
        4.0,
        (1, 8),
    )
    assert facts.inner_steps == 8
    assert facts.thermostat is not None
    assert facts.thermostat.is_global
    assert facts.thermostat.tau_fs == pytest.approx(10.0)
    assert [own.role for own in facts.components] == ["conservative", "direct"]
    assert facts.components[1].mts_weights == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "modes"),
    [("pimd-piglet", {1, 2, 3}), ("nvt-gle", set()), ("pimd-pile-l", set()), ("nvt-svr", set())],
)
def test_modes_that_a_thermostat_holds_off_equilibrium_are_told_by_its_matrices(name, modes):
    facts = read_facts(Path(__file__).parents[1] / "ipi_inputs" / f"{name}.xml")
    assert facts.noncanonical_modes == modes


@pytest.mark.parametrize(
    ("thermostat", "modes"),
    [
        ('<thermostat mode="gle"> {A} {quantum} </thermostat>', {0, 1}),
        ('<thermostat mode="gle"> {A} {classical} </thermostat>', set()),
        (
            '<thermostat mode="pile_l"> {tau} <pile_centroid_t units="kelvin"> 500 </pile_centroid_t> </thermostat>',
            {0},
        ),
        (
            '<thermostat mode="multi"> <thermostat mode="svr"> {tau} </thermostat> '
            '<thermostat mode="gle"> {A} {quantum} </thermostat> </thermostat>',
            {0, 1},
        ),
    ],
)
def test_every_thermostat_that_is_off_equilibrium_by_design_is_known(tmp_path, thermostat, modes):
    parts = {
        "tau": '<tau units="femtosecond"> 10 </tau>',
        "A": '<A shape="(2, 2)"> [0.01, 0.001, -0.001, 0.0001] </A>',
        "quantum": '<C shape="(2, 2)" units="kelvin"> [1800, -200, -200, 1800] </C>',
        "classical": '<C shape="(2, 2)" units="kelvin"> [600, 0, 0, 600] </C>',
    }
    write_setting(tmp_path, with_(SETTING, n_beads=2))
    text = (tmp_path / "input.xml").read_text()
    start, end = text.index("<thermostat"), text.index("</thermostat>") + len("</thermostat>")
    (tmp_path / "input.xml").write_text(text[:start] + thermostat.format(**parts) + text[end:])
    assert read_facts(tmp_path / "input.xml").noncanonical_modes == modes


@pytest.mark.parametrize(
    ("fixed", "dof"),
    [
        ("<fixatoms> [2, 0] </fixatoms>", (0, 1, 2, 6, 7, 8)),
        ("<fixatoms_dof> [5, 8] </fixatoms_dof>", (5, 8)),
    ],
)
def test_fixed_degrees_of_freedom_override_the_fixed_centre_of_mass(tmp_path, fixed, dof):
    write_setting(tmp_path, SETTING)
    text = (tmp_path / "input.xml").read_text()
    assert read_facts(tmp_path / "input.xml").fixcom
    (tmp_path / "input.xml").write_text(text.replace("<fixatoms> [] </fixatoms>", fixed))
    facts = read_facts(tmp_path / "input.xml")
    assert (facts.fixed_dof, facts.fixcom) == (dof, False)


def test_parts_of_a_run_are_stitched(tmp_path):
    whole = clean_columns(SETTING, 400, 1)
    for name, rows in (("first", slice(0, 250)), ("second", slice(200, 400))):
        write_setting(tmp_path / name, SETTING)
        write_table(tmp_path / name / "simulation.out", {column: own[rows] for column, own in whole.items()})
    write_setting(tmp_path / "all", SETTING)
    write_table(tmp_path / "all" / "simulation.out", whole)
    stitched = read_run(tmp_path / "first", tmp_path / "second")
    assert np.array_equal(
        stitched.series("conserved").values, read_run(tmp_path / "all").series("conserved").values
    )
    assert stitched.tables[0].rewinds == (200,)


def test_parts_that_count_steps_from_0_again_are_not_stitched(tmp_path):
    parts = [write_clean(tmp_path / name, SETTING, n_rows) for name, n_rows in (("a", 300), ("b", 500))]
    with pytest.raises(UnreadableRun, match="count steps from 0 again"):
        read_run(*parts).series("conserved")
    result = CliRunner().invoke(analyze, ["--stitch", *map(str, parts)])
    assert result.exit_code == 2
    assert "one by one" in result.output


def test_several_runs_in_one_directory_are_refused_and_named(tmp_path):
    write_table(tmp_path / "cold.out", table())
    write_table(tmp_path / "warm.out", table())
    with pytest.raises(UnreadableRun, match="several runs \\(cold, warm\\); name one"):
        read_run(tmp_path)
    assert read_run(tmp_path / "cold").has("conserved")


def test_several_inputs_in_one_directory_are_refused_and_named(tmp_path):
    write_clean(tmp_path, SETTING, 20)
    (tmp_path / "input.xml").rename(tmp_path / "a.xml")
    (tmp_path / "b.xml").write_text((tmp_path / "a.xml").read_text())
    with pytest.raises(UnreadableRun, match=r"several inputs \(a.xml, b.xml\)"):
        read_run(tmp_path)


def test_the_record_that_launch_keeps_is_no_input(tmp_path):
    write_clean(tmp_path, SETTING, 20)
    (tmp_path / "input.xml").rename(tmp_path / "a.xml")
    (tmp_path / ".forceserver.json").write_text('{"model": "/home/me/simulations/model.pt"}')
    assert read_run(tmp_path).target_K == pytest.approx(300.0)
    assert read_run(tmp_path / "simulation").target_K == pytest.approx(300.0)


def test_a_continuation_is_no_second_input_and_stands_in_where_the_input_is_gone(tmp_path):
    write_clean(tmp_path, SETTING, 20)
    (tmp_path / "input.xml").rename(tmp_path / "nvt.xml")
    (tmp_path / "CONTINUE.xml").write_text((tmp_path / "nvt.xml").read_text().replace(" 300.0 ", " 310.0 "))
    assert read_run(tmp_path).target_K == pytest.approx(300.0)
    assert read_run(tmp_path / "simulation").target_K == pytest.approx(300.0)
    (tmp_path / "nvt.xml").unlink()
    assert read_run(tmp_path).target_K == pytest.approx(310.0)


@pytest.mark.parametrize(
    ("output", "system", "start"),
    [
        ("data/run", "", "data/run."),
        ("run", "a", "a_run."),
        ("data/run", "a", "a_data/run."),
        ("", "a", "a_"),
        ("", "", ""),
    ],
)
def test_outputs_are_found_by_both_prefixes_and_in_their_folder(tmp_path, output, system, start):
    write_setting(tmp_path, SETTING)
    text = (tmp_path / "input.xml").read_text()
    text = text.replace('prefix="simulation"', f'prefix="{output}"').replace(
        "<system>", f'<system prefix="{system}">'
    )
    (tmp_path / "input.xml").write_text(text)
    (tmp_path / f"{start}out").parent.mkdir(exist_ok=True)
    write_table(tmp_path / f"{start}out", clean_columns(SETTING, 20, 1))
    frames = water_positions(SETTING)[None]
    write_trajectory(tmp_path / f"{start}fd_0.xyz", SETTING, frames, "forces_component_raw", "ev/ang")
    if start:
        write_table(tmp_path / "other.out", table())
    for path in (tmp_path, tmp_path / "input.xml", *([tmp_path / start[:-1]] if start else [])):
        run = read_run(path)
        assert run.duration_ps == pytest.approx(19 * 0.004)
        assert run.trajectory("forces_component_raw", index=0).n_frames == 1
        assert run.facts is not None


def scan(directory, **settings: Setting) -> None:
    """An input of several systems, from a template, and outputs of each; the prefix of the outputs is `scan`."""
    write_setting(directory, SETTING)
    head, system = (directory / "input.xml").read_text().split("<system>")
    system = system.split("</system>")[0].replace(" 0.5 ", " STEP ").replace(" 100.0 ", " TAU ")
    instances = [
        f"<instance> [ {name}, {own.timestep_fs}, {own.tau_fs} ] </instance>"
        for name, own in settings.items()
    ]
    template = f'<template> <system prefix="NAME"> {system} </system> </template>'
    text = f"{head} <system_template> <labels> [ NAME, STEP, TAU ] </labels> {' '.join(instances)} {template}"
    text = text.replace('prefix="simulation"', 'prefix="scan"') + "</system_template> </simulation>"
    (directory / "input.xml").write_text(text)
    for name, own in settings.items():
        write_table(directory / f"{name}_scan.out", clean_columns(own, 300, 1))


def test_a_system_of_several_is_chosen_by_the_prefix_of_its_outputs(tmp_path):
    settings = {
        "outer-3.0fs": with_(SETTING, timestep_fs=3.0),
        "outer-3.5fs": with_(SETTING, timestep_fs=3.5, tau_fs=50.0),
    }
    scan(tmp_path, **settings)
    for name, own in settings.items():
        run = read_run(tmp_path / f"{name}_scan")
        assert run.facts is not None
        assert run.facts.thermostat is not None
        assert (run.facts.timestep_fs, run.facts.thermostat.tau_fs) == pytest.approx(
            (own.timestep_fs, own.tau_fs)
        )
        assert run.duration_ps == pytest.approx(299 * own.interval_ps)
        assert len(run.tables) == 1
    for path in (tmp_path, tmp_path / "input.xml"):
        with pytest.raises(
            UnreadableRun,
            match=r"wanted one <system>, got 2; name the outputs of one: .*outer-3.0fs_scan, .*",
        ):
            read_run(path)
    with pytest.raises(UnreadableRun, match=r"inputs there name outer-3\.0fs_scan, outer-3\.5fs_scan"):
        read_run(tmp_path / "scan")
    result = CliRunner().invoke(analyze, [str(tmp_path / "outer-3.0fs_scan")])
    assert result.exit_code == 0, result.output
    assert "outer-3.0fs_scan" in result.output


def test_systems_of_the_scan_in_the_library_are_told_apart():
    path = Path(ipi_inputs.__file__).with_name("resonance-scan.xml")
    facts = read_facts(path, "outer-4.5fs_resonance-scan")
    assert (facts.timestep_fs, facts.inner_steps) == (pytest.approx(4.5), 9)
    assert facts.atoms is not None
    assert facts.atoms.n_atoms == 192


@pytest.mark.parametrize("what", ["nothing", "empty", "input only"])
def test_without_outputs_the_message_says_what_was_wanted(tmp_path, what):
    if what == "nothing":
        with pytest.raises(UnreadableRun, match="no such directory"):
            read_run(tmp_path / "no" / "where")
        return
    if what == "input only":
        write_setting(tmp_path, SETTING)
        (tmp_path / "start.xyz").unlink()
    with pytest.raises(UnreadableRun, match="no i-PI outputs"):
        read_run(tmp_path)


def test_broken_input_is_refused_with_its_name(tmp_path):
    write_clean(tmp_path, SETTING, 20)
    (tmp_path / "input.xml").write_text("<simulation> <nonsense/> </simulation>")
    with pytest.raises(UnreadableRun, match=r"input.xml: not an i-PI input"):
        read_run(tmp_path)


def test_missing_column_says_which_line_to_add(tmp_path):
    run = write_clean(tmp_path, SETTING, 50)
    text = (
        (run / "simulation.out")
        .read_text()
        .replace("temperature(O)", "temperature(X)")
        .replace("temperature(H)", "temperature(Y)")
    )
    (run / "simulation.out").write_text(text)
    with pytest.raises(
        MissingOutput, match=r"add temperature\(O\)\{kelvin\}, temperature\(H\)\{kelvin\} to <properties>"
    ):
        species_temperatures(read_run(run))
    with pytest.raises(MissingOutput, match=r"no column 'volume'; add volume\{angstrom3\}"):
        read_run(run).series("volume")


def test_missing_trajectory_says_which_line_to_add(tmp_path):
    run = read_run(write_clean(tmp_path, SETTING, 50))
    with pytest.raises(MissingOutput, match="<trajectory filename='velocities'"):
        run.trajectory("velocities")


def test_masses_without_an_input_come_from_the_labels(tmp_path):
    write_table(tmp_path / "simulation.out", table())
    write_trajectory(
        tmp_path / "simulation.pos_0.xyz", SETTING, water_positions(SETTING)[None], "positions", "angstrom"
    )
    run = read_run(tmp_path)
    assert run.facts is None
    assert run.atoms.masses[:2] == pytest.approx([15.9994, 1.00794])
    assert energy_drift(run).value == pytest.approx(0.1 / 0.004 * 1e3 / 192)


def test_masses_of_the_input_win_over_labels(tmp_path):
    run = write_clean(tmp_path, SETTING, 50)
    heavy = '<masses mode="manual" units="dalton"> [' + ",".join(["16", "2", "2"] * 64) + "] </masses>"
    text = (run / "input.xml").read_text().replace("</initialize>", heavy + "</initialize>")
    (run / "input.xml").write_text(text)
    assert read_run(run).atoms.masses[:3] == pytest.approx([16.0, 2.0, 2.0])


def test_a_run_that_has_only_started_has_gaps_and_no_traceback(tmp_path):
    run = write_clean(tmp_path, SETTING, 50)
    header = [line for line in (run / "simulation.out").read_text().splitlines() if line.startswith("#")]
    (run / "simulation.out").write_text("\n".join(header) + "\n")
    found = assess(read_run(run))
    assert {own.status for own in found.verdicts} == {
        "pass"
    }  # no row is not finite, and that is all there is to say
    assert any("at least 8 samples" in gap for gap in found.measured.gaps)


def test_columns_of_files_with_different_strides_meet_at_common_times(tmp_path):
    columns = clean_columns(SETTING, 400, 1)
    sparse = {name: columns[name][::4] for name in ("step", "time{picosecond}", "potential{electronvolt}")}
    kept = {name: own for name, own in columns.items() if not name.startswith("potential")}
    write_setting(tmp_path, SETTING)
    write_table(tmp_path / "simulation.out", kept)
    write_table(tmp_path / "simulation.pot", sparse)
    heat = bath_heat(read_run(tmp_path))
    assert len(heat) == 100
    exact = (
        columns["conserved{electronvolt}"]
        - columns["potential{electronvolt}"]
        - columns["kinetic_md{electronvolt}"]
    )[::4]
    np.testing.assert_allclose(heat.values, exact - exact[0], atol=1e-6)


def test_a_properties_file_without_step_or_time_is_a_gap_and_not_the_end(tmp_path):
    columns = clean_columns(SETTING, 400, 1)
    write_setting(tmp_path, SETTING)
    write_table(
        tmp_path / "simulation.extra", {name: columns[name][::4] for name in ("potential{electronvolt}",)}
    )
    kept = {name: own for name, own in columns.items() if not name.startswith("potential")}
    write_table(tmp_path / "simulation.out", kept)
    run = read_run(tmp_path)
    assert run.duration_ps == pytest.approx(399 * 0.004)
    with pytest.raises(MissingOutput, match="the properties file of potential has neither 'time' nor 'step'"):
        run.series("potential")
    assert "drift" in assess(run).measured.estimates
    write_table(tmp_path / "simulation.out", columns)
    assert len(read_run(tmp_path).series("potential")) == 400


def test_an_optimisation_has_no_time_and_so_nothing_to_judge(tmp_path):
    write_setting(tmp_path, SETTING)
    head, dynamics = (tmp_path / "input.xml").read_text().split('<motion mode="dynamics">')
    motion = '<motion mode="minimize"> <optimizer mode="bfgstrm"/> </motion>'
    (tmp_path / "input.xml").write_text(head + motion + dynamics.split("</motion>")[1])
    write_table(
        tmp_path / "simulation.out", {"step": np.arange(20.0), "potential{electronvolt}": np.arange(20.0)}
    )
    assert assess(read_run(tmp_path)).status == "too short"


def test_trajectory_of_another_system_is_refused(tmp_path):
    run = write_clean(tmp_path, SETTING, 50)
    other = with_(SETTING, n_waters=8)
    write_trajectory(
        run / "simulation.pos_0.xyz", other, water_positions(other)[None], "positions", "angstrom"
    )
    with pytest.raises(UnreadableRun, match="wanted 192 atoms as in the input, got 24"):
        read_run(run).trajectory("positions")


def test_backups_of_i_pi_are_not_read(tmp_path):
    run = write_clean(tmp_path, SETTING, 50)
    (run / "#simulation.out#0#").write_bytes((run / "simulation.out").read_bytes())
    assert len(read_run(run).property_paths) == 1


def test_drift_of_a_bare_series_needs_the_number_of_atoms(tmp_path):
    series = read_run(write_clean(tmp_path, SETTING, 50)).series("conserved")
    with pytest.raises(AnalysisError, match="wanted n_atoms"):
        energy_drift(series)
    assert energy_drift(series, 192).unit == "meV/ps/atom"
