"""The synthetic direct head does what its docstring says: known loop work, known lambda, heat. Units: eV, angstrom."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from ase import units
from torch import Tensor

from forceserver.potentials import load_potential
from forceserver.potentials.harmonic import HarmonicTrap
from forceserver.potentials.interface import Batch, Capabilities, Evaluation, Potential
from forceserver.potentials.synthetic import (
    AMPLITUDE_PER_STRENGTH,
    CUTOFF,
    NODE,
    ONSET,
    WAVELENGTH,
    SwirlField,
    SyntheticDirect,
    radial_profile,
)
from forceserver.structures import CONSERVATIVE, DIRECT, ForceKind, Structure
from systems import dimer, lj_crystal, water64, water_box

BOTH = frozenset({CONSERVATIVE, DIRECT})
WATER = water64()


def to_batch(*structures: Structure) -> Batch:
    return Batch.from_structures(structures, dtype=torch.float64, device=torch.device("cpu"))


def profile(distance: float) -> float:
    """A(r) inside the onset, from its definition."""
    return math.sin(2 * math.pi * (distance - NODE) / WAVELENGTH)


def loop_work(
    potential: Potential, radius: float, kind: ForceKind, tilt: float = 0.0, n_points: int = 256
) -> float:
    """Work (eV) done on the second atom of a dimer, led once around the first on a circle tilted against the axis."""
    angles = 2 * np.pi * np.arange(n_points) / n_points
    first, second = np.array([1.0, 0.0, 0.0]), np.array([0.0, math.cos(tilt), math.sin(tilt)])
    places = radius * (np.outer(np.cos(angles), first) + np.outer(np.sin(angles), second))
    tangents = radius * (np.outer(-np.sin(angles), first) + np.outer(np.cos(angles), second))
    pairs = [replace(dimer(radius), positions=np.stack([np.zeros(3), place])) for place in places]
    result = potential(to_batch(*pairs), frozenset({kind}))
    forces = result.direct if kind == DIRECT else result.conservative
    return float((forces.forces[1::2].numpy() * tangents).sum() * 2 * np.pi / n_points)


@pytest.mark.parametrize("radius", [0.55, 0.85, 0.99])
@pytest.mark.parametrize("tilt", [0.0, 0.7])
def test_the_work_around_a_circle_is_the_closed_form(radius: float, tilt: float) -> None:
    potential = load_potential("lj:sigma=0.8,cutoff=3,direct=0.03")
    expected = 2 * math.pi * radius * 0.03 * AMPLITUDE_PER_STRENGTH * profile(radius) * math.cos(tilt)
    assert abs(expected) > 1e-3
    assert loop_work(potential, radius, DIRECT, tilt) == pytest.approx(expected, rel=1e-9)
    assert loop_work(potential, radius, CONSERVATIVE, tilt) == pytest.approx(0.0, abs=1e-12)


def non_conservativity(jacobian: Tensor) -> float:
    """lambda = |J_anti| / |J|, Frobenius norms (Bigi, Langer and Ceriotti, arXiv 2412.11569)."""
    antisymmetric = 0.5 * (jacobian - jacobian.T)
    return float(antisymmetric.norm() / jacobian.norm())


def field_jacobian(swirl: SwirlField, batch: Batch) -> Tensor:
    n_coordinates = batch.positions.numel()
    jacobian = torch.autograd.functional.jacobian(
        lambda positions: swirl.evaluate(replace(batch, positions=positions))[0], batch.positions
    )
    return jacobian.reshape(n_coordinates, n_coordinates)


@pytest.mark.parametrize("radius", [0.62, 0.85, 0.99])
def test_the_lambda_of_a_trapped_dimer_is_the_closed_form(radius: float) -> None:
    """For two atoms in the plane normal to the axis, J is -k plus the Laplacian of a pair times a 2 x 2 block."""
    stiffness, amplitude = 3.0, 0.4
    batch, trap = to_batch(dimer(radius)), HarmonicTrap(k=stiffness)
    hessian = torch.autograd.functional.hessian(
        lambda positions: trap.energies(replace(batch, positions=positions)).sum(), batch.positions
    ).reshape(6, 6)
    found = non_conservativity(field_jacobian(SwirlField(amplitude), batch) - hessian)
    wave = 2 * math.pi / WAVELENGTH
    slope, turn = wave * math.cos(wave * (radius - NODE)), profile(radius) / radius
    antisymmetric = math.sqrt(2) * amplitude * abs(slope + turn)
    whole = math.sqrt(6 * stiffness**2 + 4 * amplitude**2 * (slope**2 + turn**2))
    assert found == pytest.approx(antisymmetric / whole, rel=1e-9)


def test_the_field_conserves_momentum_and_fades_out_smoothly() -> None:
    forces, _ = SwirlField(1.0).evaluate(to_batch(WATER))
    assert forces.abs().max() > 0.1
    assert forces.sum(0).abs().max() < 1e-12
    ends = torch.tensor([CUTOFF - 1e-4, CUTOFF, CUTOFF + 1.0], dtype=torch.float64)
    assert radial_profile(ends).abs().max() < 1e-10
    assert 0 < ONSET < CUTOFF


def test_the_direct_virial_is_that_of_the_pair_forces_and_leaves_the_pressure_alone() -> None:
    pair = dimer(0.9, direction=(1.0, 2.0, 0.5))
    result = load_potential("lj:sigma=0.8,cutoff=3,direct=0.05")(to_batch(pair), BOTH)
    outer = pair.positions[1][:, None] * result.direct.forces[1].numpy()[None, :]
    assert result.direct.virials[0].numpy() == pytest.approx(0.5 * (outer + outer.T), abs=1e-12)
    difference = result.direct.virials - result.conservative.virials
    assert difference.abs().max() > 1e-3
    assert difference[0].trace().abs() < 1e-12


def test_a_synthetic_head_says_so() -> None:
    capabilities = load_potential("qtip4pf:direct=0.02").capabilities
    assert capabilities.synthetic_direct
    assert capabilities.direct
    assert "synthetic direct head (strength 0.02)" in capabilities.name
    assert not load_potential("qtip4pf").capabilities.synthetic_direct


def test_no_strength_means_direct_forces_that_are_the_true_ones() -> None:
    result = load_potential("lj:direct=0")(to_batch(lj_crystal(1)), BOTH)
    assert torch.equal(result.direct.forces, result.conservative.forces)


@dataclass(frozen=True)
class Counting:
    """A potential that writes down what it is asked."""

    potential: Potential
    asked: list[frozenset[ForceKind]] = field(default_factory=list)

    @property
    def capabilities(self) -> Capabilities:
        return self.potential.capabilities

    def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        self.asked.append(want)
        return self.potential(batch, want)


@pytest.mark.parametrize("want", [BOTH, frozenset({CONSERVATIVE}), frozenset({DIRECT})])
def test_whatever_is_wanted_the_true_force_is_evaluated_once(want: frozenset[ForceKind]) -> None:
    counting = Counting(load_potential("qtip4pf"))
    SyntheticDirect(counting, strength=0.02)(to_batch(water_box(2)), want)
    assert len(counting.asked) == 1


def force_function(spec: str, structures: list[Structure]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Positions in, energies and direct forces out."""
    potential, batch = load_potential(spec), to_batch(*structures)

    def forces(positions: Tensor) -> tuple[Tensor, Tensor]:
        result = potential(replace(batch, positions=positions), frozenset({DIRECT}))
        return result.energies, result.direct.forces

    return forces


def water_lambda(water: Structure, strength: float, n_probes: int = 8) -> float:
    """lambda of the synthetic head; |J|^2 from random +-1 vectors v as the mean of |J v|^2."""
    forces, batch = force_function(f"qtip4pf:accuracy=1e-5,direct={strength}", [water]), to_batch(water)
    swirl = field_jacobian(SwirlField(strength * AMPLITUDE_PER_STRENGTH), batch)
    rng, step, squares = np.random.default_rng(1), 1e-4, []
    for _ in range(n_probes):
        probe = step * torch.as_tensor(rng.choice([-1.0, 1.0], batch.positions.shape))
        change = forces(batch.positions + probe)[1] - forces(batch.positions - probe)[1]
        squares.append(float((change / (2 * step)).square().sum()))
    return float((0.5 * (swirl - swirl.T)).norm() / math.sqrt(np.mean(squares)))


def test_strength_is_about_lambda_in_liquid_water() -> None:
    assert water_lambda(WATER, 0.02) == pytest.approx(
        0.02, rel=0.2
    )  # one configuration; they scatter by 10 %


@dataclass(frozen=True)
class Run:
    """Velocity Verlet for several copies of liquid water, with direct forces."""

    energies: list[float] = field(
        default_factory=list
    )  # eV per structure, kinetic and conservative potential
    oxygen_temperatures: list[float] = field(default_factory=list)  # K
    hydrogen_temperatures: list[float] = field(default_factory=list)  # K


def run_water(strength: float, n_steps: int, *, n_copies: int = 1, global_thermostat: bool = False) -> Run:
    """0.5 fs steps from 300 K; the thermostat scales all velocities alike, as stochastic velocity rescaling does."""
    batch, run, timestep = to_batch(*[WATER] * n_copies), Run(), 0.5 * units.fs
    forces = force_function(f"qtip4pf:accuracy=1e-4,direct={strength}", [WATER] * n_copies)
    oxygen = batch.atomic_numbers == 8
    masses = torch.where(oxygen, 15.999, 1.008).double()[:, None]
    noise = torch.as_tensor(np.random.default_rng(3).standard_normal(batch.positions.shape))
    velocities = remove_drift(noise * (300 * units.kB / masses).sqrt(), masses, n_copies)
    positions, target = batch.positions, 1.5 * (192 - 1) * units.kB * 300
    _, force = forces(positions)
    for _ in range(n_steps):
        velocities = velocities + 0.5 * timestep * force / masses
        positions = positions + timestep * velocities
        energy, force = forces(positions)
        velocities = velocities + 0.5 * timestep * force / masses
        kinetic = 0.5 * (masses * velocities**2).sum(1)
        if global_thermostat:
            scale = (1 + 0.5 * (target / kinetic.view(n_copies, -1).sum(1) - 1)).sqrt()
            velocities = velocities * scale.repeat_interleave(192)[:, None]
        run.energies.append(float(kinetic.sum() + energy.sum()) / n_copies)
        # Degrees of freedom 3 N_s - 3 M_s / M: the centre of mass is at rest.
        run.oxygen_temperatures.append(
            float(kinetic[oxygen].sum()) * 2 / (units.kB * n_copies * (192 - 3 * 0.8881))
        )
        run.hydrogen_temperatures.append(
            float(kinetic[~oxygen].sum()) * 2 / (units.kB * n_copies * (384 - 3 * 0.1119))
        )
    return run


def remove_drift(velocities: Tensor, masses: Tensor, n_copies: int) -> Tensor:
    momenta, weights = (masses * velocities).view(n_copies, -1, 3), masses.view(n_copies, -1, 1)
    drift = momenta.sum(1, keepdim=True) / weights.sum(1, keepdim=True)
    return (velocities.view(n_copies, -1, 3) - drift).flatten(0, 1)


def test_water_heats_the_more_the_stronger_the_field() -> None:
    gained_K = []
    for strength in (0.0, 0.04, 0.12):
        energies = run_water(strength, n_steps=100).energies
        gained_K.append((energies[-1] - energies[0]) / (3 * 192 * units.kB))
    assert abs(gained_K[0]) < 2
    assert gained_K[1] > 10
    assert gained_K[2] > 4 * gained_K[1]


@pytest.mark.slow
def test_water_heats_as_published_for_direct_forces_of_the_same_lambda() -> None:
    """About 70 K/ps at lambda = 0.015 (ORB-v2 in liquid water, arXiv 2412.11569)."""
    energies = run_water(0.015, n_steps=1800, n_copies=2).energies
    slope = np.polyfit(0.0005 * np.arange(1400), energies[400:], 1)[0]  # eV/ps
    assert 40 < slope / (3 * 192 * units.kB) < 110


@pytest.mark.slow
def test_a_global_thermostat_hides_the_heat_and_not_the_broken_equipartition() -> None:
    excess = []
    for strength in (0.0, 0.05):
        run = run_water(strength, n_steps=1500, n_copies=4, global_thermostat=True)
        hydrogen, oxygen = np.mean(run.hydrogen_temperatures[300:]), np.mean(run.oxygen_temperatures[300:])
        assert (2 * hydrogen + oxygen) / 3 == pytest.approx(300, abs=5)
        excess.append(hydrogen - oxygen)
    # Both start from the same configuration, which 0.75 ps do not forget: only their difference means something.
    assert excess[1] > excess[0] + 40
