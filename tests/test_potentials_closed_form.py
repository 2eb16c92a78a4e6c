"""Closed-form potentials, the pairs they are made of, and the words that name them. Units: eV, angstrom."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from ase.calculators.lj import LennardJones as AseLennardJones
from hypothesis import given, settings
from hypothesis import strategies as st

from forceserver.errors import ModelError, UsageError
from forceserver.potentials import LOADERS, DtypeName, load_potential
from forceserver.potentials.autograd import conservative_forces, conservative_forces_and_more
from forceserver.potentials.contract import Tolerances, assert_keeps_contract
from forceserver.potentials.interface import Batch, Evaluation
from forceserver.potentials.pairs import find_pairs, minimum_image, switch
from forceserver.potentials.specification import POSITIONAL, parse
from forceserver.structures import CONSERVATIVE, DIRECT, FloatArray, Structure
from systems import dimer, from_ase, lj_crystal, structure, to_ase, water_box

ARGON = "lj:epsilon=0.0104,sigma=3.4,cutoff=8.5"
SKEWED = np.array([[4.0, 0.3, -0.2], [1.9, 3.7, 0.4], [-1.1, 1.4, 4.4]])


def to_batch(*structures: Structure) -> Batch:
    return Batch.from_structures(structures, dtype=torch.float64, device=torch.device("cpu"))


def evaluate(spec: str, *structures: Structure, want: frozenset = frozenset({CONSERVATIVE})) -> Evaluation:
    return load_potential(spec)(to_batch(*structures), want)


def small_skewed_crystal() -> Structure:
    """Three atoms in a cell that is smaller than half of the cutoff of argon, in no symmetric place."""
    fractional = np.array([[0.02, 0.11, 0.05], [0.55, 0.41, 0.12], [0.21, 0.62, 0.61]])
    return structure([18] * 3, fractional @ SKEWED, SKEWED)


# Lennard-Jones


@pytest.mark.parametrize("crystal", [lj_crystal(1), lj_crystal(2), small_skewed_crystal()])
def test_lennard_jones_agrees_with_ase(crystal: Structure) -> None:
    atoms = to_ase(crystal)
    atoms.calc = AseLennardJones(epsilon=0.0104, sigma=3.4, rc=8.5, smooth=False)
    result = evaluate(ARGON, crystal)
    stress = -result.conservative.virials[0].numpy() / atoms.get_volume()
    scale = np.abs(atoms.get_forces()).max()
    assert result.energies.item() == pytest.approx(atoms.get_potential_energy(), rel=1e-10)
    assert np.abs(result.conservative.forces.numpy() - atoms.get_forces()).max() < 1e-10 * scale
    assert stress == pytest.approx(atoms.get_stress(voigt=False), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("distance", [3.2, 3.4 * 2 ** (1 / 6), 5.0, 8.49])
def test_two_argon_atoms_have_the_textbook_energy_force_and_virial(distance: float) -> None:
    result = evaluate(ARGON, dimer(distance))
    sixth, at_cutoff = (3.4 / distance) ** 6, (3.4 / 8.5) ** 6
    force = 24 * 0.0104 / distance * sixth * (2 * sixth - 1)
    virial = np.zeros((3, 3))
    virial[0, 0] = distance * force
    energy = 4 * 0.0104 * (sixth * (sixth - 1) - at_cutoff * (at_cutoff - 1))
    assert result.energies.item() == pytest.approx(energy, abs=1e-14)
    assert result.conservative.forces[:, 0].tolist() == pytest.approx([-force, force], abs=1e-13)
    assert result.conservative.virials[0].numpy() == pytest.approx(virial, abs=1e-13)


def test_the_lennard_jones_energy_is_continuous_at_the_cutoff() -> None:
    inside, outside = (evaluate(ARGON, dimer(8.5 + sign * 1e-9)).energies.item() for sign in (-1, 1))
    assert outside == 0.0
    assert abs(inside) < 1e-11


@pytest.mark.parametrize(
    ("dtype", "tolerances"),
    # The force jumps at the cutoff: where the arithmetic allows it, steps so short that no pair crosses it.
    [("float64", Tolerances(equality=1e-8, difference=1e-6, step=1e-5)), ("float32", None)],
)
def test_lennard_jones_keeps_the_contract(dtype: DtypeName, tolerances: Tolerances | None) -> None:
    structures = [
        lj_crystal(1),
        dimer(3.6, direction=(1, 2, 3)),
        small_skewed_crystal(),
        lj_crystal(1, seed=2),
    ]
    potential = load_potential("lj:sigma=2.6,direct=0.05", dtype=dtype)
    assert_keeps_contract(potential, structures, tolerances=tolerances)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (replace(lj_crystal(1), positions=np.full((4, 3), np.nan)), "structure 1 .*non-finite"),
        (replace(lj_crystal(1), cell=np.zeros((3, 3))), "structure 1 .*not invertible"),
    ],
)
def test_structures_without_neighbours_to_find_are_named(broken: Structure, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        evaluate(ARGON, lj_crystal(1), broken)


# Harmonic trap and no interaction


def test_the_trap_has_its_closed_form_energy_forces_and_virial() -> None:
    water = water_box(2)
    result = evaluate("harmonic:k=2.5", water)
    assert result.energies.item() == pytest.approx(1.25 * (water.positions**2).sum(), rel=1e-14)
    assert result.conservative.forces.numpy() == pytest.approx(-2.5 * water.positions, rel=1e-14)
    virial = -2.5 * water.positions.T @ water.positions
    assert result.conservative.virials[0].numpy() == pytest.approx(virial, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_trap_keeps_the_contract_save_for_translations(dtype: str) -> None:
    potential = load_potential("harmonic:k=0.7", dtype=dtype)
    assert_keeps_contract(potential, [water_box(2), dimer(2.0)], translation_invariant=False)
    with pytest.raises(AssertionError, match=r"rigid translation[\s\S]*lattice translation"):
        assert_keeps_contract(potential, [water_box(2)])


def test_noop_keeps_the_contract_and_answers_zero() -> None:
    assert_keeps_contract(load_potential("noop"), [water_box(2), dimer(2.0)])
    result = evaluate("noop", water_box(2), want=frozenset({CONSERVATIVE, DIRECT}))
    tensors = [result.energies, result.conservative.forces, result.direct.forces, result.direct.virials]
    assert not any(tensor.any() for tensor in tensors)


# Pairs


def loop_over_images(crystal: Structure, cutoff: float) -> list[float]:
    distances = []
    for shift in product(range(-4, 5), repeat=3):
        vectors = crystal.positions[None] + np.array(shift) @ crystal.cell - crystal.positions[:, None]
        distances += np.linalg.norm(vectors, axis=2).ravel().tolist()
    return sorted(distance for distance in distances if 0 < distance < cutoff)


@pytest.mark.parametrize("crystal", [small_skewed_crystal(), lj_crystal(1)])
def test_each_pair_of_images_is_found_once(crystal: Structure) -> None:
    batch = to_batch(lj_crystal(1, seed=9), crystal)
    pairs = find_pairs(batch, 8.5)
    mine = pairs.pair_to_structure == 1
    distances = torch.linalg.vector_norm(pairs.vectors(batch), dim=1)[mine]
    twice = np.sort(np.repeat(distances.numpy(), 2))
    assert twice == pytest.approx(loop_over_images(crystal, 8.5), rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-0.8, 0.8), min_size=3, max_size=3),
    st.lists(st.integers(-3, 3), min_size=3, max_size=3),
)
def test_the_minimum_image_of_a_bond_is_the_bond(direction: list[float], images: list[int]) -> None:
    bond = torch.tensor([direction], dtype=torch.float64)  # up to 1.39 A, see the next test
    cells = torch.tensor(SKEWED)[None]
    shifted = bond + torch.tensor([images], dtype=torch.float64) @ cells[0]
    assert torch.allclose(minimum_image(shifted, cells), bond, rtol=0, atol=1e-12)


def test_the_heights_of_the_skewed_cell_allow_the_bonds_of_the_test_above() -> None:
    heights = 1 / np.linalg.norm(np.linalg.inv(SKEWED), axis=0)
    assert heights.min() / 2 > np.sqrt(3) * 0.8


def test_the_switch_joins_one_and_zero_with_two_derivatives() -> None:
    ends = torch.tensor([1.0 + 1e-9, 3.0 - 1e-9], dtype=torch.float64, requires_grad=True)
    values = switch(ends, 1.0, 3.0)
    slopes = torch.autograd.grad(values.sum(), ends, create_graph=True)[0]
    curvatures = torch.autograd.grad(slopes.sum(), ends)[0]
    assert values.tolist() == pytest.approx([1.0, 0.0], abs=1e-12)
    assert slopes.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert curvatures.tolist() == pytest.approx([0.0, 0.0], abs=1e-7)
    assert switch(torch.tensor([0.5, 2.0, 3.5]), 1.0, 3.0).tolist() == [1.0, 0.5, 0.0]


# The strain trick


def squares(batch: Batch) -> torch.Tensor:
    return torch.stack([(batch.positions**2).sum() + batch.cells.sum()])


@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_forces_come_out_detached_whatever_the_caller_has_switched_off(outer: type) -> None:
    with outer():
        batch = to_batch(water_box(1))
        energies, forces = conservative_forces(squares, batch)
        nothing_is_attached = not (energies.requires_grad or forces.forces.requires_grad)
        assert nothing_is_attached
        assert torch.allclose(forces.forces, -2 * batch.positions)


def test_the_strain_deforms_positions_and_cell_together() -> None:
    batch = to_batch(water_box(1))
    _, forces = conservative_forces(squares, batch)
    gradient = 2 * batch.positions.T @ batch.positions + batch.cells[0].sum(1)[:, None].expand(3, 3)
    assert torch.allclose(forces.virials[0], -0.5 * (gradient + gradient.T))


def test_what_else_a_forward_pass_gives_is_handed_through() -> None:
    calls = []

    def forward(batch: Batch) -> tuple[torch.Tensor, str]:
        calls.append(batch)
        return squares(batch), "direct"

    assert conservative_forces_and_more(forward, to_batch(water_box(1)))[2] == "direct"
    assert len(calls) == 1


@pytest.mark.parametrize(
    "detached", [lambda batch: squares(batch).detach(), lambda batch: torch.ones(1, requires_grad=True) * 2]
)
def test_an_energy_that_does_not_depend_on_positions_is_refused(detached: object) -> None:
    with pytest.raises(ModelError, match="detached from the atomic positions"):
        conservative_forces(detached, to_batch(water_box(1)))


# The words that name a model


def test_items_are_options_and_a_bare_word_is_the_model() -> None:
    assert parse("lj:sigma=3, cutoff=8", schemes=LOADERS) == ("lj", {"sigma": "3", "cutoff": "8"})
    assert parse("noop", schemes=LOADERS) == ("noop", {})
    assert parse("ase:ase.calculators.emt:EMT,a=1", schemes=LOADERS) == (
        "ase",
        {POSITIONAL: "ase.calculators.emt:EMT", "a": "1"},
    )
    assert parse("dir:x/m.pt,variant=pbe", schemes=LOADERS) == (
        "metatomic",
        {POSITIONAL: "dir:x/m.pt", "variant": "pbe"},
    )
    assert parse("metatomic:m.pt", schemes=LOADERS) == ("metatomic", {POSITIONAL: "m.pt"})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("qtip4p", "unknown model 'qtip4p'.*did you mean 'qtip4pf'"),
        ("lj:sgima=3", "unknown option 'sgima'.*did you mean 'sigma'.*cutoff, direct, epsilon, sigma"),
        ("lj:sigma=three", "'sigma' must be a finite number, got 'three'"),
        ("lj:sigma=nan", "'sigma' must be a finite number, got 'nan'"),
        ("lj:cutoff=-1", "'cutoff' must be positive, got -1"),
        ("lj:sigma=3,sigma=4", "'sigma' is given twice"),
        ("lj:sigma=", "'sigma=' is not KEY=VALUE"),
        ("lj:8.5", "'8.5' without a key"),
        ("noop:k=1", "noop has no options"),
        ("harmonic:direct=-0.1", "'direct' must not be negative"),
        ("qtip4pf:dirct=0.1", "did you mean 'direct'"),
        ("qtip4pf:accuracy=0", "'accuracy' must be positive"),
    ],
)
def test_a_model_that_makes_no_sense_is_refused_with_the_alternatives(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_potential(spec)


@pytest.mark.parametrize(("device", "dtype"), [("gpu", None), ("cuda:99", None), ("cpu", "float16")])
def test_devices_and_precisions_that_are_not_there_are_refused(device: str, dtype: str | None) -> None:
    with pytest.raises(UsageError, match=f"got '{dtype}'" if dtype else device):
        load_potential("noop", device=device, dtype=dtype)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOADERS, "metatomic", "a_package_that_is_missing.loader:load")
    with pytest.raises(
        UsageError, match=r"'a_package_that_is_missing'.*pip install \"forceserver\[metatomic\]\""
    ):
        load_potential("model.pt")


def test_direct_forces_are_refused_by_a_potential_that_has_none() -> None:
    with pytest.raises(ModelError, match="has none"):
        evaluate("harmonic", dimer(1.0), want=frozenset({DIRECT}))


def test_a_harmonic_trap_moves_an_atom_as_the_textbook_says() -> None:
    """Velocity Verlet in a trap has the exact frequency arccos(1 - w^2 dt^2 / 2) / dt."""
    potential, mass, timestep, k = load_potential("harmonic:k=1.5"), 2.0, 0.3, 1.5
    atom = structure([1], np.array([[0.4, 0.0, 0.0]]), None)
    positions: list[float] = []
    velocity: FloatArray = np.zeros((1, 3))
    force = potential(to_batch(atom), frozenset({CONSERVATIVE})).conservative.forces.numpy()
    for _ in range(50):
        velocity = velocity + 0.5 * timestep * force / mass
        atom = replace(atom, positions=atom.positions + timestep * velocity)
        force = potential(to_batch(atom), frozenset({CONSERVATIVE})).conservative.forces.numpy()
        velocity = velocity + 0.5 * timestep * force / mass
        positions.append(atom.positions[0, 0])
    angle = np.arccos(1 - k / mass * timestep**2 / 2)
    assert positions == pytest.approx(0.4 * np.cos(angle * np.arange(1, 51)), abs=1e-12)


def test_ase_atoms_survive_the_way_to_a_structure_and_back() -> None:
    crystal = lj_crystal(1)
    assert np.array_equal(from_ase(to_ase(crystal)).positions, crystal.positions)
