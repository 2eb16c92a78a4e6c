"""The numbers of the model's card: errors on configurations that it has not seen, how far its direct forces are from a gradient,
and what each kind of forces costs.

    python evaluate.py model.pt test.xyz > card.md

Of every frame of test.xyz: `energy_label` (eV), `stress_label` (3x3, eV/A^3, ASE's sign), `forces_label` (eV/A), and, where
there are any, `condition`, a word, and `trajectory`, the same word for all frames that know of each other. Each number is
followed by its standard error from the scatter among trajectories, in units of its last digit.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms, units
from numpy.typing import NDArray

from analysis.molecules import nearest_images
from analysis.statistics import Estimate
from forceserver.demo.costs import sensible_threads, time_evaluations
from forceserver.potentials import load_potential
from forceserver.potentials.interface import BatchBuilder, Evaluation, Potential
from forceserver.structures import CONSERVATIVE, DIRECT, Structure

FloatArray = NDArray[np.float64]

BATCH = 4  # structures in a call
STEP = 1e-3  # A, of finite differences in float64
LOOP_RADIUS = 0.02  # A, root mean square of a component: what an O-H bond has at room temperature
LOOP_POINTS = 32  # the sum over points of a closed smooth path converges exponentially
N_LOOPS = 8
N_STRETCHED = 24  # bonds, each in a frame of its own
BOND = 0.95  # A, from where the energies of stretching are counted
LENGTHS = (0.7, 0.75, 0.8, 0.85, 0.9, BOND, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)  # A


@dataclass(frozen=True, eq=False)
class Frame:
    """A labelled configuration, and what the model says about it."""

    condition: str
    trajectory: str  # of frames of different ones the errors are independent
    structure: Structure
    energies: tuple[float, float]  # eV: label, model
    forces: dict[str, FloatArray]  # {label, conservative, direct: (n_atoms, 3)} eV/A
    stresses: dict[str, FloatArray]  # the same, (3, 3) eV/A^3; without what the model has not


@dataclass(frozen=True)
class Stretched:
    """O-H bonds of one length: what q-TIP4P/F says, averaged over the bonds, and root mean square errors. eV, eV/A."""

    length: float
    energy: float  # that of BOND is zero
    force: float  # on H, away from O
    energy_error: float
    conservative_error: float
    direct_error: float
    apart: float  # direct and conservative force, along the bond


ErrorOf = Callable[[Frame], FloatArray]


def evaluate_frames(potential: Potential, frames: Sequence[Atoms]) -> list[Frame]:
    """Labels and predictions side by side."""
    found = []
    for start in range(0, len(frames), BATCH):
        part = frames[start : start + BATCH]
        structures = [_structure(atoms) for atoms in part]
        answer = _evaluate(potential, structures)
        bounds = np.cumsum([0, *(len(atoms) for atoms in part)])
        for index, atoms in enumerate(part):
            own = slice(bounds[index], bounds[index + 1])
            forces = {"label": atoms.arrays["forces_label"]}
            stresses = {"label": np.asarray(atoms.info["stress_label"]).reshape(3, 3)}
            for kind, given in ((CONSERVATIVE, answer.conservative), (DIRECT, answer.direct)):
                assert given is not None
                forces[kind] = _array(given.forces[own])
                if given.virials is not None:
                    stresses[kind] = -_array(given.virials[index]) / atoms.get_volume()
            energies = (float(atoms.info["energy_label"]), float(answer.energies[index]))
            trajectory = str(atoms.info.get("trajectory", f"frame {start + index}"))
            found.append(Frame(_condition(atoms), trajectory, structures[index], energies, forces, stresses))
    return found


def _evaluate(potential: Potential, structures: Sequence[Structure]) -> Evaluation:
    """Both kinds of forces, of what has both."""
    known = potential.capabilities
    kinds = {kind for kind, has in ((CONSERVATIVE, known.conservative), (DIRECT, known.direct)) if has}
    return potential(BatchBuilder(known.dtype, known.device).build(structures), frozenset(kinds))


def _structure(atoms: Atoms) -> Structure:
    return Structure(atoms.numbers.astype(np.int64), atoms.positions, atoms.cell.array, np.array(atoms.pbc))


def _array(tensor: torch.Tensor) -> FloatArray:
    return tensor.detach().cpu().numpy().astype(np.float64)


def _condition(atoms: Atoms) -> str:
    """The word that the frame carries, else what its cell tells."""
    density = atoms.get_masses().sum() / atoms.get_volume() / units.kg * 1e3 * (units.m / 100) ** 3  # g/cm3
    return str(atoms.info.get("condition", f"{len(atoms) // 3} molecules, {density:.2f} g/cm3"))


def mean_absolute(frames: Iterable[Frame], error_of: ErrorOf, unit: str) -> Estimate:
    """Mean absolute error of a component, in thousandths."""
    return _mean_of(frames, lambda frame: 1e3 * float(np.abs(error_of(frame)).mean()), unit)


def root_mean_square(frames: Iterable[Frame], error_of: ErrorOf, unit: str) -> Estimate:
    """Root mean square error of a component, in thousandths."""
    square = _mean_of(frames, lambda frame: 1e6 * float((error_of(frame) ** 2).mean()), "")
    root = square.value**0.5
    return Estimate(root, square.error / (2 * root) if root else 0.0, unit, square.n_effective)


def _mean_of(frames: Iterable[Frame], number_of: Callable[[Frame], float], unit: str) -> Estimate:
    """Mean over frames, with the error that independent trajectories of correlated frames leave.

    sqrt(G/(G-1)) / n [sum_g (sum_{i in g} (x_i - mean))^2]^(1/2) with G trajectories and n frames: K.-Y. Liang, S. L. Zeger,
    Biometrika 73, 13 (1986). Of single frames it is the usual one.
    """
    by_trajectory: dict[str, list[float]] = defaultdict(list)
    for frame in frames:
        by_trajectory[frame.trajectory].append(number_of(frame))
    values = [value for own in by_trajectory.values() for value in own]
    mean, n_independent = statistics.fmean(values), len(by_trajectory)
    if n_independent < 2:
        return Estimate(mean, 0.0, unit, n_independent)
    squares = sum(sum(value - mean for value in own) ** 2 for own in by_trajectory.values())
    error = (n_independent / (n_independent - 1) * squares) ** 0.5 / len(values)
    return Estimate(mean, error, unit, n_independent)


def energy_error(frame: Frame) -> FloatArray:
    return np.array([(frame.energies[1] - frame.energies[0]) / frame.structure.n_atoms])


def force_error(kind: str) -> ErrorOf:
    return lambda frame: frame.forces[kind] - frame.forces["label"]


def stress_error(kind: str) -> ErrorOf:
    return lambda frame: frame.stresses[kind] - frame.stresses["label"]


def jacobian(forces_of: Callable[[list[FloatArray]], FloatArray], positions: FloatArray) -> FloatArray:
    """d f_i / d r_j by central differences, (3 n_atoms, 3 n_atoms) eV/A^2.

    Args:
        forces_of: from positions of several structures to forces (n_structures, n_atoms, 3).
        positions: (n_atoms, 3) A.
    """
    size = positions.size
    columns = np.empty((size, size))
    for start in range(0, size, BATCH):
        moved = []
        for index in range(start, min(start + BATCH, size)):
            step = np.zeros(size)
            step[index] = STEP
            moved += [positions + step.reshape(-1, 3), positions - step.reshape(-1, 3)]
        forces = forces_of(moved).reshape(len(moved), size)
        columns[:, start : start + len(moved) // 2] = (forces[::2] - forces[1::2]).T / (2 * STEP)
    return columns


def asymmetry(matrix: FloatArray) -> float:
    """lambda = |J_anti| / |J| (Frobenius): 0 for a gradient, 1 for a field without one.

    Bigi, Langer, Ceriotti, ICML 2025 (arXiv:2412.11569).
    """
    return float(np.linalg.norm(matrix - matrix.T) / 2 / np.linalg.norm(matrix))


def loop_works(forces_of: Callable[[list[FloatArray]], FloatArray], positions: FloatArray) -> list[float]:
    """Work along circles through a configuration, in random planes, in eV: 0 for a gradient.

    The atoms do not move as a whole along them, so that a net force does no work.
    """
    random = np.random.default_rng(1)
    angles = 2 * np.pi * np.arange(LOOP_POINTS) / LOOP_POINTS
    works = []
    for _ in range(N_LOOPS):
        plane = random.normal(size=(2, *positions.shape))
        plane -= plane.mean(axis=1, keepdims=True)
        u, v = np.linalg.qr(plane.reshape(2, -1).T)[0].T.reshape(2, *positions.shape)
        radius = LOOP_RADIUS * positions.size**0.5
        path = [positions + radius * ((np.cos(a) - 1) * u + np.sin(a) * v) for a in angles]
        forces = np.concatenate([forces_of(path[i : i + BATCH]) for i in range(0, LOOP_POINTS, BATCH)])
        tangents = [radius * (np.cos(a) * v - np.sin(a) * u) for a in angles]
        works.append(float(np.sum(forces * np.array(tangents)) * 2 * np.pi / LOOP_POINTS))
    return works


def forces_by(
    potential: Potential, structure: Structure, kind: str
) -> Callable[[list[FloatArray]], FloatArray]:
    """Forces of one kind as a function of the positions alone, (n_structures, n_atoms, 3)."""
    builder = BatchBuilder(potential.capabilities.dtype, potential.capabilities.device)

    def evaluate(positions: list[FloatArray]) -> FloatArray:
        moved = [
            Structure(structure.atomic_numbers, each, structure.cell, structure.pbc) for each in positions
        ]
        answer = potential(
            builder.build(moved), frozenset({CONSERVATIVE if kind == CONSERVATIVE else DIRECT})
        )
        given = answer.conservative if kind == CONSERVATIVE else answer.direct
        assert given is not None
        return _array(given.forces).reshape(len(positions), -1, 3)

    return evaluate


def stretch(potential: Potential, frames: Sequence[Frame]) -> list[Stretched]:
    """One O-H bond of each frame, molecules O H H in turn, pulled from the shortest to the longest of LENGTHS."""
    truth = load_potential("qtip4pf")
    energies, forces = [], []  # (2, n_lengths) and (3, n_lengths) of each bond: truth, conservative, direct
    for number, frame in enumerate(frames):
        structure = frame.structure
        oxygen = 3 * (number % (structure.n_atoms // 3))
        hydrogen = oxygen + 1 + number % 2
        bond = nearest_images(structure.positions[hydrogen] - structure.positions[oxygen], structure.cell)
        along = bond / np.linalg.norm(bond)
        pulled = []
        for length in LENGTHS:
            positions = structure.positions.copy()
            positions[hydrogen] = positions[oxygen] + length * along
            pulled.append(replace(structure, positions=positions))
        answers = [_evaluate(each, pulled) for each in (truth, potential)]
        own = np.array([_array(answer.energies) for answer in answers])
        energies.append(own - own[:, [LENGTHS.index(BOND)]])
        found = (answers[0].conservative, answers[1].conservative, answers[1].direct)
        by_length = [
            _array(given.forces).reshape(len(LENGTHS), -1, 3) for given in found if given is not None
        ]
        forces.append([each[:, hydrogen] @ along for each in by_length])
    true_energies, model_energies = np.moveaxis(np.array(energies), 1, 0)  # (n_bonds, n_lengths)
    true, conservative, direct = np.moveaxis(np.array(forces), 1, 0)
    return [
        Stretched(
            length=length,
            energy=float(true_energies[:, index].mean()),
            force=float(true[:, index].mean()),
            energy_error=_rms((model_energies - true_energies)[:, index]),
            conservative_error=_rms((conservative - true)[:, index]),
            direct_error=_rms((direct - true)[:, index]),
            apart=_rms((direct - conservative)[:, index]),
        )
        for index, length in enumerate(LENGTHS)
    ]


def describe_errors(frames: Sequence[Frame]) -> Iterable[str]:
    n_independent = len({frame.trajectory for frame in frames})
    yield f"## Errors on {len(frames)} configurations of {n_independent} trajectories that it has not seen\n"
    yield "| quantity | MAE | RMSE | unit |\n|---|---:|---:|---|"
    rows: list[tuple[str, ErrorOf, str]] = [("energy per atom", energy_error, "meV")]
    rows += [(f"forces, {kind}", force_error(kind), "meV/A") for kind in (CONSERVATIVE, DIRECT)]
    kinds = [kind for kind in (CONSERVATIVE, DIRECT) if all(kind in frame.stresses for frame in frames)]
    rows += [(f"stress, {kind}", stress_error(kind), "meV/A^3") for kind in kinds]
    for name, error_of, unit in rows:
        first, second = mean_absolute(frames, error_of, unit), root_mean_square(frames, error_of, unit)
        yield f"| {name} | {first.number} | {second.number} | {unit} |"
    if DIRECT not in kinds:
        yield "\nThe model has no direct stress."
    labels = root_mean_square(frames, lambda frame: frame.forces["label"], "meV/A")
    yield f"\nRoot mean square of a force component: {labels.number} meV/A."


def describe_conditions(frames: Sequence[Frame]) -> Iterable[str]:
    by_condition: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        by_condition[frame.condition].append(frame)
    yield "\n## MAE by condition\n"
    yield "| condition | frames | energy, meV/atom | conservative, meV/A | direct, meV/A |\n|---|---:|---:|---:|---:|"
    for condition, own in sorted(by_condition.items()):
        numbers = [
            mean_absolute(own, of, "")
            for of in (energy_error, force_error(CONSERVATIVE), force_error(DIRECT))
        ]
        yield f"| {condition} | {len(own)} | {' | '.join(map(_number, numbers))} |"


def _number(estimate: Estimate) -> str:
    """Without an error where there is no telling it: of a single trajectory."""
    return estimate.number if estimate.n_effective > 1 else f"{estimate.value:.3g}"


def describe_curl(frames: Sequence[Frame], potential: Potential, n_jacobians: int) -> Iterable[str]:
    """How far direct forces are from conservative ones, and from being the gradient of anything."""

    def relative(frame: Frame) -> float:
        apart = frame.forces[DIRECT] - frame.forces[CONSERVATIVE]
        return float(np.linalg.norm(apart) / np.linalg.norm(frame.forces[CONSERVATIVE]))

    yield "\n## Direct forces\n"
    yield "| quantity | value |\n|---|---:|"
    yield f"| rms(f_D - f_C) / rms(f_C) | {_mean_of(frames, relative, '').number} |"
    net = root_mean_square(frames, lambda frame: frame.forces[DIRECT].mean(axis=0), "meV/A")
    yield f"| net force per atom, root mean square of a component (the server removes it) | {net} |"
    firsts: dict[str, Frame] = {}
    for frame in frames:
        firsts.setdefault(frame.trajectory, frame)
    smallest = sorted(firsts.values(), key=lambda frame: frame.structure.n_atoms)[:n_jacobians]
    if not smallest:
        return
    works, checks = [], []
    lambdas: dict[Frame, float] = {}
    for frame in smallest:
        direct = forces_by(potential, frame.structure, DIRECT)
        lambdas[frame] = asymmetry(jacobian(direct, frame.structure.positions))
        works += [1e3 * work for work in loop_works(direct, frame.structure.positions)]
        conservative = forces_by(potential, frame.structure, CONSERVATIVE)
        checks += [1e3 * work for work in loop_works(conservative, frame.structure.positions)]
    where = f"{len(smallest)} configurations of {smallest[0].structure.n_atoms // 3} molecules"
    yield f"| lambda = norm(J_anti) / norm(J), {where} | {_mean_of(smallest, lambdas.__getitem__, '').number} |"
    circles = f"{len(works)} circles of {LOOP_RADIUS:g} A per component"
    yield f"| work along {circles}: root mean square | {_rms(works):.3g} meV |"
    yield f"| the same of conservative forces, which measures the arithmetic | {_rms(checks):.1g} meV |"


def describe_stretching(potential: Potential, frames: Sequence[Frame]) -> Iterable[str]:
    chosen = frames[:: max(1, len(frames) // N_STRETCHED)][:N_STRETCHED]
    yield f"\n## One O-H bond, pulled: {len(chosen)} bonds in frames of their own\n"
    yield "Energy from that at 0.95 A, force on H along the bond; errors are root mean squares. eV, eV/A.\n"
    yield "| O-H, A | energy | error | force | error, conservative | error, direct | direct - conservative |"
    yield "|---:|---:|---:|---:|---:|---:|---:|"
    for row in stretch(potential, chosen):
        errors = f"{row.conservative_error:.2f} | {row.direct_error:.2f} | {row.apart:.3f}"
        yield f"| {row.length:g} | {row.energy:.2f} | {row.energy_error:.3f} | {row.force:.1f} | {errors} |"


def describe_costs(potential: Potential, structure: Structure, n_repeats: int, where: str) -> Iterable[str]:
    seconds = time_evaluations(potential, [structure], n_repeats)
    yield f"\n## Cost of one evaluation of {structure.n_atoms // 3} molecules, {where}\n"
    yield f"Median of {n_repeats} (quartiles); the kinds take turns, and ratios are of neighbours in time.\n"
    yield "| forces | ms | over direct |\n|---|---:|---:|"
    for name, values in seconds.items():
        ratios = [value / fast for value, fast in zip(values, seconds[DIRECT], strict=True)]
        yield f"| {name} | {_quartiles([1e3 * value for value in values])} | {_quartiles(ratios)} |"


def _rms(values: Sequence[float] | FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _quartiles(values: Sequence[float]) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="as for `forceserver run`")
    parser.add_argument("frames", type=Path, help="labelled configurations, extended xyz")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=sensible_threads(), help="of torch")
    parser.add_argument("--jacobians", type=int, default=2, help="configurations for lambda and loop work")
    parser.add_argument("--repeats", type=int, default=30, help="of each timing; 0 for none")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    potential = load_potential(arguments.model, device=arguments.device)
    frames = evaluate_frames(potential, ase.io.read(arguments.frames, index=":"))
    precise = load_potential(arguments.model, device=arguments.device, dtype="float64")
    for line in (
        *describe_errors(frames),
        *describe_conditions(frames),
        *describe_curl(frames, precise, arguments.jacobians),
        *describe_stretching(potential, frames),
    ):
        print(line)
    if arguments.repeats:
        largest = max(frames, key=lambda frame: frame.structure.n_atoms).structure
        where = f"{arguments.threads} threads" if arguments.device == "cpu" else arguments.device
        print("\n".join(describe_costs(potential, largest, arguments.repeats, where)))


if __name__ == "__main__":
    main()
