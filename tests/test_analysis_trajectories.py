"""Reading trajectories: the fast way, the slow way and i-PI's own reader must agree, to the last digit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ipi.utils.io import iter_file_name_raw

from analysis.errors import UnreadableRun
from analysis.trajectories import Trajectory, open_trajectory
from analysis_runs import Setting, water_positions, water_velocities, with_, write_trajectory

SETTING = Setting(n_waters=8)
ATOM = f"{'O':>8} {1:12.5e} {2:12.5e} {3:12.5e}\n"


@pytest.fixture
def velocities(tmp_path) -> Trajectory:
    path = tmp_path / "simulation.vel_0.xyz"
    write_trajectory(path, SETTING, water_velocities(SETTING, 40, 1), "velocities", "a/ps")
    return opened(path)


def opened(path) -> Trajectory:
    found = open_trajectory(path)
    assert found is not None
    return found


def test_frames_agree_with_i_pi_own_reader_in_value_and_unit(velocities):
    theirs = np.array([frame["data"].reshape(-1, 3) for frame in iter_file_name_raw(str(velocities.path))])
    ours = velocities.frames()
    assert velocities.unit == "A/ps"
    np.testing.assert_allclose(
        ours.values, theirs * 0.01, rtol=2e-7
    )  # m/s in A/ps, by i-PI's rounded constants
    np.testing.assert_allclose(ours.cells[0], np.eye(3) * SETTING.box, rtol=1e-5)
    assert ours.steps.tolist() == [SETTING.stride * frame for frame in range(40)]
    assert velocities.labels[:3] == ("O", "H", "H")


def test_fast_and_slow_parsing_agree(velocities):
    fast = velocities.frames().values
    slow = np.array([velocities._parse_lines(frame) for frame in range(40)]) * velocities.factor
    np.testing.assert_allclose(fast, slow, rtol=1e-15)


def test_blocks_windows_and_strides_cover_the_frames(velocities, monkeypatch):
    monkeypatch.setattr("analysis.trajectories.BLOCK_BYTES", 3000)
    whole = velocities.frames()
    assert np.array_equal(np.concatenate([block.values for block in velocities.blocks()]), whole.values)
    assert np.array_equal(
        np.concatenate([block.values for block in velocities.blocks(1, 39, 3)]), whole.values[1:39:3]
    )
    windows = list(velocities.windows(3, 10))
    assert [window.steps[0] // SETTING.stride for window in windows] == [0, 15, 30]
    assert list(velocities.windows(3, 100)) == []


@given(
    st.lists(st.floats(-9.9e98, 9.9e98).filter(lambda x: x == 0 or abs(x) > 1e-98), min_size=9, max_size=9)
)
@settings(max_examples=200, deadline=None)
def test_every_number_that_i_pi_can_print_is_read_back(tmp_path_factory, numbers):
    path = tmp_path_factory.mktemp("numbers") / "t.xyz"
    lines = [
        f"{'H':>8} " + " ".join(f"{number:12.5e}" for number in numbers[3 * k : 3 * k + 3]) for k in range(3)
    ]
    header = "# CELL(abcABC): 1.0 1.0 1.0 90.0 90.0 90.0  Step:  0  Bead:  0 forces{ev/ang}  cell{angstrom}"
    path.write_text("\n".join(["3", header, *lines, ""]))
    found = opened(path).frames().values.ravel()
    np.testing.assert_allclose(found, [float(f"{number:.5e}") for number in numbers], rtol=1e-14)


@pytest.mark.parametrize("cut", [1, 60, 500, 1200])
def test_a_last_frame_that_is_not_complete_is_left_out(velocities, cut):
    data = velocities.path.read_bytes()
    velocities.path.with_name("cut.xyz").write_bytes(data[:-cut])
    assert opened(velocities.path.with_name("cut.xyz")).n_frames == 39


@pytest.mark.parametrize("cut", [-1, -5, -48, -50, 60, 10])
def test_a_torn_frame_that_no_restart_replaced_is_left_out_and_counted(tmp_path, velocities, cut):
    data, size = velocities.path.read_bytes(), velocities.frame_bytes
    torn = data[20 * size : 21 * size][:cut]
    (tmp_path / "torn.xyz").write_bytes(data[: 20 * size] + torn + data[21 * size :])
    found = opened(tmp_path / "torn.xyz")
    assert (found.n_frames, found.n_torn) == (39, 1)
    kept = np.delete(velocities.frames().values, 20, axis=0)
    np.testing.assert_allclose(found.frames().values, kept, rtol=1e-14)
    assert found.step(20) == 21 * SETTING.stride


def test_frames_that_a_restart_wrote_again_replace_the_earlier_ones(tmp_path, velocities):
    data, size = velocities.path.read_bytes(), velocities.frame_bytes
    again = data[20 * size : 30 * size].replace(b"  1.", b"  2.")
    (tmp_path / "again.xyz").write_bytes(data[: 30 * size] + again + data[30 * size :])
    found = opened(tmp_path / "again.xyz")
    assert [found.step(frame) for frame in range(found.n_frames)] == [
        SETTING.stride * frame for frame in range(40)
    ]
    np.testing.assert_array_equal(found.frames(0, 20).values, velocities.frames(0, 20).values)
    np.testing.assert_array_equal(found.frames(30, 40).values, velocities.frames(30, 40).values)
    assert not np.array_equal(found.frames(20, 30).values, velocities.frames(20, 30).values)
    np.testing.assert_allclose(found.frames().values[20:30], found.frames(20, 30).values, rtol=1e-14)


def test_bytes_that_are_no_digits_are_not_taken_for_numbers(tmp_path, velocities):
    data = bytearray(velocities.path.read_bytes())
    place = data.index(b"H", velocities.frame_bytes * 3) + 5
    data[place : place + 1] = b"x"
    (tmp_path / "bad.xyz").write_bytes(bytes(data))
    with pytest.raises(UnreadableRun, match=r"frame 3"):
        opened(tmp_path / "bad.xyz").frames()


def test_frames_of_unequal_length_are_found_by_search(tmp_path, velocities):
    text = velocities.path.read_text().replace("Step:          16 ", "Step:  16 ")
    (tmp_path / "odd.xyz").write_text(text)
    odd = opened(tmp_path / "odd.xyz")
    assert odd.n_frames == 40
    np.testing.assert_allclose(odd.frames().values, velocities.frames().values, rtol=1e-15)
    assert odd.step(2) == 16


def test_numbers_of_another_width_are_read(tmp_path, velocities):
    text = velocities.path.read_text().replace("e+00", "E+0")
    (tmp_path / "wide.xyz").write_text(text)
    np.testing.assert_allclose(
        opened(tmp_path / "wide.xyz").frames().values, velocities.frames().values, rtol=1e-15
    )


def test_extxyz_of_i_pi_holds_the_same(tmp_path):
    frames = water_velocities(SETTING, 5, 2) * 1e-3
    write_trajectory(tmp_path / "f.xyz", SETTING, frames, "forces", "ev/ang")
    write_trajectory(tmp_path / "f.extxyz", SETTING, frames, "forces", "ase", mode="ase")
    plain, extended = opened(tmp_path / "f.xyz"), opened(tmp_path / "f.extxyz")
    assert (extended.quantity, extended.unit, extended.n_frames) == ("forces", "eV/A", 5)
    np.testing.assert_allclose(extended.frames().values, plain.frames().values, atol=1e-6)
    np.testing.assert_allclose(extended.cell(0), plain.cell(0), rtol=1e-5)


def test_extxyz_agrees_with_ase(tmp_path):
    from ase.io import read

    write_trajectory(
        tmp_path / "p.extxyz", SETTING, water_positions(SETTING)[None], "positions", "ase", mode="ase"
    )
    np.testing.assert_allclose(
        opened(tmp_path / "p.extxyz").frames().values[0], read(tmp_path / "p.extxyz").positions
    )


def test_triclinic_cells_agree_with_ase(tmp_path):
    from ase.cell import Cell

    parameters = [10.0, 11.0, 12.0, 80.0, 95.0, 110.0]
    header = (
        "# CELL(abcABC): "
        + " ".join(map(str, parameters))
        + " Step: 7 Bead: 0 positions{angstrom} cell{angstrom}"
    )
    (tmp_path / "t.xyz").write_text(f"1\n{header}\n" + ATOM)
    np.testing.assert_allclose(
        opened(tmp_path / "t.xyz").cell(0), Cell.fromcellpar(parameters).array, atol=1e-9
    )


def test_the_cell_that_i_pi_writes_for_none_is_none(tmp_path):
    header = "# CELL(abcABC): -1.0 1.0 1.0 90.0 90.0 90.0 Step: 0 Bead: 0 positions{angstrom} cell{angstrom}"
    (tmp_path / "t.xyz").write_text(f"1\n{header}\n" + ATOM)
    np.testing.assert_array_equal(opened(tmp_path / "t.xyz").cell(0), np.zeros((3, 3)))


def test_atomic_units_of_values_and_cell_are_converted(tmp_path):
    header = "# CELL(abcABC): 10.0 10.0 10.0 90.0 90.0 90.0 Step: 0 Bead: 3 positions{atomic_unit} cell{atomic_unit}"
    (tmp_path / "t.xyz").write_text(f"1\n{header}\n" + ATOM)
    found = opened(tmp_path / "t.xyz")
    np.testing.assert_allclose(found.frames().values[0, 0], np.array([1.0, 2.0, 3.0]) * 0.529177, rtol=1e-6)
    assert found.cell(0)[0, 0] == pytest.approx(5.29177, rel=1e-6)
    assert found.bead == 3


def test_what_is_no_trajectory_is_not_taken_for_one(tmp_path):
    for name, content in {
        "a": b"",
        "b": b"3\ncomment\nO 0 0 0\n",
        "c": bytes(range(256)) * 20,
        "d": b"# column 1 --> step",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert open_trajectory(tmp_path / name) is None


def test_junk_inside_a_frame_is_named(tmp_path, velocities):
    data = bytearray(velocities.path.read_bytes())
    data[velocities.frame_bytes * 5 + 200 : velocities.frame_bytes * 5 + 230] = b"\x00" * 30
    (tmp_path / "bad.xyz").write_bytes(bytes(data))
    with pytest.raises(UnreadableRun, match=r"bad.xyz: frame 5"):
        opened(tmp_path / "bad.xyz").frames()


def test_memory_does_not_grow_with_the_length(tmp_path):
    import tracemalloc

    setting = with_(SETTING, n_waters=64)
    one = tmp_path / "one.xyz"
    write_trajectory(one, setting, water_velocities(setting, 20, 3), "velocities", "a/ps")
    peaks = []
    for copies in (5, 20):
        path = tmp_path / f"{copies}.xyz"
        path.write_bytes(one.read_bytes() * copies)
        trajectory = opened(path)
        tracemalloc.start()
        total = sum(float(block.values.sum()) for block in trajectory.blocks())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert np.isfinite(total)
    assert peaks[1] < 1.2 * peaks[0]
