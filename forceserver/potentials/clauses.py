"""The clauses of the contract of a potential, each a function that yields what it finds broken.

Units: eV and angstrom. `contract` says when they run. Invariances and finite differences hold only as well as the
arithmetic, so tolerances belong to a dtype and are data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from forceserver.potentials.interface import Batch, Evaluation, Forces, Potential
from forceserver.structures import CONSERVATIVE, DIRECT, FloatArray, ForceKind, IntArray, Structure

Permutation = Callable[[int, np.random.Generator], IntArray]


@dataclass(frozen=True)
class Tolerances:
    """How far two numbers may lie apart that should be the same: absolute plus relative to the largest of them."""

    equality: float  # between two evaluations of the same thing
    difference: float  # between a derivative and a finite difference
    step: float  # A, and strain, of the finite differences


TOLERANCES: dict[torch.dtype, Tolerances] = {
    torch.float64: Tolerances(equality=1e-8, difference=1e-6, step=1e-3),
    torch.float32: Tolerances(equality=2e-4, difference=1e-2, step=2e-2),
}


@dataclass(frozen=True)
class ContractViolation:
    """One clause that a potential breaks."""

    clause: str
    structure: int | None  # index among those given; None: not about one of them
    message: str

    def __str__(self) -> str:
        where = "" if self.structure is None else f", structure {self.structure}"
        return f"{self.clause}{where}: {self.message}"


@dataclass(frozen=True, eq=False)
class Subject:
    """A potential under test, with what all clauses need."""

    potential: Potential
    structures: Sequence[Structure]
    tolerances: Tolerances
    permutation: Permutation  # how many atoms and a generator in, an order of the atoms out
    seed: int

    @property
    def kinds(self) -> frozenset[ForceKind]:
        """The kinds of forces that are offered."""
        capabilities = self.potential.capabilities
        offered: dict[ForceKind, bool] = {
            CONSERVATIVE: capabilities.conservative,
            DIRECT: capabilities.direct,
        }
        return frozenset(kind for kind, has in offered.items() if has)

    def batch(self, structures: Sequence[Structure]) -> Batch:
        capabilities = self.potential.capabilities
        return Batch.from_structures(structures, dtype=capabilities.dtype, device=capabilities.device)

    def evaluate(self, *structures: Structure) -> Evaluation:
        return self.potential(self.batch(structures), self.kinds)

    def energy(self, structure: Structure) -> float:
        return float(self.potential(self.batch([structure]), frozenset({CONSERVATIVE})).energies[0])

    def generator(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


Clause = Callable[[Subject], Iterator[ContractViolation]]


def offers_something(subject: Subject) -> Iterator[ContractViolation]:
    if not subject.kinds:
        yield ContractViolation("capabilities", None, "neither conservative nor direct forces are offered")


def shapes(subject: Subject) -> Iterator[ContractViolation]:
    """Shapes, dtype, finite values, nothing attached to a graph, virials as declared."""
    batch, capabilities = subject.batch(subject.structures), subject.potential.capabilities
    declared = {CONSERVATIVE: capabilities.conservative_virial, DIRECT: capabilities.direct_virial}
    evaluation = subject.potential(batch, subject.kinds)
    tensors: list[tuple[str, Tensor, torch.Size]] = [("energies", evaluation.energies, batch.cells.shape[:1])]
    for kind, forces in _kinds_of(evaluation):
        tensors.append((f"{kind} forces", forces.forces, batch.positions.shape))
        if forces.virials is not None:
            tensors.append((f"{kind} virials", forces.virials, batch.cells.shape))
        if declared[kind] != (forces.virials is not None):
            wanted = "a tensor" if declared[kind] else "None"
            yield ContractViolation("shapes", None, f"{kind} virials are declared to be {wanted} and are not")
    for name, tensor, shape in tensors:
        if tensor.shape != shape:
            message = f"{name} must have the shape {tuple(shape)}, got {tuple(tensor.shape)}"
            yield ContractViolation("shapes", None, message)
        if tensor.dtype != capabilities.dtype:
            message = f"{name} must be {capabilities.dtype}, got {tensor.dtype}"
            yield ContractViolation("dtype", None, message)
        if tensor.requires_grad:
            yield ContractViolation("detached", None, f"{name} must be detached from the graph")
        if not bool(tensor.isfinite().all()):
            yield ContractViolation("finite", None, f"{name} must be finite")


def input_untouched(subject: Subject) -> Iterator[ContractViolation]:
    batch = subject.batch(subject.structures)
    before = {field.name: getattr(batch, field.name) for field in fields(batch)}
    copies = {name: value.clone() for name, value in before.items() if isinstance(value, Tensor)}
    subject.potential(batch, subject.kinds)
    for name, copy in copies.items():
        if not torch.equal(before[name], copy) or before[name].requires_grad:
            yield ContractViolation("input untouched", None, f"the batch's {name} were modified")


def wanted_kinds(subject: Subject) -> Iterator[ContractViolation]:
    """Forces of a kind are there exactly when they are wanted."""
    for want in _subsets(subject.kinds):
        evaluation = subject.potential(subject.batch(subject.structures), want)
        got = frozenset(kind for kind, _ in _kinds_of(evaluation))
        if got != want:
            message = f"asked for {_words(want)}, got {_words(got)}"
            yield ContractViolation("wanted kinds", None, message)


def kinds_together(subject: Subject) -> Iterator[ContractViolation]:
    """Asked for both kinds at once, a potential says what it says when asked for each."""
    together = subject.evaluate(*subject.structures)
    for kind in sorted(subject.kinds):
        alone = subject.potential(subject.batch(subject.structures), frozenset({kind}))
        yield from _compare(subject, "kinds together", None, _only(together, kind), _only(alone, kind))


def batch_equals_singles(subject: Subject) -> Iterator[ContractViolation]:
    # The first structure comes twice, so that a single one given is a batch too.
    structures = [*subject.structures, subject.structures[0]]
    batch = subject.evaluate(*structures)
    for index, structure in enumerate(structures):
        one = _pick(batch, index, [s.n_atoms for s in structures])
        yield from _compare(subject, "batch equals singles", index, one, subject.evaluate(structure))


def permuted_atoms(subject: Subject) -> Iterator[ContractViolation]:
    """Forces follow their atoms when the atoms are listed in another order."""
    rng = subject.generator()
    for index, structure in enumerate(subject.structures):
        order = subject.permutation(structure.n_atoms, rng)
        shuffled = replace(
            structure, atomic_numbers=structure.atomic_numbers[order], positions=structure.positions[order]
        )
        wanted = _reorder(subject.evaluate(structure), order)
        yield from _compare(subject, "permutation", index, subject.evaluate(shuffled), wanted)


def translated_atoms(subject: Subject) -> Iterator[ContractViolation]:
    rng = subject.generator()
    for index, structure in enumerate(subject.structures):
        moved = replace(structure, positions=structure.positions + rng.uniform(-1.0, 1.0, 3))
        yield from _compare(
            subject, "rigid translation", index, subject.evaluate(moved), subject.evaluate(structure)
        )


def other_images(subject: Subject) -> Iterator[ContractViolation]:
    """Any image of an atom will do, for each atom on its own."""
    rng = subject.generator()
    for index, structure in enumerate(subject.structures):
        images = rng.integers(-2, 3, (structure.n_atoms, 3)) * structure.pbc
        moved = replace(structure, positions=structure.positions + images @ structure.cell)
        yield from _compare(
            subject, "lattice translation", index, subject.evaluate(moved), subject.evaluate(structure)
        )


def symmetric_virials(subject: Subject) -> Iterator[ContractViolation]:
    for kind, forces in _kinds_of(subject.evaluate(*subject.structures)):
        if forces.virials is not None:
            transposed = forces.virials.transpose(1, 2)
            yield from _compare_one(
                subject, "symmetric virial", None, f"{kind} virials", forces.virials, transposed
            )


def forces_are_derivatives(subject: Subject) -> Iterator[ContractViolation]:
    """Conservative forces against the energy along random displacements of all atoms."""
    rng = subject.generator()
    for index, structure in enumerate(subject.structures):
        forces = subject.evaluate(structure).conservative
        if forces is None:
            return
        direction = rng.standard_normal(structure.positions.shape)
        displaced = partial(_displace, structure, direction)
        expected = float((forces.forces.cpu().double().numpy() * direction).sum())
        scale = float(forces.forces.abs().max())
        yield from _compare_slope(subject, "forces are derivatives", index, displaced, expected, scale)


def virials_are_derivatives(subject: Subject) -> Iterator[ContractViolation]:
    """Conservative virials against the energy along random symmetric strains of atoms and cell."""
    rng = subject.generator()
    for index, structure in enumerate(subject.structures):
        forces = subject.evaluate(structure).conservative
        if forces is None or forces.virials is None:
            return
        random = rng.uniform(-1.0, 1.0, (3, 3))
        direction = 0.5 * (random + random.T)
        strained = partial(_strain, structure, direction)
        expected = float((forces.virials[0].cpu().double().numpy() * direction).sum())
        scale = float(forces.virials.abs().max())
        yield from _compare_slope(subject, "virials are derivatives", index, strained, expected, scale)


def _displace(structure: Structure, direction: FloatArray, amount: float) -> Structure:
    return replace(structure, positions=structure.positions + amount * direction)


def _strain(structure: Structure, direction: FloatArray, amount: float) -> Structure:
    deformation = np.eye(3) + amount * direction
    return replace(structure, positions=structure.positions @ deformation, cell=structure.cell @ deformation)


def _compare_slope(
    subject: Subject,
    clause: str,
    index: int,
    path: Callable[[float], Structure],
    expected: float,
    scale: float,
) -> Iterator[ContractViolation]:
    """Minus the slope of the energy at the start of a path, by the five-point formula, against what is expected."""
    tolerances = subject.tolerances
    step = tolerances.step
    energies = {n: subject.energy(path(n * step)) for n in (-2, -1, 1, 2)}
    slope = (8.0 * (energies[1] - energies[-1]) - (energies[2] - energies[-2])) / (12.0 * step)
    # A large energy carries a large rounding error, which a short step magnifies.
    rounding = 2.0 * torch.finfo(subject.potential.capabilities.dtype).eps * abs(energies[1]) / step
    allowed = tolerances.difference * max(scale, 1.0) + rounding
    if not abs(expected + slope) <= allowed:
        message = f"the potential says {expected:.8g}, finite differences of its energy {-slope:.8g} (allowed {allowed:.1g})"
        yield ContractViolation(clause, index, message)


def _compare(
    subject: Subject, clause: str, index: int | None, got: Evaluation, wanted: Evaluation
) -> Iterator[ContractViolation]:
    yield from _compare_one(subject, clause, index, "energies", got.energies, wanted.energies)
    for (kind, mine), (_, theirs) in zip(_kinds_of(got), _kinds_of(wanted), strict=True):
        yield from _compare_one(subject, clause, index, f"{kind} forces", mine.forces, theirs.forces)
        if mine.virials is not None and theirs.virials is not None:
            yield from _compare_one(subject, clause, index, f"{kind} virials", mine.virials, theirs.virials)


def _compare_one(
    subject: Subject, clause: str, index: int | None, name: str, got: Tensor, wanted: Tensor
) -> Iterator[ContractViolation]:
    largest = float((got - wanted).abs().max())
    allowed = subject.tolerances.equality * max(1.0, float(wanted.abs().max()))
    if not largest <= allowed:
        message = f"{name} differ by up to {largest:.2g} (allowed {allowed:.1g})"
        yield ContractViolation(clause, index, message)


def _kinds_of(evaluation: Evaluation) -> list[tuple[ForceKind, Forces]]:
    both: list[tuple[ForceKind, Forces | None]] = [
        (CONSERVATIVE, evaluation.conservative),
        (DIRECT, evaluation.direct),
    ]
    return [(kind, forces) for kind, forces in both if forces is not None]


def _map_forces(evaluation: Evaluation, change: Callable[[Forces], Forces]) -> Evaluation:
    conservative = None if evaluation.conservative is None else change(evaluation.conservative)
    direct = None if evaluation.direct is None else change(evaluation.direct)
    return replace(evaluation, conservative=conservative, direct=direct)


def _reorder(evaluation: Evaluation, order: np.ndarray) -> Evaluation:
    indices = torch.as_tensor(order, device=evaluation.energies.device)
    return _map_forces(evaluation, lambda forces: replace(forces, forces=forces.forces[indices]))


def _pick(evaluation: Evaluation, index: int, n_atoms: Sequence[int]) -> Evaluation:
    """What an evaluation of several structures says about one of them."""
    start = sum(n_atoms[:index])
    here = slice(index, index + 1)
    one = _map_forces(
        evaluation,
        lambda forces: Forces(
            forces.forces[start : start + n_atoms[index]],
            None if forces.virials is None else forces.virials[here],
        ),
    )
    return replace(one, energies=evaluation.energies[here])


def _only(evaluation: Evaluation, kind: ForceKind) -> Evaluation:
    return Evaluation(
        evaluation.energies,
        conservative=evaluation.conservative if kind == CONSERVATIVE else None,
        direct=evaluation.direct if kind == DIRECT else None,
    )


def _subsets(kinds: frozenset[ForceKind]) -> list[frozenset[ForceKind]]:
    singles = [frozenset({kind}) for kind in sorted(kinds)]
    return singles if len(kinds) == 1 else [*singles, kinds]


def _words(kinds: frozenset[ForceKind]) -> str:
    return " and ".join(sorted(kinds)) or "nothing"


PRECONDITIONS: tuple[Clause, ...] = (offers_something, shapes, wanted_kinds)
OF_EVERY_POTENTIAL: tuple[Clause, ...] = (
    input_untouched,
    kinds_together,
    batch_equals_singles,
    permuted_atoms,
    symmetric_virials,
    forces_are_derivatives,
    virials_are_derivatives,
)
OF_FREE_SPACE: tuple[Clause, ...] = (translated_atoms, other_images)
