"""The contract catches what it is there to catch: one deliberately broken potential for each clause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from forceserver.potentials import load_potential
from forceserver.potentials.contract import assert_keeps_contract, check_potential
from forceserver.potentials.interface import Batch, Capabilities, Evaluation, Forces, Potential
from forceserver.structures import CONSERVATIVE, DIRECT, ForceKind, Structure
from systems import lj_crystal

Answer = Callable[[Potential, Batch, frozenset[ForceKind]], Evaluation]

# Crystals so dense that the synthetic field acts in them too; the cutoff lies between two shells of neighbours.
STRUCTURES = [
    lj_crystal(1, lattice_constant=2.6, rattle=0.04, seed=1),
    lj_crystal(1, lattice_constant=2.65, rattle=0.04, seed=2),
]
HONEST = load_potential("lj:sigma=1.6,cutoff=2.25,direct=0.1")


@dataclass(frozen=True)
class Broken:
    """An honest potential whose answers are tampered with."""

    answer: Answer
    honest: Potential = HONEST
    changes: tuple[tuple[str, object], ...] = ()

    @property
    def capabilities(self) -> Capabilities:
        return replace(self.honest.capabilities, **dict(self.changes))

    def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        return self.answer(self.honest, batch, want)


def clauses_broken_by(
    answer: Answer, structures: list[Structure] = STRUCTURES, **changes: object
) -> set[str]:
    potential = Broken(answer, changes=tuple(changes.items()))
    return {violation.clause for violation in check_potential(potential, structures)}


def honestly(honest: Potential, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
    return honest(batch, want)


def tampered(change: Callable[[Forces], Forces]) -> Answer:
    """Change the conservative forces."""

    def answer(honest: Potential, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        result = honest(batch, want)
        changed = None if result.conservative is None else change(result.conservative)
        return replace(result, conservative=changed)

    return answer


def with_energies(change: Callable[[torch.Tensor, Batch], torch.Tensor]) -> Answer:
    def answer(honest: Potential, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        result = honest(batch, want)
        return replace(result, energies=change(result.energies, batch))

    return answer


def test_an_honest_potential_breaks_nothing() -> None:
    assert clauses_broken_by(honestly) == set()


def test_offering_no_forces_is_caught() -> None:
    assert clauses_broken_by(honestly, conservative=False, direct=False) == {"capabilities"}


def test_energies_squeezed_to_a_scalar_are_caught() -> None:
    squeezed = with_energies(lambda energies, batch: energies.sum())
    assert clauses_broken_by(squeezed) == {"shapes"}


def test_virials_of_the_wrong_shape_are_caught() -> None:
    voigt = tampered(lambda forces: replace(forces, virials=forces.virials.flatten(1)[:, :6]))
    assert clauses_broken_by(voigt) == {"shapes"}


def test_a_conservative_virial_that_is_declared_and_missing_is_caught() -> None:
    without = tampered(lambda forces: replace(forces, virials=None))
    assert clauses_broken_by(without) == {"shapes"}
    assert clauses_broken_by(without, conservative_virial=False) == set()


def test_a_direct_virial_that_was_not_declared_is_caught() -> None:
    assert clauses_broken_by(honestly, direct_virial=False) == {"shapes"}


def test_another_precision_than_declared_is_caught() -> None:
    single = tampered(lambda forces: replace(forces, forces=forces.forces.float()))
    assert clauses_broken_by(single) == {"dtype"}


def test_forces_still_attached_to_a_graph_are_caught() -> None:
    attached = tampered(lambda forces: replace(forces, forces=forces.forces.clone().requires_grad_()))
    assert clauses_broken_by(attached) == {"detached"}


def test_forces_that_are_not_numbers_are_caught() -> None:
    undefined = tampered(lambda forces: replace(forces, forces=forces.forces * torch.nan))
    assert clauses_broken_by(undefined) == {"finite"}


def test_modified_positions_are_caught() -> None:
    def wraps_in_place(honest: Potential, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        result = honest(batch, want)
        batch.positions.remainder_(batch.cells[0, 0, 0])
        return result

    assert clauses_broken_by(wraps_in_place) == {"input untouched"}


def test_a_gradient_left_on_the_input_is_caught() -> None:
    def leaves_gradient(honest: Potential, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        result = honest(batch, want)
        batch.positions.requires_grad_()
        return result

    assert clauses_broken_by(leaves_gradient) == {"input untouched"}


def test_forces_that_nobody_wanted_are_caught() -> None:
    def gives_all(honest: Potential, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        return honest(batch, frozenset({CONSERVATIVE, DIRECT}))

    assert clauses_broken_by(gives_all) == {"wanted kinds"}


def test_direct_forces_that_are_wanted_and_missing_are_caught() -> None:
    def forgets_direct(honest: Potential, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        result = honest(batch, want)
        return replace(result, direct=None) if len(want) == 2 else result

    assert clauses_broken_by(forgets_direct) == {"wanted kinds"}


def test_other_forces_when_both_are_asked_for_are_caught() -> None:
    def blends(honest: Potential, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        result = honest(batch, want)
        return replace(result, direct=result.conservative) if len(want) == 2 else result

    assert clauses_broken_by(blends) == {"kinds together"}


def test_another_energy_with_direct_forces_is_caught() -> None:
    def energy_of_its_own(honest: Potential, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        result = honest(batch, want)
        return replace(result, energies=result.energies + 1e-3) if want == {DIRECT} else result

    assert clauses_broken_by(energy_of_its_own) == {"kinds together"}


def test_structures_that_feel_each_other_are_caught() -> None:
    def mean_field(energies: torch.Tensor, batch: Batch) -> torch.Tensor:
        return energies + 1e-3 * (batch.n_structures - 1)

    assert clauses_broken_by(with_energies(mean_field)) == {"batch equals singles"}


@pytest.mark.parametrize("structures", [STRUCTURES, STRUCTURES[:1]])
def test_answers_in_the_wrong_order_are_caught(structures: list[Structure]) -> None:
    def reverses(energies: torch.Tensor, batch: Batch) -> torch.Tensor:
        offsets = torch.arange(batch.n_structures, dtype=energies.dtype)
        return energies + offsets

    assert "batch equals singles" in clauses_broken_by(with_energies(reverses), structures)


def test_forces_that_depend_on_the_order_of_atoms_are_caught() -> None:
    def pushes_first(honest: Potential, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        result = honest(batch, want)
        if result.direct is None:
            return result
        firsts = torch.cat([torch.tensor([True]), batch.atom_to_structure.diff() > 0])
        push = 1e-3 * firsts.to(batch.positions)[:, None]
        return replace(result, direct=replace(result.direct, forces=result.direct.forces + push))

    assert clauses_broken_by(pushes_first) == {"permutation"}


def test_an_energy_tied_to_the_origin_is_caught() -> None:
    assert {violation.clause for violation in check_potential(load_potential("harmonic"), STRUCTURES)} == {
        "rigid translation",
        "lattice translation",
    }


def test_a_potential_that_cares_which_image_it_is_given_is_caught() -> None:
    def open_boundaries(honest: Potential, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        return honest(replace(batch, pbc=torch.zeros_like(batch.pbc)), want)

    assert clauses_broken_by(open_boundaries) == {"lattice translation"}


def test_a_virial_that_is_not_symmetric_is_caught() -> None:
    twist = torch.tensor([[0.0, 1e-3, 0.0], [-1e-3, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    twisted = tampered(lambda forces: replace(forces, virials=forces.virials + twist))
    assert clauses_broken_by(twisted) == {"symmetric virial"}


def test_forces_that_are_not_derivatives_are_caught() -> None:
    scaled = tampered(lambda forces: replace(forces, forces=1.001 * forces.forces))
    assert clauses_broken_by(scaled) == {"forces are derivatives"}


@pytest.mark.parametrize("factor", [-1.0, 1.001])
def test_virials_of_the_wrong_sign_or_size_are_caught(factor: float) -> None:
    scaled = tampered(lambda forces: replace(forces, virials=factor * forces.virials))
    assert clauses_broken_by(scaled) == {"virials are derivatives"}


def test_direct_forces_passed_off_as_conservative_are_caught() -> None:
    def swaps(honest: Potential, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        result = honest(batch, frozenset({DIRECT}))
        return Evaluation(
            result.energies,
            conservative=result.direct if CONSERVATIVE in want else None,
            direct=result.direct if DIRECT in want else None,
        )

    assert clauses_broken_by(swaps) == {"forces are derivatives", "virials are derivatives"}


def test_the_error_lists_every_violation_with_its_structure() -> None:
    scaled = tampered(lambda forces: Forces(1.01 * forces.forces, -forces.virials))
    with pytest.raises(AssertionError) as caught:
        assert_keeps_contract(Broken(scaled), STRUCTURES)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("breaks the contract of a potential:")
    assert sum("forces are derivatives, structure" in line for line in lines) == 2
    assert sum("virials are derivatives, structure" in line for line in lines) == 2


def test_a_check_without_structures_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one structure"):
        check_potential(HONEST, [])
