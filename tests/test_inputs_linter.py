"""The linter: every rule fires on its own broken input, at the right line, and on nothing that is sound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ipi_inputs import InputError, InputFile, lint, lint_many, load, names
from ipi_inputs.check_dynamics import fastest_stretch
from ipi_inputs.cli import inputs
from ipi_inputs.document import parse
from ipi_inputs.linter import CLASHES
from ipi_inputs.reading import read_facts
from ipi_inputs.rules import RULES

FOLDER = Path(__file__).with_name("broken_inputs")
BROKEN = sorted(path.stem for path in FOLDER.glob("*.xml") if path.stem != "sound")
LEVELS = {rule.name: rule.level for rule in RULES} | {"allowance": "warning"}

# What stands in the line that a finding names.
PLACES = {
    "not-accepted": "<simulation>",
    "structure-not-found": "nowhere.xyz",
    "xyz-without-units": "bohr.xyz",
    "missing-unit": "<timestep>",
    "missing-timestep": "<dynamics",
    "bare-atomic-units": "<force> 1e-6",
    "unknown-unit": "<properties",
    "unknown-output": "<properties",
    "output-folder": "<output",
    "socket-collision": '<ffsocket name="direct"',
    "socket-path": "<ffsocket",
    "socket-timeout": "<ffsocket",
    "socket-polling": "<ffsocket",
    "unknown-role": "<ffsocket",
    "batch-size": "<ffsocket",
    "mts-levels": "<mts_weights>",
    "mts-outer-iterations": "<nmts>",
    "mts-idle-level": "<nmts>",
    "mts-roles": "[ 0, 1 ]",
    "not-conservative-total": "<mts_weights>",
    "contracted-beads": 'nbeads="8"',
    "contraction-alone": 'nbeads="2"',
    "direct-unthermostatted": '<force forcefield="direct"',
    "direct-weak-thermostat": '<thermostat mode="langevin"',
    "direct-global-thermostat": '<thermostat mode="svr"',
    "direct-colored-thermostat": '<thermostat mode="gle"',
    "direct-barostat": '<force forcefield="direct"',
    "direct-energy-method": '<force forcefield="direct"',
    "kept-net-force": '<force forcefield="direct"',
    "external-potential-fixcom": '<force forcefield="trap"',
    "time-step": "<timestep",
    "outer-step-resonance": "<timestep",
    "missing-thermostat": '<dynamics mode="nvt"',
    "overdamped-pile": '<thermostat mode="pile_l"',
    "noise-temperature": '<thermostat mode="nm_gle"',
    "missing-seed": "<simulation>",
    "missing-columns": "<output",
    "missing-quantum-columns": "<output",
    "missing-species-temperatures": "<output",
    "missing-trajectories": "<output",
    "spectrum-stride": "velocities",
    "missing-checkpoint": "<output",
    "allowance": "lint: allow",
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_input_breaks_its_rule_at_its_line_and_no_other_rule(rule: str) -> None:
    path = FOLDER / f"{rule}.xml"
    findings = lint(path, keeps_net_force=rule == "kept-net-force")
    assert {finding.rule for finding in findings} == {rule}
    for finding in findings:
        assert PLACES[rule] in path.read_text().splitlines()[finding.line - 1]
        assert finding.level == LEVELS[rule]
        assert all((finding.what, finding.why, finding.remedy, finding.reference))


def test_every_rule_has_its_broken_input() -> None:
    assert sorted([*(rule.name for rule in RULES), "allowance"]) == BROKEN


def test_a_sound_input_has_no_findings() -> None:
    assert lint(FOLDER / "sound.xml") == []


@pytest.mark.parametrize("name", names())
def test_the_library_has_no_findings(name: str) -> None:
    source = load(name)
    assert lint(source.text, folder=source.folder) == []


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("nve-direct", {"direct-unthermostatted"}),
        ("nve-blended", {"direct-unthermostatted"}),
        ("resonance-scan", {"outer-step-resonance", "spectrum-stride"}),
    ],
)
def test_without_their_allowance_the_inputs_that_show_damage_are_found(name: str, rules: set[str]) -> None:
    source = load(name)
    findings = lint(source.text.replace("lint: allow", "once allowed"), folder=source.folder)
    assert {finding.rule for finding in findings} == rules


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("nvt-langevin", "direct-weak-thermostat"),
        ("nvt-svr", "direct-global-thermostat"),
        ("nvt-gle", "direct-colored-thermostat"),
        ("npt-isotropic", "direct-barostat"),
        ("pimd-pile-g", "direct-global-thermostat"),
        ("pimd-pile-l", "direct-weak-thermostat"),
        ("rpmd", "direct-unthermostatted"),
        ("geometry-optimization-lbfgs", "direct-energy-method"),
        ("geometry-optimization-bfgstrm", "direct-energy-method"),
        ("vibrations", "direct-energy-method"),
    ],
)
def test_where_the_table_says_unsafe_direct_forces_are_a_finding(name: str, rule: str) -> None:
    source = load(name).with_(forces="direct")
    assert rule in {finding.rule for finding in lint(source.text, folder=source.folder)}


def test_a_cheap_conservative_model_may_act_in_the_inner_steps() -> None:
    text = (FOLDER / "mts-roles.xml").read_text()
    cheap = text.replace("{forces: conservative}", "{forces: conservative, model: cheap}")
    assert "mts-roles" not in {finding.rule for finding in lint(cheap, folder=FOLDER)}


def test_the_outer_step_may_reach_four_femtoseconds_with_hydrogen_and_more_with_deuterium(
    tmp_path: Path,
) -> None:
    source = load("nve-mts").with_(timestep_fs=5.0)
    assert "outer-step-resonance" in {f.rule for f in lint(source.text, folder=source.folder)}
    heavy = source.text.replace(
        "<velocities",
        f'<masses mode="manual" units="dalton"> {[16.0, 4.0, 4.0] * 64} </masses>\n      <velocities',
    )
    assert "outer-step-resonance" not in {f.rule for f in lint(heavy, folder=source.folder)}


def test_fastest_stretch_knows_pairs_and_isotopes() -> None:
    water = {"O": 15.9994, "H": 1.00794}
    assert fastest_stretch(water) == 3700
    assert fastest_stretch({"O": 15.9994, "D": 2.0141}) == pytest.approx(
        2694, abs=2
    )  # 3700 sqrt(mu_OH / mu_OD)
    assert fastest_stretch({"H": 1.00794}) == 4400
    assert fastest_stretch({"Al": 26.98}) == 1000
    assert fastest_stretch({}) is None


def test_an_allowance_without_a_reason_is_a_finding() -> None:
    text = (
        (FOLDER / "time-step.xml")
        .read_text()
        .replace("<simulation>", "<!-- lint: allow time-step -->\n<simulation>")
    )
    assert [finding.what for finding in lint(text, folder=FOLDER)] == ["an allowance without a reason"]


def test_an_allowance_silences_its_rule() -> None:
    text = (FOLDER / "time-step.xml").read_text()
    allowed = text.replace(
        "<simulation>", "<!-- lint: allow time-step: a test of the thermostat -->\n<simulation>"
    )
    assert lint(allowed, folder=FOLDER) == []


def test_the_library_runs_side_by_side(tmp_path: Path) -> None:
    findings = lint_many([load(name).write(tmp_path / name / "input.xml") for name in names()])
    assert not any(findings.values())


def test_an_unrelated_error_does_not_hide_why_i_pi_refuses() -> None:
    text = (
        (FOLDER / "direct-unthermostatted.xml")
        .read_text()
        .replace("<fixcom>", "<fixcum> 1 </fixcum><fixcom>")
    )
    assert {f.rule for f in lint(text, folder=FOLDER)} == {"direct-unthermostatted", "not-accepted"}


def test_sockets_that_say_nothing_have_the_forces_of_the_command_line() -> None:
    text = (FOLDER / "sound.xml").read_text().replace("<parameters>{forces: conservative}</parameters>", "")
    assert lint(text, folder=FOLDER) == []
    assert [f.rule for f in lint(text, folder=FOLDER, default_forces="direct")] == ["direct-unthermostatted"]


def test_direct_forces_of_i_pis_own_driver_are_direct_forces() -> None:
    own = '<ffdirect name="conservative"> <pes> metatomic </pes> <parameters>{non_conservative: True}</parameters> </ffdirect>'
    before, _, rest = (FOLDER / "sound.xml").read_text().partition("<ffsocket")
    text = before + own + rest.partition("</ffsocket>")[2]
    assert [f.rule for f in lint(text, folder=FOLDER)] == ["direct-unthermostatted"]


def test_replicas_must_differ_in_seed_sockets_and_outputs(tmp_path: Path) -> None:
    first = load("nve").write(tmp_path / "a.xml")
    second = load("nve").with_(steps=30000).write(tmp_path / "b.xml")
    findings = lint_many([first, second])
    assert findings[first] == []
    assert {finding.rule for finding in findings[second]} == {clash[0] for clash in CLASHES.values()}


def test_runs_in_one_folder_share_restart_and_exit_whatever_their_prefixes(tmp_path: Path) -> None:
    paths = [load(name).write(tmp_path / f"{name}.xml") for name in ("nve", "nvt-svr")]
    findings = lint_many(paths)
    assert [(finding.rule, finding.level) for finding in findings[paths[1]]] == [("same-folder", "warning")]
    assert findings[paths[1]][0].what == f"folder {tmp_path}, as in {paths[0]}"


def test_runs_at_other_pressures_or_from_other_structures_are_no_replicas(tmp_path: Path) -> None:
    def rules(*sources: InputFile) -> set[str]:
        paths = [source.write(tmp_path / str(i) / f"{i}.xml") for i, source in enumerate(sources)]
        return {finding.rule for found in lint_many(paths).values() for finding in found}

    ice = tmp_path / "ice.xyz"
    ice.write_text(load("nve").structures[0].read_text().replace("0.", "0.0"))
    npt = load("npt-isotropic")
    first = npt.with_(address="first")
    assert rules(first, npt) == {"same-seed"}
    assert rules(first, npt.with_(pressure_GPa=1.0), npt.with_(structure=ice, address="third")) == set()


def test_replicas_that_differ_are_sound(tmp_path: Path) -> None:
    paths = [
        load("nve").with_(seed=seed, address=f"nve-{seed}").write(tmp_path / str(seed) / "input.xml")
        for seed in (1, 2)
    ]
    assert lint_many(paths) == {path: [] for path in paths}


def test_a_template_is_linted_in_all_its_instances() -> None:
    source = load("resonance-scan")
    bare = source.text.replace('<tau units="femtosecond">', "<tau>")
    assert [finding.rule for finding in lint(bare, folder=source.folder)] == ["missing-unit"]
    text = source.text.replace("[ 3.0, 6, outer-3.0fs ]", "[ 2.0, 1, outer-2.0fs ]")
    findings = lint(text, folder=source.folder)
    assert [finding.rule for finding in findings] == ["time-step"]
    assert "OUTER_STEP" in text.splitlines()[findings[0].line - 1]


@pytest.mark.parametrize("text", ["<simulation>", "<a/>", "< >", "<simulation></simulation><b/>"])
def test_what_is_no_input_is_an_error_not_a_finding(text: str) -> None:
    with pytest.raises(InputError):
        lint(text)


def test_json_and_binary_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text('{"simulation": {}}')
    (tmp_path / "binary.xml").write_bytes(b"\xff\xfe\x00\x01")
    for name, reason in (
        ("input.json", "looks like JSON"),
        ("binary.xml", "cannot read"),
        ("none.xml", "cannot read"),
    ):
        with pytest.raises(InputError, match=reason):
            lint(tmp_path / name)


def without(text: str, tag: str) -> str:
    """The text without an element and all that is in it."""
    before, _, rest = text.partition(f"<{tag}")
    return before + rest.partition(f"</{tag}>")[2]


def test_what_i_pi_writes_by_default_is_not_missing() -> None:
    text = without((FOLDER / "sound.xml").read_text(), "output")
    found = lint(text, folder=FOLDER)
    assert {(finding.rule, finding.what) for finding in found} == {
        ("missing-columns", "no column for kinetic_md"),
        ("missing-trajectories", "no trajectory of velocities"),
    }
    assert {text.splitlines()[finding.line - 1] for finding in found} == {"<simulation>"}
    empty = text.replace("<simulation>", '<simulation> <output prefix="broken"/>')
    assert {finding.rule for finding in lint(empty, folder=FOLDER)} == {
        "missing-checkpoint", "missing-columns", "missing-trajectories",
    }  # fmt: skip


def test_the_default_output_is_that_of_i_pi() -> None:
    from ipi.inputs.outputs import InputOutputs

    default = InputOutputs.make_default()
    properties, positions, checkpoint = default
    facts = read_facts(parse("<simulation/>"))
    assert facts.prefix == default.prefix
    assert [(o.kind, o.filename, o.stride, list(o.items)) for o in facts.outputs] == [
        ("properties", properties.filename, properties.stride, list(properties.outlist)),
        ("trajectory", positions.filename, positions.stride, [positions.what]),
        ("checkpoint", checkpoint.filename, checkpoint.stride, [""]),
    ]


def test_a_restart_leaves_out_a_time_step_of_one_atomic_unit() -> None:
    text = (FOLDER / "missing-timestep.xml").read_text().replace("seed>", "state>")
    assert "missing-timestep" not in {finding.rule for finding in lint(text, folder=FOLDER)}


def from_template(*instances: str) -> str:
    """The sound input, whose system now comes from a template with a label in the name of its structure."""
    wanted = "".join(f"<instance> [ {instance} ] </instance>" for instance in instances)
    return (
        (FOLDER / "sound.xml")
        .read_text()
        .replace("water.xyz", "NAME.xyz")
        .replace("<system>", f"<system_template><labels> [ NAME ] </labels>{wanted}<template><system>")
        .replace("</system>", "</system></template></system_template>")
    )


def test_a_label_of_a_template_may_stand_in_the_name_of_a_structure(tmp_path: Path) -> None:
    folder = tmp_path / "NAME"  # i-PI must not take this for the label
    folder.mkdir()
    for name in ("water", "ice"):
        (folder / f"{name}.xyz").write_text((FOLDER / "water.xyz").read_text())
    assert lint(from_template("water", "ice"), folder=folder) == []
    assert lint(from_template(f"{folder}/ice"), folder=FOLDER) == []
    found = lint(from_template("water", "steam"), folder=folder)
    assert [(finding.rule, finding.what) for finding in found] == [
        ("structure-not-found", f"there is no file steam.xyz in {folder}")
    ]
    assert [f.what for f in lint(from_template("bohr"), folder=FOLDER)] == [
        "bohr.xyz does not say 'positions{angstrom}' in its second line",
        "bohr.xyz does not say 'cell{angstrom}' in its second line",
    ]


@pytest.mark.parametrize(
    ("element", "comment", "missing"),
    [
        ('velocities mode="xyz"', "velocities{atomic_unit}", []),
        ('velocities mode="xyz"', "", ["velocities{atomic_unit}"]),
        (
            'velocities mode="xyz"',
            "velocities{m/s}",
            ["velocities{atomic_unit}"],
        ),  # i-PI takes it for atomic units
        ('velocities mode="xyz" units="m/s"', "velocities{m/s}", []),
        ('momenta mode="xyz"', "momenta{atomic_unit}", []),
        ('momenta mode="xyz"', "", ["momenta{atomic_unit}"]),
        ('positions mode="xyz"', "positions{angstrom}", []),
        ('positions mode="xyz"', "", ["positions{angstrom}"]),
        ('labels mode="xyz"', "", []),
    ],
)
def test_an_xyz_file_names_the_unit_of_what_is_read_from_it(
    element: str, comment: str, missing: list[str], tmp_path: Path
) -> None:
    water = (FOLDER / "water.xyz").read_text()
    (tmp_path / "water.xyz").write_text(water)
    (tmp_path / "more.xyz").write_text(water.replace("positions{angstrom} cell{angstrom}", comment))
    tag = element.partition(" ")[0]
    text = (FOLDER / "sound.xml").read_text()
    text = text.replace("</initialize>", f"<{element}> more.xyz </{tag}> </initialize>")
    found = lint(text, folder=tmp_path)
    assert [(finding.rule, finding.what) for finding in found] == [
        ("xyz-without-units", f"more.xyz does not say '{word}' in its second line") for word in missing
    ]


TEXTS = [
    (FOLDER / name).read_text() for name in ("sound.xml", "outer-step-resonance.xml", "noise-temperature.xml")
]


@given(
    text=st.sampled_from(TEXTS),
    place=st.floats(0, 1, exclude_max=True),
    junk=st.sampled_from(["", "x", "<", "0", "-", "nan", '"', "[", "}", "é", "-->"]),
)
@settings(max_examples=150, deadline=None)
def test_the_linter_never_falls_over_a_typo(text: str, place: float, junk: str) -> None:
    at = 1 + int(place * (len(text) - 1))
    try:
        findings = lint(text[:at] + junk + text[at + 1 :], folder=FOLDER)
    except InputError:
        return
    assert all(finding.line >= 1 for finding in findings)


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(inputs, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_the_exit_code_of_lint_is_1_on_errors_and_0_on_warnings() -> None:
    assert run("lint", str(FOLDER / "missing-unit.xml"))[0] == 1
    assert run("lint", str(FOLDER / "time-step.xml"))[0] == 0
    assert run("lint", str(FOLDER / "sound.xml"))[:2] == (0, "")
    assert run("lint", str(FOLDER / "kept-net-force.xml"), "--net-force", "keep")[1] != ""


def test_lint_as_json_holds_every_field() -> None:
    _, output, _ = run("lint", "--json", str(FOLDER / "missing-unit.xml"))
    (finding,) = json.loads(output)
    assert list(finding) == ["file", "rule", "level", "line", "what", "why", "remedy", "reference"]
    assert json.loads(run("lint", "--json", str(FOLDER / "sound.xml"))[1]) == []


def test_lint_without_such_a_file_is_a_usage_error_in_one_line() -> None:
    code, output, errors = run("lint", "nowhere.xml")
    assert (code, output) == (2, "")
    assert errors.startswith("forceserver inputs: cannot read nowhere.xml")


def test_list_names_every_input_with_its_purpose() -> None:
    lines = run("list")[1].splitlines()
    assert [line.split()[0] for line in lines] == names()
    assert all(len(line.split()) > 4 for line in lines)


def test_show_prints_the_input_and_its_cost() -> None:
    code, output, errors = run("show", "nve-mts")
    assert (code, output) == (0, load("nve-mts").text)
    assert "8 inner steps of 0.5 fs" in errors


def test_write_prints_the_path_and_what_the_edit_implies(tmp_path: Path) -> None:
    target = tmp_path / "input.xml"
    code, output, _ = run(
        "write", "rpc-mts", "-o", str(target), "--n-beads", "16", "--mts", "4", "--contracted-beads", "2"
    )
    assert code == 0
    assert output.splitlines() == [
        str(target),
        "outer step 1 fs (i-PI's timestep) = 4 inner steps of 0.25 fs, 1,000,000 outer steps per ns",
        "conservative evaluations: 2 per outer step, 2,000 per ps",
        "direct evaluations: 66 per outer step, 66,000 per ps",
    ]
    assert load(str(target)).facts.systems[0].n_beads == 16


def test_write_does_not_overwrite_unless_forced(tmp_path: Path) -> None:
    target = tmp_path / "input.xml"
    target.write_text("precious")
    assert run("write", "nve", "-o", str(target))[0] == 2
    assert target.read_text() == "precious"
    assert run("write", "nve", "-o", str(target), "--force")[0] == 0


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("folder", "{}/folder is a folder, wanted the name of a file, e.g. {}/folder/input.xml"),
        ("plain/input.xml", "cannot write {}/plain/input.xml: [Errno 17] File exists: '{}/plain'"),
        ("plain/run/input.xml", "cannot write {}/plain/run/input.xml: [Errno 20] Not a directory: '{}/plain/run'"),
        ("/proc/nope/input.xml", "cannot write /proc/nope/input.xml: [Errno 2] No such file or directory: '/proc/nope'"),
    ],
)  # fmt: skip
def test_where_nothing_can_be_written_is_a_usage_error_in_one_line(
    output: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").touch()
    code, printed, errors = run("write", "nve", "-o", str(tmp_path / output), "--force")
    assert (code, printed) == (2, "")
    assert errors.count("\n") == 1
    assert reason.format(tmp_path, tmp_path) in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "plain"]


def test_an_impossible_edit_is_a_usage_error_in_one_line(tmp_path: Path) -> None:
    code, output, errors = run("write", "nve", "-o", str(tmp_path / "input.xml"), "--mts", "4")
    assert (code, output) == (2, "")
    assert errors.count("\n") == 1
