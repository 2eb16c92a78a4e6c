"""Configurations of flexible water, labelled by q-TIP4P/F: what `water-pet` is trained on, so that its truth is known.

    python make_dataset.py train.xyz --seed 1 --frames 3000
    python make_dataset.py valid.xyz --seed 2 --frames 64
    python make_dataset.py test.xyz --seed 3 --frames 128
    python make_dataset.py stretched.xyz --seed 5 --frames 1000 --stretched
    python make_dataset.py own.xyz --run drift/M-4 --frames 24

Langevin dynamics of many small boxes at once, in one batch: 32 and 64 molecules, 250 to 450 K, several densities, compressed,
stretched and sheared cells; classical, and ring polymers, whose beads spread as the quantum nuclei do. Every `SPACING`-th step of
every replica is a frame, with energy, forces and stress. Frames of one seed are correlated, those of a replica or a ring polymer
so much that they have one word for `trajectory`; other seeds are other trajectories, so validation and test are not. All of it
happens within a picosecond of a lattice: far from all that an equilibrated liquid does.

`--stretched` redraws some O-H bonds of every frame. Dynamics of minutes never leaves 0.76 to 1.27 A, but the beads of a longer
one do, and a network that knows nothing of a longer bond may find it favourable: then molecules break. `--run` labels frames of a
run of i-PI, spread over all of it, for a test on what a model's own dynamics comes to.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.units import _e, _hbar, fs, kB

from analysis import read_run
from forceserver.potentials import load_potential
from forceserver.potentials.interface import Batch, BatchBuilder
from forceserver.structures import CONSERVATIVE, Structure

TIMESTEP = 0.5 * fs
FRICTION = 1.0 / (50.0 * fs)  # of the centroid; strong, for the boxes start from a lattice
N_REPLICAS = 6  # of each condition: the beads of one ring polymer, or as many classical boxes
MELTING = 500  # steps at the hottest temperature before anything is kept
RELAXING = 300  # further steps at the right one
SPACING = 30  # steps between frames
HOTTEST = 450.0  # K
STRETCHED_SHARE = 0.125  # of the molecules: one bond each
STRETCHED_LENGTHS = (0.7, 1.5)  # A; 2.8 and 5.0 eV above the minimum
STRETCHED_TILT = 0.3  # rad, standard deviation along each axis: zero-point motion of the angle has half of it
HBAR = _hbar / _e * 1e15 * fs  # eV times the unit of time of ASE
MOLECULE = np.array([[0.0, 0.0, 0.0], [0.7569, 0.5859, 0.0], [-0.7569, 0.5859, 0.0]])  # O H H, A
MASSES = np.array([15.9949, 1.00783, 1.00783])  # amu


@dataclass(frozen=True)
class Condition:
    n_molecules: int
    temperature: float  # K
    density: float  # g/cm3
    ring_polymer: bool
    strain: tuple[float, float, float, float, float, float] = (0, 0, 0, 0, 0, 0)  # xx yy zz yz xz xy


CONDITIONS = {
    n: [
        Condition(n, 300, 1.00, True),
        Condition(n, 250, 1.00, True),
        Condition(n, 350, 0.95, True, (0.04, -0.04, 0.02, 0, 0.03, 0)),
        Condition(n, 300, 1.00, False),
        Condition(n, 450, 0.90, False, (-0.05, 0.03, 0, 0.04, 0, -0.04)),
        Condition(n, 350, 1.10, False, (0, 0.05, -0.05, 0, 0, 0.05)),
    ]
    for n in (64, 32)
}


class Dynamics:
    """Langevin dynamics of several conditions at once; positions (n_conditions, N_REPLICAS, n_atoms, 3) A.

    Free ring polymers and classical boxes move exactly between the kicks (Ceriotti et al., J. Chem. Phys. 133, 124104
    (2010): PILE), with the momenta of bead k scaled so that all beads share one mass per atom.
    """

    def __init__(self, conditions: list[Condition], rng: np.random.Generator) -> None:
        self.conditions = conditions
        self._rng = rng
        boxes = [_lattice(condition, rng) for condition in conditions]
        self.cells = np.stack([cell for cell, _ in boxes])
        start = np.stack([positions for _, positions in boxes])
        self.positions = np.repeat(start[:, None], N_REPLICAS, axis=1)
        self._masses = np.tile(MASSES, conditions[0].n_molecules)[None, None, :, None]
        self._momenta = np.zeros_like(self.positions)
        self._potential = load_potential("qtip4pf")
        numbers = np.tile([8, 1, 1], conditions[0].n_molecules)
        n_structures = len(conditions) * N_REPLICAS
        self._numbers = torch.as_tensor(np.tile(numbers, n_structures))
        self._owner = torch.arange(n_structures).repeat_interleave(len(numbers))
        self.numbers = numbers
        self.energies, self.forces, self.virials = self._evaluate()

    def run(self, n_steps: int, temperatures: np.ndarray) -> None:
        """Advance by OABAO steps at the temperatures (n_conditions,) in K."""
        modes, frequencies = _normal_modes()
        quantum = np.array([condition.ring_polymer for condition in self.conditions])
        # A ring polymer is simulated at N times the temperature.
        kt = (kB * temperatures * np.where(quantum, N_REPLICAS, 1))[:, None, None, None]
        omega = np.where(quantum[:, None], frequencies[None] * kt[:, :1, 0, 0] / HBAR, 0.0)[:, :, None, None]
        friction = np.where(omega > 0, 2 * omega, FRICTION)
        keep = np.exp(-0.5 * TIMESTEP * friction)
        kick = np.sqrt((1 - keep**2) * kt * self._masses)
        cos, sin = np.cos(omega * TIMESTEP), np.sin(omega * TIMESTEP)
        stretch = np.where(omega > 0, sin / np.where(omega > 0, omega, 1), TIMESTEP)
        for _ in range(n_steps):
            momenta = _apply(modes, self._momenta, quantum)
            momenta = keep * momenta + kick * self._rng.standard_normal(momenta.shape)
            momenta = momenta + 0.5 * TIMESTEP * _apply(modes, self.forces, quantum)
            x = _apply(modes, self.positions, quantum)
            x, momenta = (
                cos * x + stretch * momenta / self._masses,
                cos * momenta - omega * sin * x * self._masses,
            )
            self.positions = _apply(modes.T, x, quantum)
            self.energies, self.forces, self.virials = self._evaluate()
            momenta = momenta + 0.5 * TIMESTEP * _apply(modes, self.forces, quantum)
            momenta = keep * momenta + kick * self._rng.standard_normal(momenta.shape)
            self._momenta = _apply(modes.T, momenta, quantum)

    def frames(self) -> list[Atoms]:
        """All replicas of all conditions, labelled."""
        made = []
        for index, cell in enumerate(self.cells):
            for replica in range(N_REPLICAS):
                atoms = Atoms(self.numbers, self.positions[index, replica], cell=cell, pbc=True)
                own = index, replica
                made.append(_labelled(atoms, self.energies[own], self.forces[own], self.virials[own]))
                self._name_trajectory(made[-1], index, replica)
        return made

    def _name_trajectory(self, atoms: Atoms, index: int, replica: int) -> None:
        """The beads of a ring polymer are one, and so are all frames of a classical box."""
        condition = self.conditions[index]
        own = "beads" if condition.ring_polymer else f"box {replica}"
        atoms.info["trajectory"] = f"{condition.n_molecules} molecules, condition {index}, {own}"

    def stretched_frames(self) -> list[Atoms]:
        """The same with some bonds redrawn: uniform in length, tilted from where they were. The dynamics does not see it."""
        kept = self.positions, self.energies, self.forces, self.virials
        self.positions = _stretched(self.positions, self._rng)
        self.energies, self.forces, self.virials = self._evaluate()
        made = self.frames()
        self.positions, self.energies, self.forces, self.virials = kept
        return made

    def _evaluate(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shape = self.positions.shape
        batch = Batch(
            positions=torch.as_tensor(self.positions.reshape(-1, 3)),
            cells=torch.as_tensor(np.repeat(self.cells, N_REPLICAS, axis=0)),
            atomic_numbers=self._numbers,
            atom_to_structure=self._owner,
            pbc=torch.ones(shape[0] * N_REPLICAS, 3, dtype=torch.bool),
            n_atoms=(shape[2],) * (shape[0] * N_REPLICAS),
        )
        answer = self._potential(batch, frozenset({CONSERVATIVE}))
        assert answer.conservative is not None
        assert answer.conservative.virials is not None
        return (
            answer.energies.numpy().reshape(shape[:2]),
            answer.conservative.forces.numpy().reshape(shape),
            answer.conservative.virials.numpy().reshape(*shape[:2], 3, 3),
        )


def _stretched(positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Positions (..., n_atoms, 3) with one O-H bond of some molecules redrawn."""
    molecules = positions.reshape(-1, 3, 3).copy()  # O H H in turn; molecules are whole
    chosen = np.flatnonzero(rng.random(len(molecules)) < STRETCHED_SHARE)
    hydrogens = rng.integers(1, 3, len(chosen))
    oxygens = molecules[chosen, 0]
    bonds = molecules[chosen, hydrogens] - oxygens
    along = bonds / np.linalg.norm(bonds, axis=1, keepdims=True)
    along = along + STRETCHED_TILT * rng.standard_normal(along.shape)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    molecules[chosen, hydrogens] = oxygens + rng.uniform(*STRETCHED_LENGTHS, (len(chosen), 1)) * along
    return molecules.reshape(positions.shape)


def _labelled(atoms: Atoms, energy: float, forces: np.ndarray, virial: np.ndarray) -> Atoms:
    """Labels under names of their own: the direct heads learn the same forces and stress as the energy's gradients."""
    atoms.info["energy_label"] = float(energy)
    atoms.info["stress_label"] = -virial / atoms.get_volume()
    atoms.arrays["forces_label"] = forces
    return atoms


def _normal_modes() -> tuple[np.ndarray, np.ndarray]:
    """The orthogonal transform to normal modes (rows) and their frequencies in units of N kT/hbar."""
    spring = 2 * np.eye(N_REPLICAS) - np.roll(np.eye(N_REPLICAS), 1, 0) - np.roll(np.eye(N_REPLICAS), -1, 0)
    squares, vectors = np.linalg.eigh(spring)
    return vectors.T, np.sqrt(np.maximum(squares, 0.0)) * (squares > 1e-9)


def _apply(matrix: np.ndarray, values: np.ndarray, quantum: np.ndarray) -> np.ndarray:
    """Transform the replicas of the ring polymers; classical boxes stay as they are."""
    return np.where(quantum[:, None, None, None], np.einsum("kr,crai->ckai", matrix, values), values)


def _lattice(condition: Condition, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A cell of the right volume and molecules, randomly turned, on a lattice in it."""
    volume = condition.n_molecules * MASSES.sum() * 1.66053906660 / condition.density
    across = np.array([4, 4, condition.n_molecules // 16])
    xx, yy, zz, yz, xz, xy = condition.strain
    deformation = np.eye(3) + np.array([[xx, xy, xz], [0, yy, yz], [0, 0, zz]])
    shape = np.diag(across / 4.0) if condition.n_molecules == 64 else np.eye(3)
    cell = shape @ deformation.T
    cell *= (volume / np.linalg.det(cell)) ** (1 / 3)
    grid = (
        np.stack(np.meshgrid(*[np.arange(n) for n in across], indexing="ij"), -1).reshape(-1, 3) + 0.5
    ) / across
    turns = np.linalg.qr(rng.standard_normal((condition.n_molecules, 3, 3)))[0]
    positions = (grid @ cell)[:, None] + np.einsum("mij,aj->mai", turns, MOLECULE)
    return cell, positions.reshape(-1, 3)


def make_frames(n_frames: int, seed: int, n_molecules: int, *, stretched: bool = False) -> list[Atoms]:
    rng = np.random.default_rng([seed, n_molecules])
    dynamics = Dynamics(CONDITIONS[n_molecules], rng)
    temperatures = np.array([condition.temperature for condition in dynamics.conditions])
    dynamics.run(MELTING, np.full_like(temperatures, HOTTEST))
    dynamics.run(RELAXING, temperatures)
    harvest = dynamics.stretched_frames if stretched else dynamics.frames
    frames = harvest()
    while len(frames) < n_frames:
        dynamics.run(SPACING, temperatures)
        frames += harvest()
    chosen = rng.permutation(len(frames))[:n_frames]
    return [frames[index] for index in chosen]


def label_run(folder: Path, n_frames: int) -> list[Atoms]:
    """Frames of a run of i-PI, evenly spread, without the first; each a trajectory of its own, for picoseconds lie between.

    Raises:
        AnalysisError: the run cannot be read, or has no positions.
    """
    positions = read_run(folder).trajectory("positions")
    truth = load_potential("qtip4pf")
    builder = BatchBuilder(truth.capabilities.dtype, truth.capabilities.device)
    made = []
    for index in np.linspace(0, positions.n_frames - 1, n_frames + 1).astype(int)[1:]:
        block = positions.frames(int(index), int(index) + 1)
        atoms = Atoms(list(positions.labels), block.values[0], cell=block.cells[0], pbc=True)
        structure = Structure(
            atoms.numbers.astype(np.int64), atoms.positions, atoms.cell.array, np.full(3, True)
        )
        answer = truth(builder.build([structure]), frozenset({CONSERVATIVE}))
        given = answer.conservative
        assert given is not None
        assert given.virials is not None
        made.append(
            _labelled(atoms, answer.energies[0].item(), given.forces.numpy(), given.virials[0].numpy())
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--seed", type=int)
    source.add_argument(
        "--run", type=Path, help="folder of a run of i-PI: its frames in place of dynamics of our own"
    )
    parser.add_argument("--frames", type=int, default=3000, help="half with 64 molecules, half with 32")
    parser.add_argument("--molecules", type=int, choices=[32, 64], help="boxes of one size only")
    parser.add_argument("--stretched", action="store_true", help="with O-H bonds of 0.7 to 1.5 A among them")
    arguments = parser.parse_args()
    if arguments.run:
        ase.io.write(arguments.output, label_run(arguments.run, arguments.frames), format="extxyz")
        return
    sizes = [arguments.molecules] if arguments.molecules else [64, 32]
    frames = [
        frame
        for n in sizes
        for frame in make_frames(
            arguments.frames // len(sizes), arguments.seed, n, stretched=arguments.stretched
        )
    ]
    order = np.random.default_rng(arguments.seed).permutation(len(frames))
    ase.io.write(arguments.output, [frames[index] for index in order], format="extxyz")


if __name__ == "__main__":
    main()
