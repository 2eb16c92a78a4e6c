"""Every way in which an i-PI input can name its sockets and its atoms."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ase.data import atomic_numbers

from forceserver.errors import UsageError
from forceserver.inputfile import read_input
from forceserver.species import read_template
from forceserver.structure_files import read_structure
from forceserver.transport import InetAddress, UnixAddress

CELL = '<cell units="angstrom" mode="abc"> [12, 12, 12] </cell>'
XYZ = """3
# CELL(abcABC): 10.0 10.0 10.0 90.0 90.0 90.0 positions{angstrom} cell{angstrom}
O 0.0 0.0 0.0
H 1.0 0.0 0.0
H 0.0 1.0 0.0
"""
SOCKET = '<ffsocket name="ff" mode="unix"><address>here</address></ffsocket>'
FILE = '<file mode="xyz"> water.xyz </file>'
NPT = '<dynamics mode="npt"><barostat mode="isotropic"/></dynamics>'
VELOCITIES = '<velocities mode="thermal" units="kelvin"> 300 </velocities>'


def write(
    folder: Path,
    *,
    forcefields: str = SOCKET,
    system: str | None = None,
    initialize: str = FILE,
    forces: str = '<force forcefield="ff"/>',
    n_beads: int = 1,
    ensemble: str = "",
    dynamics: str = '<dynamics mode="nve"/>',
    properties: str = "step, conserved",
    attributes: str = "",
) -> Path:
    (folder / "water.xyz").write_text(XYZ)
    start = f'<initialize nbeads="{n_beads}">{initialize}{VELOCITIES}</initialize>'
    motion = f'<motion mode="dynamics">{dynamics}</motion>'
    whole = f"<system>{system or start}<forces>{forces}</forces>{ensemble}{motion}</system>"
    output = f'<output prefix="out"><properties filename="out"> [ {properties} ] </properties></output>'
    path = folder / "input.xml"
    path.write_text(f"<simulation {attributes}>{output}{forcefields}{whole}</simulation>")
    return path


def test_a_unix_socket_stands_behind_the_prefix_of_the_input_or_of_the_command_line(tmp_path: Path) -> None:
    assert read_input(write(tmp_path)).sockets[0].address == UnixAddress("/tmp/ipi_here")
    path = write(tmp_path, attributes='sockets_prefix="/scratch/me/"')
    assert read_input(path).sockets[0].address == UnixAddress("/scratch/me/here")
    assert read_input(path, sockets_prefix="/dev/shm/x_").sockets[0].address == UnixAddress("/dev/shm/x_here")


def test_an_inet_socket_has_a_host_and_a_port(tmp_path: Path) -> None:
    inet = '<ffsocket name="ff"><address>node7</address><port>31415</port></ffsocket>'
    assert read_input(write(tmp_path, forcefields=inet)).sockets[0].address == InetAddress("node7", 31415)


FAST_AND_SLOW = (
    '<ffsocket name="fast" mode="unix"><address>a</address><parameters>{forces: direct}</parameters></ffsocket>'
    '<ffsocket name="slow" mode="unix"><address>b</address><batch_size>4</batch_size></ffsocket>'
)
LEVELS = (
    '<force forcefield="fast"><mts_weights>[-1, 1]</mts_weights></force>'
    '<force forcefield="slow" nbeads="2"><mts_weights>[1, 0]</mts_weights></force>'
)


def test_parameters_batch_size_and_beads_are_read(tmp_path: Path) -> None:
    fast, slow = read_input(write(tmp_path, forcefields=FAST_AND_SLOW, forces=LEVELS, n_beads=8)).sockets
    assert (fast.name, dict(fast.parameters), fast.batch_size, fast.n_requests) == (
        "fast",
        {"forces": "direct"},
        1,
        8,
    )
    assert (slow.name, dict(slow.parameters), slow.batch_size, slow.n_requests) == ("slow", {}, 4, 2)


PDB = """CRYST1   10.000   10.000   10.000  90.00  90.00  90.00 P 1           1
ATOM      1    O   1     1       0.000   0.000   0.000  0.00  0.00            0
ATOM      2    H   1     1       1.000   0.000   0.000  0.00  0.00            0
ATOM      3    H   1     1       0.000   1.000   0.000  0.00  0.00            0
END
"""
EXTXYZ = """3
Lattice="10 0 0 0 10 0 0 0 10" Properties=species:S:1:pos:R:3 pbc="T T T"
O 0.0 0.0 0.0
H 1.0 0.0 0.0
H 0.0 1.0 0.0
"""


@pytest.mark.parametrize(
    ("initialize", "numbers"),
    [
        (FILE, [8, 1, 1]),
        ('<file mode="pdb"> water.pdb </file>', [8, 1, 1]),
        ('<file mode="ase"> water.extxyz </file>', [8, 1, 1]),
        (FILE + '<labels mode="manual"> [ O18, D, T ] </labels>', [8, 1, 1]),
        (FILE + CELL, [8, 1, 1]),
        (
            '<positions mode="xyz"> water.xyz </positions><labels mode="xyz"> water.xyz </labels>' + CELL,
            [8, 1, 1],
        ),
    ],
)
def test_atoms_are_told_from_everything_that_i_pi_reads(
    tmp_path: Path, initialize: str, numbers: list[int]
) -> None:
    (tmp_path / "water.pdb").write_text(PDB)
    (tmp_path / "water.extxyz").write_text(EXTXYZ)
    template = read_input(write(tmp_path, initialize=initialize)).sockets[0].template
    assert template.atomic_numbers.tolist() == numbers
    assert template.pbc.all()


@pytest.mark.parametrize("lattice", ["8 0 0 0 8 0 0 0 -30", "0 8 0 8 0 0 0 0 30", "8 0 0 0 8 0 0 0 30"])
def test_a_left_handed_cell_is_a_cell(tmp_path: Path, lattice: str) -> None:
    """i-PI's reader turns it so that its third vector points down, and the trace of a long cell is then negative."""
    (tmp_path / "water.extxyz").write_text(EXTXYZ.replace("10 0 0 0 10 0 0 0 10", lattice))
    initialize = '<file mode="ase"> water.extxyz </file>'
    assert read_input(write(tmp_path, initialize=initialize)).sockets[0].template.pbc.all()


def test_atoms_written_inline_as_in_a_restart_are_told(tmp_path: Path) -> None:
    beads = (
        '<beads natoms="2" nbeads="3"><q shape="(3, 6)">' + str([0.0] * 18) + "</q><m> [1.0, 2.0] </m>"
        "<names shape='(2)'> [ C, Cl37 ] </names></beads><cell> [20, 0, 0, 0, 20, 0, 0, 0, 20] </cell>"
    )
    spec = read_input(write(tmp_path, system=beads)).sockets[0]
    assert spec.template.atomic_numbers.tolist() == [6, 17]
    assert spec.template.pbc.all()
    assert spec.n_requests == 3


def test_the_cell_may_stand_anywhere_that_i_pi_looks_for_it(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        system=f'<cell units="angstrom"> [10, 0, 0, 0, 10, 0, 0, 0, 10] </cell><initialize nbeads="1">{FILE}</initialize>',
    )
    (tmp_path / "water.xyz").write_text(XYZ.replace(XYZ.splitlines()[1], "no cell here"))
    assert read_input(path).sockets[0].template.pbc.all()


def test_a_file_that_is_another_in_our_directory_is_not_guessed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "water.xyz").write_text(XYZ.replace("O ", "S "))
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is not the same as"):
        read_input(path)
    there = read_input(path, folder=tmp_path).sockets[0].template
    assert there.atomic_numbers.tolist() == [8, 1, 1], "it is known where i-PI runs"
    with pytest.raises(UsageError, match=r"names the file 'water.xyz', which is not in .*, where i-PI runs"):
        read_input(path, folder=Path("/"))


def test_one_label_of_many_may_be_changed(tmp_path: Path) -> None:
    path = write(tmp_path, initialize=FILE + '<labels mode="manual" index="1"> [ D ] </labels>')
    assert read_input(path).sockets[0].template.atomic_numbers.tolist() == [8, 1, 1]
    path = write(tmp_path, initialize=FILE + '<labels mode="manual" index="0"> [ S ] </labels>')
    assert read_input(path).sockets[0].template.atomic_numbers.tolist() == [16, 1, 1]


def test_a_socket_that_no_force_uses_is_left_alone(tmp_path: Path) -> None:
    unused = SOCKET.replace('ff"', 'bias"').replace("here", "there")
    (spec,) = read_input(write(tmp_path, forcefields=SOCKET + unused)).sockets
    assert spec.name == "ff"


def test_a_socket_of_a_bias_is_served_and_barostats_read_its_virial(tmp_path: Path) -> None:
    wall = SOCKET.replace('ff"', 'wall"').replace("here", "there")
    changes = {
        "forcefields": SOCKET + wall,
        "ensemble": '<ensemble><bias><force forcefield="wall"/><force forcefield="wall" nbeads="2"/></bias></ensemble>',
        "properties": "step, pressure_cv",
    }
    forces, bias = read_input(write(tmp_path, n_beads=8, **changes)).sockets  # type: ignore[arg-type]
    assert (forces.n_requests, bias.n_requests) == (8, 10)
    assert (bias.name, bias.virial_readers) == ("wall", ())
    _, bias = read_input(write(tmp_path, dynamics=NPT, **changes)).sockets  # type: ignore[arg-type]
    assert bias.virial_readers == ("the npt ensemble",)


def test_a_bias_on_the_socket_of_the_forces_is_asked_for_after_them(tmp_path: Path) -> None:
    ensemble = '<ensemble><bias><force forcefield="ff"/></bias></ensemble>'
    (spec,) = read_input(write(tmp_path, n_beads=8, ensemble=ensemble)).sockets
    assert spec.n_requests == 8


def test_levels_of_one_socket_do_not_add_up(tmp_path: Path) -> None:
    forces = (
        '<force forcefield="ff"><mts_weights>[0, 1]</mts_weights></force>'
        '<force forcefield="ff" nbeads="2"><mts_weights>[-1, 0]</mts_weights></force>'
    )
    (spec,) = read_input(
        write(tmp_path, forces=forces, n_beads=8, properties="step, pressure_cv{bar}")
    ).sockets
    assert spec.n_requests == 8
    assert spec.virial_readers == (
        "the output 'pressure_cv{bar}'",
    )  # +1 on eight and -1 on two do not cancel


def test_the_files_of_an_input_are_found_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    monkeypatch.chdir("/")
    assert read_input(path).sockets[0].template.n_atoms == 3


def test_threads_that_read_at_the_same_time_leave_stdout_where_it_was(tmp_path: Path) -> None:
    """Each puts back what it found: one that came while another held stdout would put back the other's."""
    path, before = write(tmp_path), sys.stdout
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: read_input(path), range(60)))
    assert sys.stdout is before


def test_json_says_the_same_as_xml(tmp_path: Path) -> None:
    from ipi.utils.io.inputs.io_json import xmlnode_to_json
    from ipi.utils.io.inputs.io_xml import xml_parse_string

    path = write(tmp_path, n_beads=4)
    as_json = tmp_path / "input.json"
    as_json.write_text(json.dumps(xmlnode_to_json(xml_parse_string(path.read_text()))))
    ours, theirs = read_input(path).sockets[0], read_input(as_json).sockets[0]
    assert (
        (ours.address, ours.n_requests)
        == (theirs.address, theirs.n_requests)
        == (UnixAddress("/tmp/ipi_here"), 4)
    )
    np.testing.assert_array_equal(ours.template.atomic_numbers, theirs.template.atomic_numbers)


def test_a_socket_inside_a_committee_is_a_socket(tmp_path: Path) -> None:
    committee = f'<ffcommittee name="all"><weights> [1] </weights>{SOCKET}</ffcommittee>'
    path = write(tmp_path, forcefields=committee, forces='<force forcefield="all"/>')
    (spec,) = read_input(path).sockets
    assert (spec.name, spec.n_requests) == ("ff", 1)


def test_an_activelist_leaves_only_its_atoms(tmp_path: Path) -> None:
    some = (
        '<ffsocket name="ff" mode="unix"><address>here</address><activelist> [0, 2] </activelist></ffsocket>'
    )
    template = read_input(write(tmp_path, forcefields=some)).sockets[0].template
    assert template.atomic_numbers.tolist() == [8, 1]


def test_replicas_from_a_system_template_add_up(tmp_path: Path) -> None:
    (tmp_path / "water.xyz").write_text(XYZ)
    template = f"""<system_template><labels> [ TEMP ] </labels><instance> [ 300 ] </instance><instance> [ 330 ] </instance>
      <template><system><initialize nbeads="2">{FILE}<velocities mode="thermal" units="kelvin"> TEMP </velocities></initialize>
      <forces><force forcefield="ff"/></forces><ensemble><temperature units="kelvin"> TEMP </temperature></ensemble>
      <motion mode="dynamics"><dynamics mode="nve"/></motion></system></template></system_template>"""
    path = tmp_path / "input.xml"
    path.write_text(f"<simulation>{SOCKET}{template}</simulation>")
    (spec,) = read_input(path).sockets
    assert spec.n_requests == 4
    assert spec.template.atomic_numbers.tolist() == [8, 1, 1]


@pytest.mark.parametrize(
    ("changes", "reader"),
    [
        ({"dynamics": NPT}, "the npt ensemble"),
        ({"properties": "step, pressure_cv{bar}"}, "the output 'pressure_cv{bar}'"),
        ({"properties": "step, stress_md{bar}(xx)"}, "the output 'stress_md{bar}(xx)'"),
    ],
)
def test_whoever_reads_the_virial_is_found(tmp_path: Path, changes: dict[str, str], reader: str) -> None:
    assert reader in read_input(write(tmp_path, **changes)).sockets[0].virial_readers  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "of_fast", "of_slow"),
    [
        (
            {"properties": "step, stress_md"},
            [],
            ["the output 'stress_md'"],
        ),  # in the total its weights cancel
        ({"dynamics": NPT}, ["the npt ensemble"], ["the npt ensemble"]),  # level by level
        ({"properties": "step, vir_component(0)"}, ["the output 'vir_component(0)'"], []),
        ({"properties": "step, vir_component(1; bead=0)"}, [], ["the output 'vir_component(1; bead=0)'"]),
        (
            {"properties": "step, vir_component_raw{megapascal}(bead=1; index=0)"},
            ["the output 'vir_component_raw{megapascal}(bead=1; index=0)'"],
            [],
        ),
    ],
)
def test_the_virial_of_a_force_that_cancels_is_read_by_barostats_and_by_outputs_of_it_alone(
    tmp_path: Path, changes: dict[str, str], of_fast: list[str], of_slow: list[str]
) -> None:
    path = write(tmp_path, forcefields=FAST_AND_SLOW, forces=LEVELS, n_beads=8, **changes)  # type: ignore[arg-type]
    fast, slow = read_input(path).sockets
    assert (list(fast.virial_readers), list(slow.virial_readers)) == (of_fast, of_slow)


def test_forces_times_positions_are_no_virial(tmp_path: Path) -> None:
    assert read_input(write(tmp_path, properties="step, virial_fq(ref.dat)")).sockets[0].virial_readers == ()


def test_nobody_reads_the_virial_of_plain_dynamics(tmp_path: Path) -> None:
    assert read_input(write(tmp_path)).sockets[0].virial_readers == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"forcefields": '<fflj name="ff"/>'}, "has no <ffsocket>"),
        ({"forcefields": SOCKET.replace("unix", "shm")}, "mode='shm'"),
        ({"forcefields": SOCKET.replace("address", "adress")}, "adress"),
        ({"initialize": '<file mode="xyz"> nowhere.xyz </file>'}, "nowhere.xyz"),
        (
            {"initialize": FILE + '<labels mode="manual"> [ O, H, Xx ] </labels>'},
            "'Xx' is no chemical element",
        ),
        ({"initialize": ""}, "does not say which atoms"),
        (
            {"forcefields": SOCKET.replace("</address>", "</address><activelist>[0, 700]</activelist>")},
            "activelist",
        ),
        ({"forcefields": SOCKET.replace("</address>", "</address><batch_size>0</batch_size>")}, "batch_size"),
        (
            {"forces": '<force forcefield="other"/>'},
            r"no <force> of any <system>.*use: other; the <ffsocket>s are: ",
        ),
    ],
)
def test_an_input_that_cannot_be_served_says_why(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_input(write(tmp_path, **changes))  # type: ignore[arg-type]


def test_a_structure_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    """i-PI would run it, with the atoms that are missing at the origin."""
    path = write(tmp_path)
    (tmp_path / "water.xyz").write_text(XYZ[: XYZ.rindex("H")])
    for read in (lambda: read_input(path), lambda: read_template(tmp_path / "water.xyz")):
        with pytest.raises(UsageError, match=r"water.xyz ends after 2 of the 3 atoms that it promises"):
            read()


@pytest.mark.parametrize("content", ["", "not xml", "<simulation>", "<molecules/>"])
def test_a_file_that_is_no_input_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "input.xml"
    path.write_text(content)
    with pytest.raises(UsageError):
        read_input(path)


@pytest.mark.parametrize("text", [XYZ, EXTXYZ])
def test_deuterium_and_tritium_are_hydrogen_to_a_model(text: str, tmp_path: Path) -> None:
    path = tmp_path / "heavy.xyz"
    path.write_text(text.replace("H ", "D ", 1).replace("H ", "T ", 1))
    assert read_template(path).describe() == "O1 H2, periodic"
    assert sorted(read_structure(path).symbols) == ["H", "H", "O"]
    assert "D" not in atomic_numbers


def test_a_template_may_be_i_pi_s_xyz_or_anything_ase_reads(tmp_path: Path) -> None:
    (tmp_path / "ipi.xyz").write_text(XYZ)
    (tmp_path / "ase.xyz").write_text(EXTXYZ)
    for name in ("ipi.xyz", "ase.xyz"):
        template = read_template(tmp_path / name)
        assert template.describe() == "O1 H2, periodic"
    with pytest.raises(UsageError, match="cannot read a template"):
        read_template(tmp_path / "none.xyz")
