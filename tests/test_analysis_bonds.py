"""Bonds that a run starts with and ends without: found, dated, and named as the cause of the heat that they give off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import read_run
from analysis.assessment import assess
from analysis.bonds import broken_bonds
from analysis.errors import MissingOutput
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
        ("O12-H13", 20 * setting.stride),
        ("O0-H1", 41 * setting.stride),
    ]
    assert [own.length for own in found] == pytest.approx([2.5 * 0.9572, 3.0 * 0.9572], abs=1e-4)


def test_beads_are_looked_at_where_no_centroids_were_written(tmp_path):
    setting = with_(SETTING, n_beads=8)
    write_clean(tmp_path, setting, 100)
    with pytest.raises(MissingOutput, match="x_centroid"):
        broken_bonds(read_run(tmp_path))
    write_trajectory(
        tmp_path / "simulation.pos_3.xyz", setting, stretched(setting), "positions", "angstrom", bead=3
    )
    assert [own.name for own in broken_bonds(read_run(tmp_path)) or []] == ["O12-H13", "O0-H1"]


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


def test_heat_of_broken_molecules_is_attributed_to_them(tmp_path):
    """260 meV/ps/atom went through the bath of a ring polymer while temperatures looked right: three waters had broken."""
    columns = clean_columns(SETTING, 2500, 1)
    rise = columns["conserved{electronvolt}"] + 0.26 * 24 * columns["time{picosecond}"]
    write_clean(tmp_path, SETTING, 2500, 1, **{"conserved{electronvolt}": rise})
    write_positions(tmp_path, SETTING, stretched(SETTING))
    first, second = assess(read_run(tmp_path)).verdicts[:2]
    assert first.status == second.status == "warn"
    assert first.title == "bonds have broken (O12-H13 from step 160, 2.4 A in the end, and 1 more)"
    assert second.deviation.rule == "throughput"
    assert {own.attributions[0].cause for own in (first, second)} == {"broken bonds"}
    assert "2 no longer hold, O12-H13 from step 160 on" in second.attributions[0].because
