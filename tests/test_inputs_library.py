"""The input library: what there is, edits that touch what they should and nothing else, files that stand on their own."""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ipi_inputs
from ipi_inputs import InputError, InputFile, load, names
from ipi_inputs.cost import cost_of
from ipi_inputs.document import apply, find_all, parse, replace_attribute, replace_value, value_of
from ipi_inputs.edits import EDITS
from ipi_inputs.judge import judge

ARGON = """2
# CELL(abcABC): 10.0 10.0 10.0 90.0 90.0 90.0 positions{angstrom} cell{angstrom}
Ar 0.0 0.0 0.0
Ne 3.0 0.0 0.0
"""
README = Path(ipi_inputs.__file__).with_name("README.md")


def changed_lines(before: str, after: str) -> list[str]:
    """The lines of the new text that the old one does not have, without blanks around them."""
    diff = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line[2:].strip() for line in diff if line.startswith("+ ")]


@pytest.mark.parametrize("name", names())
def test_i_pi_accepts_every_input(name: str) -> None:
    source = load(name)
    assert judge(source.text, source.folder).n_atoms == 192


@pytest.mark.parametrize("name", names())
def test_every_header_says_what_it_measures_costs_and_does_to_direct_forces(name: str) -> None:
    header = load(name).header
    for word in ("Measures:", "Cost:", "Direct:"):
        assert word in header
    assert load(name).summary.endswith(".")


def test_the_cost_in_a_header_is_the_cost() -> None:
    for name in names():
        source = load(name)
        text = " ".join(source.header.split())
        per_ps = {f"{count:g}" for count in cost_of(source.facts).per_ps.values()}
        for number in per_ps - {"2100"}:  # of nve-blended: 2000 for the blend, 100 for the monitor
            assert re.search(rf"\b{number}\b", text), f"{name}: {number} per ps"


def test_the_table_of_the_readme_has_every_input_with_its_cost() -> None:
    rows = {
        cells[1].strip(" `"): cells
        for line in README.read_text().splitlines()
        if line.startswith("| `") and len(cells := line.split("|")) in (6, 9)
    }
    assert set(names()) <= set(rows)
    for name in names():
        per_ps = cost_of(load(name).facts).per_ps
        if per_ps:
            assert [float(cell) for cell in rows[name][5:7]] == [
                pytest.approx(per_ps.get(kind, 0)) for kind in ("conservative", "direct")
            ]


def test_no_two_inputs_share_a_socket_or_an_output() -> None:
    addresses = [socket.address for name in names() for socket in load(name).facts.sockets]
    prefixes = [load(name).facts.prefix for name in names()]
    assert len(addresses) == len(set(addresses))
    assert prefixes == names()


@pytest.mark.parametrize("name", names())
def test_an_edit_and_its_inverse_give_back_every_byte(name: str) -> None:
    source = load(name)
    edited = source.with_(steps=7, seed=11, prefix="another", address="elsewhere")
    original = {"steps": source.facts.total_steps, "seed": source.facts.seed, "prefix": source.facts.prefix}
    assert edited.with_(**original, address=name).text == source.text  # type: ignore[arg-type]
    assert source.text == load(name).text


def test_an_edit_changes_its_lines_and_no_others() -> None:
    source = load("nve-mts")
    assert changed_lines(source.text, source.with_(steps=7).text) == ["<total_steps> 7 </total_steps>"]
    assert changed_lines(source.text, source.with_(seed=8).text) == ["<seed> 8 </seed>"]
    assert changed_lines(source.text, source.with_(prefix="p").text) == ['<output prefix="p">']
    assert changed_lines(source.text, source.with_(address="a").text) == [
        "<address> a-conservative </address>",
        "<address> a-direct </address>",
    ]
    assert changed_lines(source.text, source.with_(temperature_K=350).text) == [
        '<velocities mode="thermal" units="kelvin"> 350 </velocities>',
        '<temperature units="kelvin"> 350 </temperature>',
    ]


def test_a_later_edit_replaces_an_earlier_one() -> None:
    assert load("nve").with_(steps=3, seed=1).with_(steps=4).edits == ("seed=1", "steps=4")


def test_mts_keeps_the_inner_step_and_moves_the_outer_one() -> None:
    system = load("nve-mts").with_(mts=4).facts.systems[0]
    assert (system.timestep_fs, system.inner_timestep_fs, system.nmts) == (
        pytest.approx(2),
        pytest.approx(0.5),
        (1, 4),
    )


def test_timestep_is_the_outer_step_also_beside_mts() -> None:
    system = load("nve-mts").with_(mts=4, timestep_fs=3).facts.systems[0]
    assert (system.timestep_fs, system.inner_timestep_fs) == (pytest.approx(3), pytest.approx(0.75))


def test_mts_takes_one_number_per_inner_level() -> None:
    system = load("rpc-mts-three-levels").with_(mts=(2, 3)).facts.systems[0]
    assert (system.nmts, system.timestep_fs) == ((1, 2, 3), pytest.approx(1.5))


def test_n_beads_brings_one_column_per_normal_mode() -> None:
    facts = load("pimd-mts").with_(n_beads=3).facts
    modes = next(output for output in facts.outputs_of("properties") if output.filename == "modes")
    assert [item for item in modes.items if "nm=" in item] == [
        f"temperature(nm={k}){{kelvin}}" for k in range(3)
    ]
    main = next(output for output in facts.outputs_of("properties") if output.filename == "properties")
    assert [item for item in main.items if "nm=" in item] == ["temperature(nm=0){kelvin}"]
    assert facts.systems[0].n_beads == 3


def test_contracted_beads_changes_the_smallest_ring_polymer_only() -> None:
    components = load("rpc-mts-three-levels").with_(contracted_beads=1).facts.systems[0].components
    assert [component.n_beads for component in components] == [1, 1, 4, 4, 0]


def test_both_ring_polymers_may_grow_or_shrink_together() -> None:
    for n_beads, contracted in ((64, 40), (2, 1)):
        system = load("rpc").with_(n_beads=n_beads, contracted_beads=contracted).facts.systems[0]
        assert (system.n_beads, system.components[0].n_beads) == (n_beads, contracted)


def test_pressure_and_tau_are_written_in_their_units() -> None:
    system = load("npt-mts").with_(pressure_GPa=0.2, tau_fs=50).facts.systems[0]
    assert system.pressure_GPa == pytest.approx(0.2)
    assert [thermostat.tau_fs for thermostat in system.thermostats] == [pytest.approx(50)]
    assert (
        '<tau units="femtosecond"> 250 </tau>' in load("npt-mts").with_(tau_fs=50).text
    )  # the barostat's own


def test_numbers_may_come_from_numpy() -> None:
    system = load("pimd-mts").with_(n_beads=np.int64(4), timestep_fs=np.float32(1.5)).facts.systems[0]
    assert (system.n_beads, system.timestep_fs) == (4, pytest.approx(1.5))


def test_forces_edits_the_role_of_the_socket() -> None:
    source = load("nvt-langevin").with_(forces="blended:0.25")
    assert source.facts.sockets[0].parameters == {"forces": "blended", "direct_fraction": "0.25"}


def test_structure_brings_the_columns_of_its_species(tmp_path: Path) -> None:
    (tmp_path / "argon.xyz").write_text(ARGON)
    facts = load("nve").with_(structure=tmp_path / "argon.xyz").facts
    columns = [item for item in facts.outputs[0].items if "(" in item]
    assert columns == ["temperature(Ar){kelvin}", "temperature(Ne){kelvin}"]


@pytest.mark.parametrize("tag", ["velocities", "momenta"])
@pytest.mark.parametrize("structure", ["argon.xyz", "RESTART"])
def test_velocities_of_another_structure_are_not_kept_nor_read_from_the_new_one(
    tag: str, structure: str, tmp_path: Path
) -> None:
    (tmp_path / structure).write_text(ARGON)
    text = load("nve").text.replace("<velocities", f'<{tag} mode="xyz"> moving.xyz </{tag}> <velocities')
    with pytest.raises(InputError, match=f"nve takes its {tag} from moving.xyz, .*; remove this <{tag}>"):
        InputFile("nve", text, tmp_path).with_(structure=tmp_path / structure)


@pytest.mark.parametrize(
    ("element", "value"),
    [
        ('cell mode="abc" units="angstrom"', "[ 12, 12, 12 ]"),
        ('cell mode="abcABC" units="angstrom"', "[ 12, 12, 12, 90, 90, 90 ]"),
        ('cell mode="manual" units="angstrom"', "[ 12, 0, 0, 0, 12, 0, 0, 0, 12 ]"),
        ('cell units="angstrom"', "[ 12, 0, 0, 0, 12, 0, 0, 0, 12 ]"),
        ('labels mode="manual"', "[ Ne, Ar ]"),
        ('labels mode="manual" index="1"', "Kr"),
        ('masses mode="manual" units="dalton"', "[ 20, 20 ]"),
        ('positions mode="manual" units="angstrom"', "[ 0, 0, 0, 4, 0, 0 ]"),
        ('velocities mode="manual" units="m/s"', "[ 1, 0, 0, -1, 0, 0 ]"),
    ],
)
def test_what_is_written_out_of_the_old_structure_is_not_kept_for_another(
    element: str, value: str, tmp_path: Path
) -> None:
    (tmp_path / "argon.xyz").write_text(ARGON)
    (tmp_path / "other.xyz").write_text(ARGON)
    tag = element.partition(" ")[0]
    text = load("nve").text.replace("water64.xyz", "argon.xyz")
    text = text.replace("<velocities", f"<{element}> {value} </{tag}> <velocities", 1)
    assert judge(text, tmp_path).n_atoms == 2
    with pytest.raises(InputError, match=f"mine takes its {tag} from the input itself .*remove this <{tag}>"):
        InputFile("mine", text, tmp_path).with_(structure=tmp_path / "other.xyz")


def test_structure_needs_nothing_of_the_old_one(tmp_path: Path) -> None:
    """Neither its file nor its cell, which the user may have had to remove from the input."""
    (tmp_path / "argon.xyz").write_text(ARGON)
    source = InputFile("nve", load("nve").text, tmp_path).with_(structure=tmp_path / "argon.xyz")
    assert source.text == load("nve").with_(structure=tmp_path / "argon.xyz").text
    wrong = InputFile("nve", load("nve").text.replace("fixcom", "fixcum"), load("nve").folder)
    with pytest.raises(InputError, match=r"^i-PI refuses this input: .*fixcum"):
        wrong.with_(structure=tmp_path / "argon.xyz")


def test_structure_replaces_every_file_of_the_structure(tmp_path: Path) -> None:
    (tmp_path / "argon.xyz").write_text(ARGON)
    text = load("nve").text
    for tag in ("positions", "labels", "masses"):
        text = text.replace("<velocities", f'<{tag} mode="xyz"> water64.xyz </{tag}> <velocities', 1)
    source = InputFile("nve", text, load("nve").folder).with_(structure=tmp_path / "argon.xyz")
    assert source.structures == (tmp_path / "argon.xyz",)


@pytest.mark.parametrize("name", ["a&b.xyz", "a<b>.xyz", "a'b\".xyz", "a---b--.xyz"])
def test_the_name_of_a_structure_may_hold_what_xml_takes_for_its_own(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(ARGON)
    path = load("nve").with_(structure=tmp_path / name).write(tmp_path / "run" / "input.xml")
    assert load(str(path)).structures == (path.parent / name,)
    assert judge(path.read_text(), path.parent).n_atoms == 2


def test_a_written_input_stands_alone_with_its_structure(tmp_path: Path) -> None:
    (tmp_path / "argon.xyz").write_text(ARGON)
    source = load("nve").with_(structure=tmp_path / "argon.xyz", address="two--hyphens")
    path = source.write(tmp_path / "run" / "input.xml")
    assert sorted(file.name for file in path.parent.iterdir()) == ["argon.xyz", "input.xml"]
    assert str(tmp_path) not in path.read_text()
    assert judge(path.read_text(), path.parent).n_atoms == 2
    assert path.read_text().startswith("<!-- nve with address=two- -hyphens, structure=argon.xyz;")


@pytest.mark.parametrize(
    "start", ["", '<?xml version="1.0"\n  encoding="UTF-8"?>\n', "\ufeff", "\ufeff<?xml version='1.0'?>"]
)
def test_the_note_of_an_edited_input_leaves_its_xml_declaration_in_front(start: str, tmp_path: Path) -> None:
    source = InputFile("mine", start + load("nve").text, load("nve").folder).with_(steps=3)
    path = source.write(tmp_path / "input.xml")
    assert path.read_text().startswith(f"{start}<!-- mine with steps=3;")
    assert load(str(path)).with_(steps=4).facts.total_steps == 4


def from_template(text: str, *names: str) -> str:
    """An input whose system now comes from a template with a label in the name of its structure."""
    instances = "".join(f"<instance> [ {name} ] </instance>" for name in names)
    before, _, rest = text.replace("water64.xyz", "NAME.xyz").partition("<system>")
    system, _, after = rest.partition("</system>")
    return (
        f"{before}<system_template><labels> [ NAME ] </labels>{instances}\n<template><system>{system}</system></template>"
        f"</system_template>{after}"
    )


def test_an_input_with_a_template_is_written_with_the_structures_of_all_instances(tmp_path: Path) -> None:
    for name in ("argon", "neon"):
        (tmp_path / f"{name}.xyz").write_text(ARGON)
    source = InputFile("mine", from_template(load("nve").text, "argon", "neon"), tmp_path)
    path = source.write(tmp_path / "run" / "input.xml")
    assert sorted(file.name for file in path.parent.iterdir()) == ["argon.xyz", "input.xml", "neon.xyz"]
    assert judge(path.read_text(), path.parent).n_atoms == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "argon.xyz").rename(tmp_path / "other" / "argon.xyz")
    source = InputFile("mine", from_template(load("nve").text, "other/argon"), tmp_path)
    with pytest.raises(InputError, match="wanted labels that stand for bare names"):
        source.write(tmp_path / "another" / "input.xml")
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize(
    ("name", "edits"),
    [
        ("nvt-svr", {"timestep_fs": 0.25}),
        ("nvt-svr", {"tau_fs": 50.0}),
        ("nve-mts", {"mts": 4}),
        ("pimd-pile-l", {"n_beads": 4}),
    ],
)
def test_a_system_from_a_template_is_not_edited(name: str, edits: dict[str, object]) -> None:
    source = InputFile(name, from_template(load(name).text, "water64"), load(name).folder)
    with pytest.raises(InputError, match=f"{name} makes its system from a template"):
        source.with_(**edits)  # type: ignore[arg-type]
    assert source.with_(temperature_K=350.0).facts.systems[0].temperature_K == pytest.approx(350)


def test_an_unedited_input_is_written_as_it_is(tmp_path: Path) -> None:
    assert load("rpc").write(tmp_path / "input.xml").read_text() == load("rpc").text


def test_writing_never_overwrites_another_structure(tmp_path: Path) -> None:
    (tmp_path / "water64.xyz").write_text(ARGON)
    with pytest.raises(InputError, match="exists and differs"):
        load("nve").write(tmp_path / "input.xml")
    assert (tmp_path / "water64.xyz").read_text() == ARGON


def test_outputs_go_to_a_folder_only_if_it_is_there(tmp_path: Path) -> None:
    source, target = load("nve").with_(prefix="results/long"), tmp_path / "run" / "input.xml"
    with pytest.raises(
        InputError, match=f"outputs of nve would go to {target.parent}/results, a folder that is not"
    ):
        source.write(target)
    assert not target.exists()
    (target.parent / "results").mkdir()
    assert load(str(source.write(target))).facts.prefix == "results/long"


def test_the_output_folders_follow_all_prefixes_and_file_names() -> None:
    source = load("resonance-scan")
    assert source.facts.output_folders == (Path(),)
    text = source.text.replace('prefix="resonance-scan"', 'prefix="a/b"').replace('"properties"', '"c/d"')
    folders = {str(folder) for folder in InputFile("mine", text, source.folder).facts.output_folders}
    assert folders >= {"a", "outer-3.0fs_a", "outer-3.0fs_a/b.c"}


def test_an_input_of_ones_own_can_be_edited(tmp_path: Path) -> None:
    path = load("nve").write(tmp_path / "mine.xml")
    assert load(str(path)).with_(steps=3).facts.total_steps == 3


REFUSED = [
    ("nve", {"mts": 4}, "does no multiple time stepping"),
    ("nve", {"tau_fs": 10.0}, "no thermostat"),
    ("nve", {"n_beads": 8}, "classical"),
    ("nve", {"contracted_beads": 2}, "no ring-polymer contraction"),
    ("nve", {"pressure_GPa": 1.0}, "constant volume"),
    ("nve", {"steps": 0}, "at least 1"),
    ("nve", {"steps": 1.5}, "whole number"),
    ("nve", {"timestep_fs": -1.0}, "positive"),
    ("nve", {"temperature_K": float("nan")}, "wanted a number"),
    ("npt-mts", {"pressure_GPa": "high"}, "wanted a number"),
    ("nve", {"forces": "blended"}, "blended:X"),
    ("nve", {"forces": "dircet"}, "conservative, direct or blended:X"),
    ("nve", {"structure": "/no/such/file.xyz"}, "no file"),
    ("nve", {"address": "a b"}, "cannot be a unix socket"),
    ("nve", {"address": "a" * 120}, "at most 107"),
    ("nve", {"prefix": 'a"b'}, "without blanks or quotes"),
    ("nve-mts", {"mts": (2, 2)}, "wanted one number"),
    ("nve-mts", {"mts": 0}, "at least 1"),
    ("nve-mts", {"forces": "direct"}, "combines conservative, direct"),
    ("rpc", {"n_beads": 2}, "contracted to 4 beads, of a ring polymer of 2"),
    ("rpc", {"contracted_beads": 64}, "contracted to 64 beads, of a ring polymer of 32"),
    ("pimd-piglet", {"n_beads": 8}, "hold for 4 beads"),
    ("pimd-piglet", {"temperature_K": 350.0}, "hold for 298 K"),
    ("resonance-scan", {"timestep_fs": 4.0}, "7 systems"),
    ("vibrations", {"timestep_fs": 1.0}, "no time step"),
    ("vibrations", {"temperature_K": 300.0}, "no temperature"),
]


@pytest.mark.parametrize(("name", "edits", "reason"), REFUSED)
def test_an_impossible_edit_says_why(name: str, edits: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)):
        load(name).with_(**edits)  # type: ignore[arg-type]


def test_an_unknown_edit_names_the_nearest_and_all_others() -> None:
    with pytest.raises(InputError, match="did you mean 'steps'") as error:
        load("nve").with_(step=3)  # type: ignore[call-arg]
    assert all(edit in str(error.value) for edit in EDITS)


def test_an_unknown_input_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'nvt-langevin'"):
        load("nvt-langevn")


PDB_LINE = "ATOM  {:5d} {:>4} MOL     1    {:8.3f}{:8.3f}{:8.3f}  1.00  0.00          {:>2}  \n"


def write_pdb(path: Path, names: tuple[str, ...], before: str = "", after: str = "END\n") -> Path:
    """A pdb with columns as the standard has them."""
    atoms = (PDB_LINE.format(i + 1, name, -100.5, -200.25, 3.0 * i, "") for i, name in enumerate(names))
    cell = "CRYST1   20.000   20.000   20.000  90.00  90.00  90.00 P 1           1\n"
    path.write_text(before.replace("CELL", cell) + "".join(atoms) + after)
    return path


def positions_in_bohr(source: InputFile) -> list[list[float]]:
    """Those from which i-PI starts."""
    from ipi.engine.initializer import init_file

    (structure,) = source.structures
    mode = re.search('<file mode="([a-z]+)">', source.text)
    assert mode
    return [list(atom) for atom in init_file(mode[1], str(structure))[0][0].q.reshape(-1, 3)]


@pytest.mark.parametrize(
    ("names", "species", "before", "after"),
    [
        (("Ar", "Ne"), ("Ar", "Ne"), "CELLMODEL     1\n", "ENDMDL\n"),  # as ASE writes it
        (("OW", "HW1"), ("O", "H"), "REMARK by hand\nCELL", "TER\nEND\n"),
        (("O", "H"), ("O", "H"), "TITLE  water\nCELL", "END\n"),
    ],
)
def test_a_pdb_is_read_as_the_standard_says(
    names: tuple[str, ...], species: tuple[str, ...], before: str, after: str, tmp_path: Path
) -> None:
    source = load("nve").with_(structure=write_pdb(tmp_path / "a.pdb", names, before, after))
    assert positions_in_bohr(source) == [
        pytest.approx([x * 1.8897261 for x in (-100.5, -200.25, z)]) for z in (0, 3)
    ]
    assert judge(source.text, tmp_path).species == species


def test_a_pdb_with_the_units_of_i_pi_is_left_to_i_pi(tmp_path: Path) -> None:
    (tmp_path / "a.pdb").write_text(
        "TITLE  positions{atomic_unit} cell{atomic_unit}\n"
        "CRYST1   20.000   20.000   20.000  90.00  90.00  90.00 P 1           1\n"
        + PDB_LINE.format(1, "D", 1, 2, 3, "")
        + "END\n"
    )
    source = load("nve").with_(structure=tmp_path / "a.pdb")
    assert positions_in_bohr(source) == [pytest.approx([1, 2, 3])]
    assert judge(source.text, tmp_path).species == ("D",)


HEAVY_WATER = """3
LATTICE
O 0.0 0.0 0.0
D 1.0 0.0 0.0
D 0.0 1.0 0.0
"""


def test_deuterium_is_known_in_i_pi_s_own_xyz_and_refused_with_a_remedy_elsewhere(tmp_path: Path) -> None:
    own, extended = tmp_path / "own.xyz", tmp_path / "extended.xyz"
    own.write_text(HEAVY_WATER.replace("LATTICE", ARGON.splitlines()[1]))
    extended.write_text(HEAVY_WATER.replace("LATTICE", 'Lattice="10 0 0 0 10 0 0 0 10"'))
    assert "temperature(D){kelvin}" in load("nve").with_(structure=own).text
    for structure in (extended, write_pdb(tmp_path / "d.pdb", ("O", "D"), "CELL")):
        with pytest.raises(
            InputError, match=f"structure: {structure.name}, .*D.* and T, if any, only in i-PI's own xyz"
        ):
            load("nve").with_(structure=structure)


def test_a_structure_without_units_is_refused(tmp_path: Path) -> None:
    (tmp_path / "argon.xyz").write_text(ARGON.replace("positions{angstrom} cell{angstrom}", ""))
    with pytest.raises(InputError, match="would read bohr"):
        load("nve").with_(structure=tmp_path / "argon.xyz")


def test_what_i_pi_refuses_is_refused_in_its_words(tmp_path: Path) -> None:
    broken = load("nve-mts").text.replace("[ 1, 8 ]", "[ 1 ]")
    with pytest.raises(InputError, match="number of mts levels"):
        judge(broken, load("nve-mts").folder)


def test_i_pi_prints_nothing_and_keeps_its_settings(capfd: pytest.CaptureFixture[str]) -> None:
    from ipi import ipi_global_settings
    from ipi.utils.messages import verbosity

    before = (dict(ipi_global_settings), verbosity.level)
    load("resonance-scan").with_(steps=3)
    assert (dict(ipi_global_settings), verbosity.level) == before
    assert capfd.readouterr() == ("", "")


def test_importing_the_package_imports_neither_i_pi_nor_numpy() -> None:
    program = "import sys, ipi_inputs, ipi_inputs.cli; print([m for m in ('ipi', 'numpy', 'torch') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1)


@settings(max_examples=50, deadline=None)
@given(
    comment=st.text("abc é\n<>-\"'", max_size=20), value=WORDS, attribute=WORDS, quote=st.sampled_from("\"'")
)
def test_edits_of_any_xml_leave_all_other_characters_alone(
    comment: str, value: str, attribute: str, quote: str
) -> None:
    safe = comment.replace("--", "").rstrip("-")
    text = f"<!--{safe}-->\n<a  b = {quote}old{quote}\tc='x>y'><!--{safe}--> <d>\n one </d><d/>\n</a>\n<!--{safe}-->"
    document = parse(text)
    first = next(find_all(document.root, "d"))
    edits = [
        replace_attribute(document, document.root, "b", attribute),
        replace_value(document, first, value),
    ]
    edited = apply(document, edits)
    in_quotes = escape(attribute, {'"': "&quot;", "'": "&apos;"})
    assert edited == text.replace("old", in_quotes, 1).replace("\n one ", f"\n {escape(value)} ", 1)
    root = parse(edited).root
    assert (root.get("b"), value_of(next(find_all(root, "d")))) == (attribute, value)
