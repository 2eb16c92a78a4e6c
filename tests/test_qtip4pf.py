"""q-TIP4P/F: against closed forms, against a second route written with plain loops, and against itself.

Units: eV, angstrom, amu, elementary charges.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.verlet import VelocityVerlet

from forceserver.errors import ModelError
from forceserver.potentials import load_potential, qtip4pf
from forceserver.potentials.contract import assert_keeps_contract
from forceserver.potentials.ewald import COULOMB_CONSTANT, Ewald
from forceserver.potentials.interface import Batch, Evaluation
from forceserver.potentials.qtip4pf import WaterModel
from forceserver.structures import CONSERVATIVE, IntArray, Structure
from loop_water import COULOMB, KCAL_PER_MOL, loop_energy
from systems import from_ase, random_rotation, structure, to_ase, water64, water_box, water_molecule

WANT = frozenset({CONSERVATIVE})
MASSES = {8: 15.9994, 1: 1.00794}
TRICLINIC = np.array([[7.1, 0.4, -0.3], [1.5, 6.8, 0.2], [-1.2, 2.1, 7.4]])


def evaluate(*structures: Structure, spec: str = "qtip4pf") -> Evaluation:
    return load_potential(spec)(to_batch(*structures), WANT)


def to_batch(*structures: Structure) -> Batch:
    return Batch.from_structures(structures, dtype=torch.float64, device=torch.device("cpu"))


def triclinic_water() -> Structure:
    rng = np.random.default_rng(7)
    fractional = np.array([[0.1, 0.2, 0.1], [0.6, 0.3, 0.2], [0.2, 0.7, 0.6], [0.7, 0.8, 0.7]])
    molecules = [
        centre @ TRICLINIC + water_molecule(0.98, 103) @ random_rotation(rng).T for centre in fractional
    ]
    return structure([8, 1, 1] * 4, np.concatenate(molecules), TRICLINIC)


def wrapped(whole: Structure) -> Structure:
    """Every atom on its own moved into the cell, as i-PI sends them with pbc."""
    fractional = np.linalg.solve(whole.cell.T, whole.positions.T).T
    return replace(whole, positions=(fractional % 1.0) @ whole.cell)


def permute_molecules(n_atoms: int, rng: np.random.Generator) -> IntArray:
    """Orders that q-TIP4P/F allows: molecules among themselves, and the two hydrogens of a molecule."""
    molecules = np.arange(n_atoms).reshape(-1, 3)[rng.permutation(n_atoms // 3)]
    return np.asarray(
        np.where(rng.random(len(molecules))[:, None] < 0.5, molecules, molecules[:, [0, 2, 1]])
    ).ravel()


@pytest.mark.parametrize("water", [water_box(3, seed=1), triclinic_water()], ids=["cubic", "triclinic"])
def test_energies_agree_with_loops_over_images_and_waves(water: Structure) -> None:
    energy = evaluate(water, spec="qtip4pf:accuracy=1e-10").energies.item()
    assert energy == pytest.approx(
        loop_energy(water), abs=2e-6
    )  # the constants of ASE are those of CODATA 2014


def test_forces_agree_with_finite_differences_of_the_loops() -> None:
    water, step = triclinic_water(), 1e-3
    forces = evaluate(water).conservative.forces
    for atom, axis in [(0, 0), (4, 1), (11, 2)]:
        moved = np.zeros_like(water.positions)
        moved[atom, axis] = step
        high, low = (
            loop_energy(replace(water, positions=water.positions + sign * moved)) for sign in (1, -1)
        )
        assert forces[atom, axis].item() == pytest.approx(-(high - low) / (2 * step), abs=2e-4)


def test_rock_salt_and_caesium_chloride_have_their_madelung_constants() -> None:
    face_centred = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
    rock_salt = np.concatenate([face_centred, face_centred + 0.5])
    caesium_chloride = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])
    for fractional, nearest, madelung in [
        (rock_salt, 0.5, 1.747564594633182),
        (caesium_chloride, np.sqrt(3) / 2, 1.762674773070989),
    ]:
        edge = 4.1
        crystal = structure([1] * len(fractional), fractional * edge, np.eye(3) * edge)
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(len(fractional) // 2)
        energy = Ewald(real_cutoff=7.0, truncation=1e-12).energies(to_batch(crystal), signs).item()
        expected = -madelung * COULOMB_CONSTANT / (nearest * edge) * len(fractional) / 2
        assert energy == pytest.approx(expected, rel=1e-10)


def test_the_splitting_of_the_ewald_sum_does_not_change_energy_forces_or_virial() -> None:
    potential = load_potential("qtip4pf")
    results = []
    for real_cutoff in (4.0, 6.0, 9.0):
        model = WaterModel(Ewald(real_cutoff=real_cutoff, truncation=1e-11))
        results.append(replace(potential, energy_function=model.energies)(to_batch(water64()), WANT))
    for other in results[1:]:
        assert torch.allclose(other.energies, results[0].energies, rtol=0, atol=1e-8)
        assert torch.allclose(other.conservative.forces, results[0].conservative.forces, rtol=0, atol=1e-8)
        assert torch.allclose(other.conservative.virials, results[0].conservative.virials, rtol=0, atol=1e-6)


@pytest.mark.parametrize("accuracy", [1e-3, 1e-5, 1e-7])
def test_forces_in_liquid_water_are_as_accurate_as_was_asked(accuracy: float) -> None:
    exact = evaluate(water64(), spec="qtip4pf:accuracy=1e-12").conservative.forces
    forces = evaluate(water64(), spec=f"qtip4pf:accuracy={accuracy}").conservative.forces
    error = (forces - exact).pow(2).mean().sqrt().item()
    assert 0.01 * accuracy < error < accuracy


def test_one_molecule_has_the_harmonic_frequencies_of_its_force_constants() -> None:
    """Wilson's GF method for a symmetric XY2 molecule with a stretching and a bending constant."""
    molecule = water_molecule(0.9419, 107.4)
    inverse_root = np.repeat([MASSES[z] ** -0.5 for z in (8, 1, 1)], 3)
    hessian, step = np.zeros((9, 9)), 1e-4
    for column in range(9):
        moved = np.zeros(9)
        moved[column] = step
        pair = [structure([8, 1, 1], molecule + sign * moved.reshape(3, 3), None) for sign in (1, -1)]
        plus, minus = evaluate(*pair).conservative.forces.numpy().reshape(2, 9)
        hessian[:, column] = -(plus - minus) / (2 * step)
    squared = np.linalg.eigvalsh(hessian * np.outer(inverse_root, inverse_root))
    stretch, bend = 2 * 116.09 * KCAL_PER_MOL * 2.287**2, 87.85 * KCAL_PER_MOL
    sine, cosine = np.sin(np.radians(107.4)), np.cos(np.radians(107.4))
    light, heavy = 1 / MASSES[1], 1 / MASSES[8]
    coupling = -np.sqrt(2) * heavy * sine / 0.9419
    inertia = np.array(
        [
            [light + heavy * (1 + cosine), coupling],
            [coupling, 2 / 0.9419**2 * (light + heavy * (1 - cosine))],
        ]
    )
    symmetric = np.linalg.eigvals(inertia @ np.diag([stretch, bend]))
    antisymmetric = stretch * (light + heavy * (1 - cosine))
    assert squared[6:] == pytest.approx(np.sort([*symmetric, antisymmetric]), rel=1e-6)
    assert np.abs(squared[:6]).max() < 1e-5 * antisymmetric


def test_a_molecule_at_its_minimum_has_no_energy_and_no_force() -> None:
    result = evaluate(structure([8, 1, 1], water_molecule(0.9419, 107.4), None))
    assert abs(result.energies.item()) < 1e-12
    assert result.conservative.forces.abs().max() < 1e-10


def test_distant_molecules_attract_as_two_dipoles() -> None:
    distance, molecule = 2000.0, water_molecule()
    apart = np.concatenate([molecule, molecule + np.array([distance, 0, 0])])
    energy = evaluate(structure([8, 1, 1] * 2, apart, None)).energies.item()
    height = np.cos(np.radians(107.4 / 2)) * 0.9419
    dipole = 2 * 0.5564 * (height - (1 - 0.73612) * height)
    assert energy == pytest.approx(-2 * COULOMB * dipole**2 / distance**3, rel=2e-3)


def test_a_large_cell_gives_the_energy_of_the_cluster() -> None:
    cluster = water_box(3, seed=5, periodic=False)
    alone = evaluate(cluster).energies.item()
    energies = [
        evaluate(replace(cluster, cell=np.eye(3) * edge, pbc=np.ones(3, dtype=bool))).energies.item()
        for edge in (30.0, 60.0)
    ]
    errors = np.abs(np.array(energies) - alone)
    assert errors[0] < 5e-3
    assert errors[1] == pytest.approx(errors[0] / 8, rel=0.1)  # images of a dipole, 1/V


def test_molecules_cut_by_the_boundary_are_the_same_molecules() -> None:
    whole = triclinic_water()
    cut = wrapped(replace(whole, positions=whole.positions + np.array([3.0, 2.0, -1.0])))
    assert np.linalg.norm(cut.positions[1::3] - cut.positions[::3], axis=1).max() > 2.0
    expected, got = evaluate(whole), evaluate(cut)
    assert torch.allclose(got.energies, expected.energies, rtol=0, atol=1e-9)
    assert torch.allclose(got.conservative.forces, expected.conservative.forces, rtol=0, atol=1e-8)
    assert torch.allclose(got.conservative.virials, expected.conservative.virials, rtol=0, atol=1e-8)


def test_a_doubled_cell_has_twice_the_energy_and_the_same_forces() -> None:
    water = triclinic_water()
    doubled = replace(
        water,
        atomic_numbers=np.tile(water.atomic_numbers, 2),
        positions=np.concatenate([water.positions, water.positions + water.cell[1]]),
        cell=water.cell * np.array([[1], [2], [1]]),
    )
    one, two = (evaluate(s, spec="qtip4pf:accuracy=1e-10") for s in (water, doubled))
    assert two.energies.item() == pytest.approx(2 * one.energies.item(), abs=1e-8)
    assert torch.allclose(two.conservative.forces, one.conservative.forces.repeat(2, 1), rtol=0, atol=1e-8)
    assert torch.allclose(two.conservative.virials, 2 * one.conservative.virials, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_liquids_of_any_cell_keep_the_contract(dtype: str) -> None:
    potential = load_potential("qtip4pf:accuracy=1e-9,direct=0.02", dtype=dtype)
    structures = [triclinic_water(), water_box(2, seed=3), wrapped(water_box(5, seed=4))]
    assert_keeps_contract(potential, structures, permutation=permute_molecules)


def test_clusters_keep_the_contract() -> None:
    structures = [water_box(3, seed=3, periodic=False), water_box(1, seed=4, periodic=False)]
    assert_keeps_contract(load_potential("qtip4pf"), structures, permutation=permute_molecules)


def test_single_precision_forces_of_the_liquid_are_near_the_double_ones() -> None:
    potential = load_potential("qtip4pf", dtype="float32")
    single = potential(
        Batch.from_structures([water64()], dtype=torch.float32, device=torch.device("cpu")), WANT
    ).conservative.forces.double()
    assert (single - evaluate(water64()).conservative.forces).abs().max() < 2e-4


class WaterCalculator(Calculator):
    """q-TIP4P/F for ASE's dynamics."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        result = evaluate(from_ase(atoms))
        self.results = {"energy": result.energies.item(), "forces": result.conservative.forces.numpy()}


def energy_fluctuation(timestep_fs: float, duration_fs: float) -> float:
    atoms = to_ase(water_box(4, seed=11))
    atoms.calc = WaterCalculator()
    noise = np.random.default_rng(11).standard_normal((12, 3))
    atoms.set_velocities(noise * np.sqrt(300 * units.kB / atoms.get_masses())[:, None])
    energies = []
    dynamics = VelocityVerlet(atoms, timestep_fs * units.fs)
    for _ in range(round(duration_fs / timestep_fs)):
        dynamics.run(1)
        energies.append(atoms.get_total_energy())
    return float(np.std(energies))


def test_the_energy_error_of_an_nve_run_falls_with_the_square_of_the_timestep() -> None:
    coarse, fine = energy_fluctuation(0.4, 60), energy_fluctuation(0.2, 60)
    assert coarse / fine == pytest.approx(4.0, rel=0.15)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [([8, 1, 1, 1, 8, 1], r"molecule 2 .*\(atoms 3 to 5\).*\[1, 8, 1\]"), ([8, 1, 1, 8], "4 atoms")],
)
def test_atoms_that_are_not_water_in_order_are_named(numbers: list[int], message: str) -> None:
    positions = water_box(2).positions[: len(numbers)]
    with pytest.raises(ModelError, match=message):
        evaluate(structure(numbers, positions, np.eye(3) * 8))


def test_a_bond_too_long_to_be_one_is_named() -> None:
    water = water_box(2)
    positions = water.positions.copy()
    positions[4] += 3.5
    with pytest.raises(
        ModelError, match=r"molecule 2 of structure 1 of the batch \(atoms 3 to 5\).* A\. Remedy"
    ):
        evaluate(water, replace(water, positions=positions))


def test_coordinates_that_are_not_numbers_are_refused() -> None:
    water = water_box(2, periodic=False)
    with pytest.raises(ModelError, match="nan A"):
        evaluate(replace(water, positions=water.positions * np.nan))


def test_a_periodic_cell_without_a_volume_is_refused() -> None:
    with pytest.raises(ModelError, match="cells with a volume"):
        evaluate(replace(water_box(2), cell=np.zeros((3, 3))))


def test_slabs_are_refused() -> None:
    with pytest.raises(ModelError, match="periodic in all three directions"):
        evaluate(replace(water_box(2), pbc=np.array([True, True, False])))


def test_the_charges_of_a_molecule_add_up_to_nothing() -> None:
    assert abs(qtip4pf.CHARGE_M + 2 * qtip4pf.CHARGE_H) < 1e-12


def test_the_water_that_ships_is_at_the_density_and_temperature_that_it_says() -> None:
    """Configurational temperature |grad V|^2 / laplacian V (Butler et al., J. Chem. Phys. 109, 6519 (1998))."""
    water, rng, step = water64(), np.random.default_rng(0), 1e-4
    bonds = np.linalg.norm(water.positions.reshape(-1, 3, 3)[:, 1:] - water.positions[::3, None], axis=2)
    assert 0.8 < bonds.min() < bonds.max() < 1.15
    assert water.positions[::3].min() >= 0
    assert water.positions[::3].max() < water.cell[0, 0]
    grams = 64 * 18.0153 / units.mol * 1e24 / np.linalg.det(water.cell)
    assert grams == pytest.approx(0.997, abs=0.001)
    laplacians = []
    for _ in range(10):
        probe = rng.choice([-1.0, 1.0], water.positions.shape)
        pair = [replace(water, positions=water.positions + sign * step * probe) for sign in (1, -1)]
        plus, minus = evaluate(*pair).conservative.forces.numpy().reshape(2, -1, 3)
        laplacians.append(-np.sum(probe * (plus - minus)) / (2 * step))
    forces = evaluate(water).conservative.forces.numpy()
    temperature = np.sum(forces**2) / np.mean(laplacians) / units.kB
    assert temperature == pytest.approx(300, abs=110)  # three sigma: 128 stiff bonds dominate both sums
