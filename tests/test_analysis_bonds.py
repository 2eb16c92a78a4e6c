"""Bonds that a run starts with and ends without: found, dated, and named as the cause of the heat that they give off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import read_run
from analysis.assessment import assess
from analysis.bonds import broken_bonds
from analysis.errors import MissingOutput, TooShort
from analysis.molecules import nearest_images
from analysis.schema import report_model
from analysis_runs import Setting, clean_columns, water_positions, with_, write_clean, write_trajectory

SETTING = Setting(tau_fs=100.0, n_waters=8)
N_FRAMES = 60


def bonds_of(positions: np.ndarray, oxygen: int) -> np.ndarray:
    """The first bond of a water along a trajectory, (n_frames, 3) A."""
    return positions[:, oxygen + 1] - positions[:, oxygen]


def stretched(setting: Setting) -> np.ndarray:
    """Waters, a trajectory: one O-H bond that breaks at frame 41, one at frame 20, and one that is long for a while."""
    positions = np.repeat(water_positions(setting)[None], N_FRAMES, axis=0)
    for oxygen, first, end in ((0, 41, N_FRAMES), (12, 20, N_FRAMES), (6, 10, 50)):
        positions[first:end, oxygen + 1] += 2.0 * bonds_of(positions[first:end], oxygen)
    positions[50:, 13] -= bonds_of(positions[50:], 12) / 6.0  # nearer again, and still far
    return positions


def write_positions(
    folder: Path, setting: Setting, positions: np.ndarray, *, centroids: bool = False
) -> None:
    quantity = "x_centroid" if centroids else "positions"
    write_trajectory(folder / f"simulation.{quantity}.xyz", setting, positions, quantity, "angstrom")


@pytest.mark.parametrize("n_beads", [1, 8])
@pytest.mark.parametrize("wrapped", [False, True])
def test_bonds_that_break_are_found_with_the_step_from_which_on_they_are_gone(tmp_path, n_beads, wrapped):
    setting = with_(SETTING, n_beads=n_beads)
    write_clean(tmp_path, setting, 100)
    positions = stretched(setting) % setting.box if wrapped else stretched(setting)
    write_positions(tmp_path, setting, positions, centroids=n_beads > 1)
    found = broken_bonds(read_run(tmp_path))
    assert found is not None
    assert [(own.name, own.step) for own in found] == [
        ("O[12]-H[13]", 20 * setting.stride),
        ("O[0]-H[1]", 41 * setting.stride),
    ]
    assert [own.length for own in found] == pytest.approx([2.5 * 0.9572, 3.0 * 0.9572], abs=1e-4)


def test_beads_are_looked_at_where_no_centroids_were_written_and_centroids_where_no_input_tells_of_beads(
    tmp_path,
):
    setting = with_(SETTING, n_beads=8)
    write_clean(tmp_path, setting, 100)
    with pytest.raises(MissingOutput, match="positions"):
        broken_bonds(read_run(tmp_path))
    write_trajectory(
        tmp_path / "simulation.pos_3.xyz", setting, stretched(setting), "positions", "angstrom", bead=3
    )
    assert names(tmp_path) == ["O[12]-H[13]", "O[0]-H[1]"]
    (tmp_path / "simulation.pos_3.xyz").unlink()
    (tmp_path / "input.xml").unlink()
    write_positions(tmp_path, setting, stretched(setting), centroids=True)
    assert names(tmp_path) == ["O[12]-H[13]", "O[0]-H[1]"]


def names(folder: Path) -> list[str]:
    return [own.name for own in broken_bonds(read_run(folder)) or []]


def test_the_step_of_breaking_is_exact_in_long_trajectories(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.bonds.MAX_FRAMES", 4)
    write_clean(tmp_path, SETTING, 100)
    write_positions(tmp_path, SETTING, stretched(SETTING))
    assert [own.step for own in broken_bonds(read_run(tmp_path)) or []] == [20 * 8, 41 * 8]


def test_frames_that_are_not_finite_are_left_out(tmp_path):
    """i-PI goes on after a blow-up; what broke before that is still told, and nothing ends in a traceback."""
    write_clean(tmp_path, SETTING, 100)
    positions = stretched(SETTING)
    positions[55:] = np.nan
    write_positions(tmp_path, SETTING, positions)
    assert names(tmp_path) == ["O[12]-H[13]", "O[0]-H[1]"]
    assert any("g(r) wants finite positions" in gap for gap in assess(read_run(tmp_path)).measured.gaps)
    positions[0, 5] = np.nan
    write_positions(tmp_path, SETTING, positions)
    assert any("first frame are not finite" in gap for gap in assess(read_run(tmp_path)).measured.gaps)


def test_one_frame_is_not_compared_with_itself(tmp_path):
    write_clean(tmp_path, SETTING, 100)
    write_positions(tmp_path, SETTING, stretched(SETTING)[:1])
    with pytest.raises(TooShort, match="two frames"):
        broken_bonds(read_run(tmp_path))


def test_positions_that_begin_late_are_said_to(tmp_path):
    """As in the last part of a run in parts: what broke before is no bond of its first frame."""
    write_clean(tmp_path, SETTING, 100)
    write_positions(tmp_path, SETTING, stretched(SETTING))
    path = tmp_path / "simulation.positions.xyz"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[30 * (SETTING.n_waters * 3 + 2) :]))
    found = assess(read_run(tmp_path))
    assert [own.name for own in found.measured.broken_bonds] == ["O[0]-H[1]"]
    assert "bonds are followed from step 240 on, where the positions begin" in found.measured.gaps


def test_whole_molecules_pass_and_atoms_without_bonds_have_no_verdict(tmp_path):
    whole, apart = tmp_path / "whole", tmp_path / "apart"
    for folder, scale in ((whole, 1.0), (apart, 1.35)):
        positions = water_positions(SETTING).reshape(-1, 3, 3)
        positions = positions[:, :1] + scale * (positions - positions[:, :1])
        write_clean(folder, SETTING, 100)
        write_positions(folder, SETTING, np.repeat(positions.reshape(1, -1, 3), N_FRAMES, axis=0))
    assert broken_bonds(read_run(whole)) == []
    assert [own.status for own in assess(read_run(whole)).verdicts if own.deviation.rule == "bonds"] == [
        "pass"
    ]
    assert broken_bonds(read_run(apart)) is None
    assert not any(own.deviation.rule == "bonds" for own in assess(read_run(apart)).verdicts)


def test_neighbours_in_a_metal_are_no_bonds(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.bonds.NON_METALS", frozenset({"H"}))  # as if O were a metal
    write_clean(tmp_path, SETTING, 100)
    write_positions(tmp_path, SETTING, stretched(SETTING))
    assert broken_bonds(read_run(tmp_path)) is None


def test_the_nearest_image_is_found_in_a_cell_that_is_far_from_rectangular():
    """A C-C bond across the boundary of a cell of diamond: rounding alone makes 2.98 A of it."""
    cell = np.array([[-5.17, 0.0, 0.0], [0.54, 9.24, 0.0], [2.32, -0.78, 2.26]])
    images = np.stack(np.meshgrid(*[np.arange(-3.0, 4.0)] * 3, indexing="ij"), -1).reshape(-1, 3) @ cell
    vectors = np.random.default_rng(3).uniform(-6.0, 6.0, (200, 3))
    exact = np.linalg.norm(vectors[:, None] + images, axis=-1).min(axis=1)
    np.testing.assert_allclose(np.linalg.norm(nearest_images(vectors, cell), axis=1), exact, atol=1e-9)
    rounded = vectors - np.round(vectors @ np.linalg.inv(cell)) @ cell
    assert np.linalg.norm(rounded, axis=1).max() > exact.max() + 0.1


@pytest.mark.parametrize(
    ("role", "causes"), [("conservative", ["broken bonds"]), ("direct", ["direct forces", "broken bonds"])]
)
def test_power_through_the_bath_is_attributed_to_molecules_that_broke_unless_direct_forces_act(
    tmp_path, role, causes
):
    """260 meV/ps/atom went through the bath of a ring polymer while temperatures looked right: three waters had broken."""
    setting = with_(SETTING, role=role)
    columns = clean_columns(setting, 2500, 1)
    rise = columns["conserved{electronvolt}"] + 0.26 * 24 * columns["time{picosecond}"]
    write_clean(tmp_path, setting, 2500, 1, **{"conserved{electronvolt}": rise})
    write_positions(tmp_path, setting, stretched(setting))
    first, second = assess(read_run(tmp_path)).verdicts[:2]
    assert first.status == second.status == "warn"
    assert first.title == "bonds have broken (O[12]-H[13], O[0]-H[1])"
    assert second.deviation.rule == "throughput"
    found = [
        [cause.cause for cause in own.attributions if cause.cause != "unexplained"] for own in (first, second)
    ]
    assert found == [causes, causes]
    assert (
        "2, the first of them O[12]-H[13] (atoms from 0) at step 160"
        in second.attributions[-1 if role == "direct" else 0].because
    )


def test_broken_bonds_are_in_the_report_one_by_one(tmp_path):
    write_clean(tmp_path, SETTING, 2500)
    write_positions(tmp_path, SETTING, stretched(SETTING))
    (run,) = report_model([assess(read_run(tmp_path))], None).runs
    assert [(own.atoms, own.step) for own in run.broken_bonds] == [((12, 13), 160), ((0, 1), 328)]
