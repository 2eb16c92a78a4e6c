"""The numbers of water-pet's card, on models whose numbers are known; drift runs that are resumed and extended."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest

from analysis import Estimate, read_run
from analysis_runs import Setting, water_positions, write_clean, write_trajectory
from forceserver.errors import UsageError
from forceserver.potentials import load_potential
from water_pet_scripts import few_frames, import_script, script

RNG = np.random.default_rng(5)


def test_lambda_is_zero_for_a_gradient_and_one_for_a_curl() -> None:
    evaluate = import_script("evaluate")
    matrix = RNG.normal(size=(12, 12))
    assert evaluate.asymmetry(matrix + matrix.T) == 0.0
    assert evaluate.asymmetry(matrix - matrix.T) == pytest.approx(1.0)
    mixed = (matrix + matrix.T) / np.linalg.norm(matrix + matrix.T)
    mixed = mixed + 0.1 * (matrix - matrix.T) / np.linalg.norm(matrix - matrix.T)
    assert evaluate.asymmetry(mixed) == pytest.approx(0.1 / np.sqrt(1.01))


def test_the_jacobian_of_a_linear_force_is_its_matrix() -> None:
    evaluate = import_script("evaluate")
    matrix = RNG.normal(size=(15, 15))

    def forces_of(positions: list[np.ndarray]) -> np.ndarray:
        return np.array([(matrix @ each.ravel()).reshape(-1, 3) for each in positions])

    found = evaluate.jacobian(forces_of, RNG.normal(size=(5, 3)))
    np.testing.assert_allclose(found, matrix, atol=1e-9)


def test_loop_work_is_that_of_stokes_theorem() -> None:
    evaluate = import_script("evaluate")
    half = RNG.normal(size=(15, 15))
    planes = []

    def forces_of(positions: list[np.ndarray]) -> np.ndarray:
        return np.array([((half - half.T) @ each.ravel()).reshape(-1, 3) for each in positions])

    def gradient_of(positions: list[np.ndarray]) -> np.ndarray:
        return np.array([((half + half.T) @ each.ravel()).reshape(-1, 3) for each in positions])

    random = np.random.default_rng(1)  # the planes that loop_works takes
    for _ in range(evaluate.N_LOOPS):
        plane = random.normal(size=(2, 5, 3))
        plane -= plane.mean(axis=1, keepdims=True)
        planes.append(np.linalg.qr(plane.reshape(2, -1).T)[0].T)
    area = np.pi * evaluate.LOOP_RADIUS**2 * 15
    expected = [2 * area * v @ (half - half.T) @ u for u, v in planes]
    start = RNG.normal(size=(5, 3))
    np.testing.assert_allclose(evaluate.loop_works(forces_of, start), expected, rtol=1e-9)
    np.testing.assert_allclose(evaluate.loop_works(gradient_of, start), 0.0, atol=1e-12)


def test_errors_against_its_own_labels_are_those_of_the_direct_head() -> None:
    """q-TIP4P/F made the labels: whatever is wrong then is a sign or a unit."""
    evaluate = import_script("evaluate")
    frames = evaluate.evaluate_frames(load_potential("qtip4pf:direct=0.02"), few_frames(3))
    assert evaluate.mean_absolute(frames, evaluate.energy_error, "meV").value < 1e-6
    for error_of in (evaluate.force_error("conservative"), evaluate.stress_error("conservative")):
        assert evaluate.root_mean_square(frames, error_of, "").value < 1e-6
    apart = np.concatenate([frame.forces["direct"] - frame.forces["conservative"] for frame in frames])
    found = evaluate.root_mean_square(frames, evaluate.force_error("direct"), "meV/A")
    assert found.value == pytest.approx(1e3 * np.sqrt(np.mean(apart**2)))
    assert found.value > 1.0
    assert 0.0 < found.error < found.value


def test_frames_of_one_trajectory_are_one_sample() -> None:
    """Of pairs of equal numbers the error is that of half as many; of single ones the usual one."""
    evaluate = import_script("evaluate")
    (frame,) = evaluate.evaluate_frames(load_potential("qtip4pf:direct=0.02"), few_frames(1))
    numbers = RNG.normal(size=12)

    def mean_of(trajectories: list[int]) -> Estimate:
        frames = [replace(frame, trajectory=str(each)) for each in trajectories]
        known = dict(zip(frames, np.repeat(numbers, len(frames) // len(numbers)), strict=True))
        found: Estimate = evaluate._mean_of(frames, known.__getitem__, "eV")
        return found

    single, pairs = mean_of(list(range(12))), mean_of([each // 2 for each in range(24)])
    assert single.error == pytest.approx(np.std(numbers, ddof=1) / np.sqrt(12))
    assert pairs.error == pytest.approx(single.error)
    assert pairs.value == pytest.approx(single.value)
    assert pairs.n_effective == single.n_effective == 12
    assert evaluate._number(mean_of([0] * 12)) == f"{numbers.mean():.3g}", "no error is known"


def test_frames_know_their_trajectory() -> None:
    dataset = import_script("make_dataset")
    dataset.N_REPLICAS = 2
    dynamics = dataset.Dynamics(dataset.CONDITIONS[32][2:4], np.random.default_rng(2))
    beads, boxes = dynamics.frames()[:2], dynamics.frames()[2:]
    assert len({atoms.info["trajectory"] for atoms in beads}) == 1
    assert len({atoms.info["trajectory"] for atoms in boxes}) == 2
    assert not {atoms.info["trajectory"] for atoms in beads} & {atoms.info["trajectory"] for atoms in boxes}


def test_frames_of_a_run_are_labelled_by_the_truth(tmp_path: Path) -> None:
    setting = Setting(n_waters=8)
    positions = np.repeat(water_positions(setting)[None], 9, axis=0)
    positions += 0.02 * RNG.normal(size=positions.shape)
    write_clean(tmp_path, setting, 20)
    write_trajectory(tmp_path / "simulation.pos.xyz", setting, positions, "positions", "angstrom")
    dataset, evaluate = import_script("make_dataset"), import_script("evaluate")
    made = dataset.label_run(tmp_path, 4)
    for atoms, frame in zip(made, (2, 4, 6, 8), strict=True):
        np.testing.assert_allclose(atoms.positions, positions[frame], atol=1e-4)
    frames = evaluate.evaluate_frames(load_potential("qtip4pf:direct=0.02"), made)
    assert len({frame.trajectory for frame in frames}) == 4
    assert evaluate.mean_absolute(frames, evaluate.energy_error, "meV").value < 1e-6
    assert evaluate.root_mean_square(frames, evaluate.force_error("conservative"), "").value < 1e-6
    assert evaluate.root_mean_square(frames, evaluate.stress_error("conservative"), "").value < 1e-6


def test_a_drift_run_keeps_its_time_step(tmp_path: Path) -> None:
    drift = import_script("drift")
    drift.Case("conservative", tmp_path, 0.01, 1.0).write_input()
    with pytest.raises(UsageError, match=r"steps of 1 fs, not 0\.5; name another folder"):
        drift.Case("conservative", tmp_path, 0.01).write_input()
    drift.Case("conservative", tmp_path, 0.02, 1.0).write_input()
    assert "<total_steps> 20 </total_steps>" in (tmp_path / "input.xml").read_text()
    row = drift.describe(drift.Case("conservative", tmp_path, 0.02))
    assert row.startswith("| conservative | 1 | "), "the step of the run, whatever the command line says"


def test_conditions_come_from_the_frame_or_its_cell() -> None:
    evaluate = import_script("evaluate")
    plain, named = (atoms.copy() for atoms in few_frames(3)[:2])
    named.info["condition"] = "ice"
    assert re.fullmatch(r"32 molecules, (1\.00|0\.95) g/cm3", evaluate._condition(plain))
    assert evaluate._condition(named) == "ice"


def test_the_card_is_markdown_with_every_section(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "test.xyz", list(few_frames(3)), format="extxyz")
    options = ["--jacobians", "0", "--repeats", "2", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, str(script("evaluate")), "qtip4pf:direct=0.02", str(tmp_path / "test.xyz"), *options],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for words in (
        "| forces, direct |",
        "| stress, conservative |",
        "## MAE by condition",
        "net force",
        "| both |",
    ):
        assert words in done.stdout
    tables = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


@pytest.mark.slow
def test_drift_runs_are_extended_and_not_repeated(tmp_path: Path) -> None:
    def run(*options: str) -> tuple[str, str]:
        command = [sys.executable, str(script("drift")), "qtip4pf:direct=0.02", "-o", str(tmp_path / "runs")]
        done = subprocess.run(
            [*command, "--cases", "2", "--threads", "1", *options],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1], done.stderr

    first, _ = run("--time", "0.012")
    assert re.fullmatch(r"\| 2 \| 1 \| 0.012 \| \S+ \| \S+ \| (\d+|-) \| 64 of 64 \|", first)
    assert run("--time", "0.012", "--table")[0] == first
    log = tmp_path / "runs" / "M-2" / "server-1.log"
    began = log.read_text()
    assert run("--time", "0.012")[0] == first
    assert log.read_text() == began, "a finished run has nothing left to do"
    longer, said = run("--time", "0.018")
    assert "continuing from step 12 of 18" in said
    assert re.fullmatch(r"\| 2 \| 1 \| 0.018 \| \S+ \| \S+ \| (\d+|-) \| 64 of 64 \|", longer)


def test_molecules_with_broken_bonds_are_counted_once(tmp_path: Path) -> None:
    drift, setting = import_script("drift"), Setting(n_waters=8)
    positions = np.repeat(water_positions(setting)[None], 2, axis=0)
    positions[1, 1:3] += 2.0 * (positions[1, 1:3] - positions[1, 0])  # both bonds of the first
    positions[1, 5] += 2.0 * (positions[1, 5] - positions[1, 3])
    write_clean(tmp_path, setting, 20)
    write_trajectory(tmp_path / "simulation.pos.xyz", setting, positions, "positions", "angstrom")
    assert drift._intact(read_run(tmp_path)) == "6 of 8"


def test_stretched_frames_have_bonds_that_no_dynamics_visits_and_the_labels_that_belong_to_them() -> None:
    dataset, evaluate = import_script("make_dataset"), import_script("evaluate")
    dataset.N_REPLICAS = 2
    dynamics = dataset.Dynamics(dataset.CONDITIONS[32][:3], np.random.default_rng(2))
    before = [
        array.copy() for array in (dynamics.positions, dynamics.energies, dynamics.forces, dynamics.virials)
    ]
    made = dynamics.stretched_frames()
    for array, kept in zip(
        (dynamics.positions, dynamics.energies, dynamics.forces, dynamics.virials), before, strict=True
    ):
        np.testing.assert_array_equal(array, kept)
    frames = evaluate.evaluate_frames(load_potential("qtip4pf:direct=0.02"), made)
    assert evaluate.mean_absolute(frames, evaluate.energy_error, "meV").value < 1e-6
    assert evaluate.root_mean_square(frames, evaluate.force_error("conservative"), "").value < 1e-6
    molecules = np.concatenate([atoms.positions.reshape(-1, 3, 3) for atoms in made])
    lengths = np.linalg.norm(molecules[:, 1:] - molecules[:, :1], axis=2)
    moved = np.abs(lengths - 0.957) > 0.01  # the others stand on the lattice, as they were made
    shortest, longest = dataset.STRETCHED_LENGTHS
    assert shortest <= lengths.min() < 0.8 < 1.4 < lengths.max() <= longest
    assert 0.5 * dataset.STRETCHED_SHARE < moved.any(axis=1).mean() < 1.5 * dataset.STRETCHED_SHARE
    assert not moved.all(axis=1).any(), "one bond of a molecule"


def test_a_bond_is_pulled_as_q_tip4pf_has_it() -> None:
    """The truth has no errors against itself; its quartic Morse stretch is known, the neighbours add some tenths of an eV."""
    evaluate, potential = import_script("evaluate"), load_potential("qtip4pf:direct=0.02")
    rows = evaluate.stretch(potential, evaluate.evaluate_frames(potential, few_frames(3)))
    assert tuple(row.length for row in rows) == evaluate.LENGTHS
    for row in rows:
        assert max(row.energy_error, row.conservative_error) < 1e-6
        assert row.direct_error == pytest.approx(row.apart, abs=1e-6)
        assert row.apart > 1e-3
        x, y = (2.287 * (length - 0.9419) for length in (row.length, evaluate.BOND))
        morse = 116.09 * 0.0433641 * (x**2 - x**3 + 7 / 12 * x**4 - y**2)
        assert row.energy == pytest.approx(morse, abs=0.4)
    signs = [np.sign(row.force) for row in rows if abs(row.length - 0.95) > 0.1]
    assert signs == [1] * 3 + [-1] * 5
