"""Fusion with real models and real i-PI: the same numbers, and as many forward passes as the theory says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from forceserver.evaluate import Evaluator
from forceserver.potentials import load_potential
from forceserver.structures import ForceRole, Structure
from model_factory import Recipe
from real_ipi import Socket, Workplace, served, workplace
from systems import from_ase, to_ase, water64, water_box

SLOW, FAST = ForceRole(0.0), ForceRole(1.0)
MTS = (
    Socket("slow", "{forces: conservative}", mts_weights="[1, 0]"),
    Socket("fast", "{forces: direct}", mts_weights="[-1, 1]"),
)
NVE = {"steps": 10, "timestep": 2.0, "dynamics": "<nmts> [1, 4] </nmts>"}
MODEL = "qtip4pf:direct=0.02"
N_LEARNING = 3  # outer steps, where i-PI's two first requests come one after the other


@pytest.fixture
def place() -> Iterator[Workplace]:
    with workplace() as place:
        yield place


# The same numbers


def moved(structure: Structure, step: int) -> Structure:
    atoms: Atoms = to_ase(structure)
    atoms.positions += 0.01 * np.random.default_rng(step).standard_normal(atoms.positions.shape)
    return from_ase(atoms)


def assert_fused_equals_separate(spec: str, structure: Structure, *, rtol: float) -> None:
    """Four outer steps of two inner ones, with fusion and without."""
    fused, separate = (
        Evaluator({"default": load_potential(spec)}, fusion=fusion) for fusion in (True, False)
    )
    gatherings = [[(0, FAST), (0, SLOW)]]  # at the start both at once
    for step in range(1, 9):
        gatherings += [[(step, FAST)]] if step % 2 else [[(step, FAST)], [(step, SLOW)]]
    for gathering in gatherings:
        work = [(moved(structure, step), role) for step, role in gathering]
        results = zip(fused.evaluate(work, ["i-PI"] * len(work)), separate.evaluate(work), strict=True)
        for got, wanted in results:
            assert got.virial is not None
            assert wanted.virial is not None
            for one, other in ((got.forces, wanted.forces), (got.virial, wanted.virial)):
                np.testing.assert_allclose(one, other, atol=rtol * np.abs(other).max(), rtol=0)
            np.testing.assert_allclose(got.energy, wanted.energy, rtol=rtol)
    assert fused.statistics.foresight.n_recalled == 2
    assert fused.statistics.foresight.n_mispredicted == 0
    assert fused.statistics.n_fused_passes == 1 + 2
    assert fused.statistics.n_forward_passes == separate.statistics.n_forward_passes - 3


def test_fused_water_is_the_same_to_the_precision_of_float64() -> None:
    assert_fused_equals_separate(MODEL, water64(), rtol=1e-13)


def test_fused_metatomic_pairs_are_the_same_to_the_precision_of_float64(
    pair_model: Callable[[Recipe], Path],
) -> None:
    assert_fused_equals_separate(str(pair_model(Recipe())), water_box(8), rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "rtol"), [("float64", 1e-11), pytest.param("float32", 1e-4, marks=pytest.mark.slow)]
)
def test_a_fused_pet_is_the_same_to_the_precision_of_its_dtype(
    metatrain_model: Callable[[str, str], Path], dtype: str, rtol: float
) -> None:
    assert_fused_equals_separate(str(metatrain_model("pet", dtype)), water_box(8), rtol=rtol)


# Real i-PI


def n_structures(log: str) -> int:
    found = re.search(r"evaluated (\d+) structures", log)
    assert found
    return int(found[1])


def n_calls(log: str) -> int:
    found = re.search(r"structures in (\d+) model calls", log)
    assert found
    return int(found[1])


def fusion(log: str) -> tuple[int, int, int]:
    """Fused calls, requests answered from what was kept, structures evaluated in vain; as the report says."""
    found = re.search(r"fusion: (\d+) model calls .*; (\d+) requests .*; (\d+) structures", log)
    return (int(found[1]), int(found[2]), int(found[3])) if found else (0, 0, 0)


def results_of(place: Workplace) -> list[np.ndarray]:
    return [
        place.properties(),
        place.trajectory("simulation.pos_0.xyz"),
        place.trajectory("simulation.for_0.xyz"),
    ]


def run_both_ways(place: Workplace, model: str = MODEL) -> tuple[str, str]:
    """The logs of a run with fusion and of one without: the same run to the last digit that i-PI writes, or almost."""
    log = place.run(model)
    fused = results_of(place)
    plain_log = place.run(model, "-i", "input.xml", "--no-fusion")
    for got, wanted in zip(fused, results_of(place), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-8)
    assert fusion(plain_log) == (0, 0, 0)
    assert served(log) == served(plain_log)
    return log, plain_log


def test_an_mts_run_takes_a_forward_pass_for_each_inner_step_and_is_the_same_run(place: Workplace) -> None:
    place.write_input(*MTS, **NVE)
    log, plain_log = run_both_ways(place)
    n_fused, n_recalled, n_in_vain = fusion(log)
    assert n_in_vain == 0
    assert n_recalled >= 10 - N_LEARNING
    assert n_fused - n_recalled in (0, 1)  # the start, if i-PI asked for both at once
    assert n_calls(plain_log) == (1 + 10 * 4) + (1 + 10)
    assert n_calls(log) == n_calls(plain_log) - n_fused


@pytest.mark.slow
def test_a_restarted_mts_run_learns_its_rhythm_again_and_is_the_same_run(place: Workplace) -> None:
    place.write_input(*MTS, **NVE | {"steps": 3})
    place.run(MODEL)
    restart = place.read("RESTART").replace("<total_steps>3</total_steps>", "<total_steps>12</total_steps>")
    (place.path / "input.xml").write_text(restart)
    kept = {path.name: path.read_bytes() for path in place.path.glob("simulation.*")}
    log = place.run(MODEL)
    fused = results_of(place)
    for name, content in kept.items():  # i-PI appends
        (place.path / name).write_bytes(content)
    place.run(MODEL, "-i", "input.xml", "--no-fusion")
    for got, wanted in zip(fused, results_of(place), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-8)
    assert fused[0][-1, 0] == 12
    _, n_recalled, n_in_vain = fusion(log)
    assert n_recalled >= 9 - N_LEARNING
    assert n_in_vain == 0


THERMOSTAT = '<thermostat mode="pile_l"><tau units="femtosecond"> 100 </tau></thermostat>'
PATH_INTEGRAL = {"beads": 4, "steps": 8, "timestep": 2.0, "mode": "nvt",
                 "dynamics": f"<nmts> [1, 4] </nmts>{THERMOSTAT}"}  # fmt: skip
N_START = 4 + 2 + 2  # requests before the first step, all at one geometry, from which i-PI starts its beads
CHEAP = "lj:epsilon=0.01,sigma=1.5,cutoff=5.0,direct=0.05"


@pytest.mark.parametrize("batch_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_path_integral_mts_run_is_the_same_run(place: Workplace, batch_size: int) -> None:
    place.write_input(*(replace(each, batch_size=batch_size) for each in MTS), **PATH_INTEGRAL)
    log, plain_log = run_both_ways(place, CHEAP)
    _, n_recalled, n_in_vain = fusion(log)
    assert n_recalled >= 4 * (8 - N_LEARNING - 1)
    assert n_in_vain <= 4
    assert n_structures(log) <= n_structures(plain_log) - n_recalled


@pytest.mark.slow
def test_a_contracted_mts_run_evaluates_its_contracted_beads_for_both_forces_at_once(
    place: Workplace,
) -> None:
    """As in the input library: conservative minus direct on 2 beads, direct on 4."""
    slow = Socket("slow", "{forces: conservative}", mts_weights="[1, 0]", n_beads=2)
    undo, fast = (
        replace(MTS[1], mts_weights=weights, n_beads=n) for weights, n in (("[-1, 0]", 2), ("[0, 1]", 0))
    )
    place.write_input(
        slow, fast, forces="".join(each.force() for each in (slow, undo, fast)), **PATH_INTEGRAL
    )  # fmt: skip
    log, plain_log = run_both_ways(place, CHEAP)
    _, _, n_in_vain = fusion(log)
    assert n_in_vain <= 2
    n_saved = n_structures(plain_log) - n_structures(log)
    assert 2 * (8 - N_LEARNING - 1) <= n_saved <= 2 * 8 + N_START


@pytest.mark.slow
def test_a_contraction_of_the_conservative_force_alone_has_nothing_to_foresee(place: Workplace) -> None:
    slow = Socket("slow", "{forces: conservative}", mts_weights="[1, 0]", n_beads=2)
    place.write_input(slow, replace(MTS[1], mts_weights="[0, 1]"), **PATH_INTEGRAL)
    log, plain_log = run_both_ways(place, CHEAP)
    assert fusion(log)[1:] == (0, 0)
    assert n_structures(plain_log) - N_START <= n_structures(log) <= n_structures(plain_log)
