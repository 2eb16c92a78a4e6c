"""The border between i-PI's world and ours: bohr, hartree and columns outside; eV, angstrom and rows inside.

Nothing else in the package converts units. i-PI's own rounded factors are used, because i-PI's outputs are converted back
with them: so there is one electronvolt in an energy-drift study. The force factor is the quotient of the other two (i-PI's own
`ev/ang` differs from it by 1e-7, which would make forces inconsistent with energies).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from forceserver.messages import ForceReply, ForceRequest
from forceserver.structures import BoolArray, FloatArray, IntArray, Result, Structure

BOHR_PER_ANGSTROM = 1.8897261
HARTREE_PER_EV = 0.036749326
ATOMIC_UNITS_PER_EV_PER_ANGSTROM = HARTREE_PER_EV / BOHR_PER_ANGSTROM
NO_VIRIAL = np.zeros((3, 3))


@dataclass(frozen=True, eq=False)
class Template:
    """What i-PI never sends with its positions: which atoms they are, and whether the cell repeats."""

    atomic_numbers: IntArray  # (n_atoms,)
    pbc: BoolArray  # (3,)
    positions: FloatArray | None = None  # (n_atoms, 3) A, of the file that it was read from

    @property
    def n_atoms(self) -> int:
        return len(self.atomic_numbers)

    def is_like(self, other: Template) -> bool:
        return np.array_equal(self.atomic_numbers, other.atomic_numbers) and np.array_equal(
            self.pbc, other.pbc
        )

    def restricted_to(self, atoms: Sequence[int]) -> Template:
        """The template of some of the atoms, in the order given."""
        return Template(self.atomic_numbers[atoms], self.pbc)

    def describe(self) -> str:
        """Species and counts, e.g. "O64 H128, periodic"."""
        from ase.data import chemical_symbols

        numbers, first, counts = np.unique(self.atomic_numbers, return_index=True, return_counts=True)
        order = np.argsort(first)
        formula = " ".join(f"{chemical_symbols[numbers[i]]}{counts[i]}" for i in order)
        periodic = {0: "not periodic", 3: "periodic"}.get(
            int(self.pbc.sum()), f"periodic along {self.pbc.tolist()}"
        )
        return f"{formula}, {periodic}"


def distinct_structures(request: ForceRequest, template: Template) -> list[Structure]:
    """The structures of a request, in our units, without trailing repetitions.

    i-PI fills an incomplete batch with copies of its last structure; they are recognised bit by bit and evaluated once.
    """
    n_distinct = len(request.positions)
    while n_distinct > 1 and _same_structure(request, n_distinct - 2, n_distinct - 1):
        n_distinct -= 1
    positions = request.positions[:n_distinct] / BOHR_PER_ANGSTROM
    return [
        Structure(
            template.atomic_numbers, positions[index], _cell(request.cells[index].tobytes()), template.pbc
        )
        for index in range(n_distinct)
    ]


@lru_cache(maxsize=512)
def _cell(columns: bytes) -> FloatArray:
    """A cell in our units (3, 3), read-only; most simulations have one all their life."""
    cell: FloatArray = np.frombuffer(columns, np.float64).reshape(3, 3).T / BOHR_PER_ANGSTROM
    cell.flags.writeable = False
    return cell


def make_reply(request: ForceRequest, results: Sequence[Result]) -> ForceReply:
    """The answer to a request from the results of its distinct structures; the last one fills the padding.

    A virial that the model does not have becomes zero: NaN would poison the sums of a multiple time stepping run, in which the
    component without virial has no weight. Whoever would read that zero is refused before the run starts (`preflight`).
    Virials are made symmetric to the last bit: i-PI keeps one triangle only.
    """
    n_missing = request.n_structures - len(results)
    padded = [*results, *[results[-1]] * n_missing] if n_missing else results
    forces = [result.forces for result in padded]
    virials = _stack([NO_VIRIAL if result.virial is None else result.virial for result in padded])
    return ForceReply(
        energies=np.array([result.energy for result in padded], np.float64) * HARTREE_PER_EV,
        forces=_stack(forces) * ATOMIC_UNITS_PER_EV_PER_ANGSTROM,
        virials=(virials + virials.swapaxes(1, 2)) * (0.5 * HARTREE_PER_EV),
        extras=_extras(padded),
    )


def _stack(arrays: Sequence[FloatArray]) -> FloatArray:
    """Along a new first axis; a single array is not copied."""
    return arrays[0][np.newaxis] if len(arrays) == 1 else np.stack(arrays)


def _extras(results: Sequence[Result]) -> tuple[str, ...]:
    if not any(result.extras for result in results):
        return ()
    return tuple(json.dumps(result.extras) if result.extras else "" for result in results)


def _same_structure(request: ForceRequest, first: int, second: int) -> bool:
    return np.array_equal(request.positions[first], request.positions[second]) and np.array_equal(
        request.cells[first], request.cells[second]
    )
