"""The contract of a potential, executed: what every model must keep before its forces may move atoms.

Units: eV and angstrom. `check_potential` runs every clause (`clauses`) on structures that the caller gives and collects
what is broken; `assert_keeps_contract` is the same for tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forceserver.potentials import clauses
from forceserver.potentials.clauses import TOLERANCES, ContractViolation, Permutation, Tolerances
from forceserver.potentials.interface import Potential
from forceserver.structures import IntArray, Structure

__all__ = ["ContractViolation", "Tolerances", "assert_keeps_contract", "check_potential", "permute_atoms"]


def permute_atoms(n_atoms: int, rng: np.random.Generator) -> IntArray:
    """Any order of the atoms."""
    return rng.permutation(n_atoms)


def check_potential(
    potential: Potential,
    structures: Sequence[Structure],
    *,
    translation_invariant: bool = True,
    permutation: Permutation = permute_atoms,
    tolerances: Tolerances | None = None,
    seed: int = 0,
) -> list[ContractViolation]:
    """Run every clause of the contract on a potential.

    Args:
        potential: anything behind the interface.
        structures: at least one, of elements that the potential knows. Give several, of different sizes where it
            allows that, without symmetry (forces that vanish test nothing), and away from a cutoff where its
            forces jump.
        translation_invariant: False for a potential that is fixed in space, such as a trap: its energy depends on where
            the structure is and on which image of an atom is given.
        permutation: the orders of atoms that the potential allows; one that finds molecules by the order of their
            atoms allows fewer than all.
        tolerances: those of the dtype of the potential unless given.
        seed: of the random directions, orders and translations.

    Returns:
        What is broken, in the order of the clauses; empty when the contract is kept. Where the answers lack a part or
        have a wrong shape, the other clauses cannot be evaluated and are not.

    Raises:
        ValueError: there is no structure.
    """
    if not structures:
        raise ValueError("check_potential wants at least one structure, got none")
    tolerances = tolerances or TOLERANCES[potential.capabilities.dtype]
    subject = clauses.Subject(potential, structures, tolerances, permutation, seed)
    for clause in clauses.PRECONDITIONS:
        if violations := list(clause(subject)):
            return violations
    selected = [*clauses.OF_EVERY_POTENTIAL, *(clauses.OF_FREE_SPACE if translation_invariant else ())]
    return [violation for clause in selected for violation in clause(subject)]


def assert_keeps_contract(
    potential: Potential,
    structures: Sequence[Structure],
    *,
    translation_invariant: bool = True,
    permutation: Permutation = permute_atoms,
    tolerances: Tolerances | None = None,
    seed: int = 0,
) -> None:
    """Do nothing for a potential that keeps the contract.

    Raises:
        AssertionError: lists every violation that `check_potential` finds.
    """
    violations = check_potential(
        potential,
        structures,
        translation_invariant=translation_invariant,
        permutation=permutation,
        tolerances=tolerances,
        seed=seed,
    )
    if violations:
        listed = "\n  ".join(str(violation) for violation in violations)
        raise AssertionError(f"{potential.capabilities.name} breaks the contract of a potential:\n  {listed}")
