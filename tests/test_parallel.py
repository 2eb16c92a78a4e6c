"""Several evaluations at the same time: the same numbers to the last bit, the right one blamed, and only where it is allowed."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from forceserver.errors import ModelError
from forceserver.evaluate import Evaluator
from forceserver.parallel import ATOMS_OF_A_CALL, Crew
from forceserver.potentials import load_potential
from forceserver.potentials.interface import Batch, Evaluation
from forceserver.potentials.metatomic import MetatomicPotential
from forceserver.structures import ForceKind, ForceRole, Result, Structure
from model_factory import Recipe
from spring import Spring, TwinSpring, structure, torch_threads
from systems import water64, water_box

PairModel = Callable[[Recipe], Path]

ROLES = (ForceRole(0.0), ForceRole(1.0), ForceRole(0.5))


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    with torch_threads(3):
        yield


def large(seed: int) -> Structure:
    """One that has a call for itself."""
    return structure(ATOMS_OF_A_CALL, seed)


def sizes(crew: Crew, n_atoms: Sequence[int]) -> list[int]:
    return [cut.stop - cut.start for cut in crew.cut(n_atoms)]


# Who shares a call


def test_large_structures_have_a_call_each_and_small_ones_share_one_evenly() -> None:
    crew = Crew(TwinSpring(), 2)
    assert sizes(crew, [ATOMS_OF_A_CALL] * 5) == [1] * 5
    assert sizes(crew, [10 * ATOMS_OF_A_CALL]) == [1]
    assert sizes(crew, [3] * 8) == [4, 4]
    assert sizes(crew, [3] * 5) == [3, 2]
    assert sizes(crew, [ATOMS_OF_A_CALL // 2] * 7) == [2, 2, 2, 1]
    assert sizes(crew, [3, 3, 10 * ATOMS_OF_A_CALL, 3]) == [2, 1, 1]
    assert sizes(Crew(TwinSpring(), 16), [3] * 4) == [1] * 4
    assert sizes(Crew(TwinSpring(), 1), [ATOMS_OF_A_CALL] * 2) == [1, 1]


def test_who_does_not_allow_it_gets_one_call_in_the_thread_of_the_caller() -> None:
    potential = Spring()
    Evaluator({"default": potential}).evaluate([(large(seed), ForceRole()) for seed in range(4)])
    assert [size for size, _ in potential.calls] == [4]
    assert Evaluator({"default": potential}).n_at_once == 1


def test_a_gpu_gets_one_call() -> None:
    potential = TwinSpring()
    potential.capabilities = load_potential("noop").capabilities
    on_gpu = Crew(potential, 8)
    on_gpu._cuts = False  # what a device of another type comes to
    assert sizes(on_gpu, [ATOMS_OF_A_CALL] * 5) == [5]


# The same numbers, in their order, and what is counted


def test_results_keep_their_order_and_the_cores_are_shared_out() -> None:
    potential = TwinSpring()
    evaluator = Evaluator({"default": potential})
    work = [(large(seed), ForceRole()) for seed in range(5)]
    for result, (each, _) in zip(evaluator.evaluate(work), work, strict=True):
        np.testing.assert_array_equal(result.forces, -2.0 * each.positions)
    assert potential.most_under_way == 3
    assert {name.split("_")[0] for name, _ in potential.callers} == {"evaluation"}
    assert {n_threads for _, n_threads in potential.callers} == {1}
    assert torch.get_num_threads() == 3
    assert evaluator.statistics.n_forward_passes == evaluator.statistics.n_structures == 5
    assert dict(evaluator.statistics.batch_sizes) == {1: 5}
    assert evaluator.n_at_once == 3


def test_fewer_structures_than_cores_have_several_cores_each_and_one_has_all() -> None:
    torch.set_num_threads(4)
    potential = TwinSpring()
    evaluator = Evaluator({"default": potential})
    evaluator.evaluate([(large(seed), ForceRole()) for seed in range(2)])
    assert [n_threads for _, n_threads in potential.callers] == [2, 2]
    evaluator.evaluate([(large(0), ForceRole())])
    assert potential.callers[-1] == (threading.current_thread().name, 4)


def assert_same_bits(one: Result, other: Result) -> None:
    assert one.energy == other.energy
    np.testing.assert_array_equal(one.forces, other.forces)
    np.testing.assert_array_equal(one.virial, other.virial)


def assert_parallel_equals_alone(spec: str, structures: Sequence[Structure]) -> None:
    """Twice, once in another order: nobody's neighbour lists may show in the forces of another."""
    together, alone = (Evaluator({"default": load_potential(spec)}) for _ in range(2))
    torch.set_num_threads(1)
    wanted = [alone.evaluate([(each, role)])[0] for each in structures for role in ROLES]
    torch.set_num_threads(3)
    work = [(each, role) for each in structures for role in ROLES]
    for got, expected in zip(together.evaluate(work), wanted, strict=True):
        assert_same_bits(got, expected)
    for got, expected in zip(together.evaluate(work[::-1]), wanted[::-1], strict=True):
        assert_same_bits(got, expected)


def test_pairs_are_the_same_to_the_last_bit_whoever_evaluates_them(pair_model: PairModel) -> None:
    structures = [water_box(27 + 40, seed=seed) for seed in range(4)]
    assert_parallel_equals_alone(str(pair_model(Recipe())), structures)


def test_water_pet_is_the_same_to_the_last_bit_whoever_evaluates_it() -> None:
    base, rng = water64(), np.random.default_rng(5)
    structures = [
        Structure(
            base.atomic_numbers, base.positions + 0.02 * rng.standard_normal((192, 3)), base.cell, base.pbc
        )
        for _ in range(3)
    ]
    assert_parallel_equals_alone("water-pet", structures)


def test_twins_share_the_weights() -> None:
    potential = load_potential("water-pet")
    assert isinstance(potential, MetatomicPotential)
    own, theirs = (list(each._model.parameters()) for each in (potential, potential.twin()))
    assert len(own) > 100
    assert [each.data_ptr() for each in own] == [each.data_ptr() for each in theirs]


# When something goes wrong


def test_the_structure_on_which_the_model_raises_is_found_and_nobody_works_on(tmp_path: Path) -> None:
    class Raising(TwinSpring):
        def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
            if bool((batch.positions > 50).any()):
                raise RuntimeError("no such thing")
            return super().__call__(batch, want)

    potential = Raising()
    structures = [large(seed) for seed in range(12)]
    far = structures[1]
    structures[1] = far = Structure(far.atomic_numbers, far.positions + 100.0, far.cell, far.pbc)
    evaluator = Evaluator({"default": potential}, dump_directory=tmp_path)
    with pytest.raises(ModelError, match="no such thing") as caught:
        evaluator.evaluate([(each, ForceRole()) for each in structures])
    assert caught.value.structure is far
    assert not potential.under_way
    assert len(potential.callers) < 12
    assert len(evaluator.evaluate([(each, ForceRole()) for each in structures[2:]])) == 10


def test_what_does_not_fit_at_the_same_time_is_evaluated_by_fewer() -> None:
    potential = TwinSpring(fits_at_once=1)
    evaluator = Evaluator({"default": potential})
    work = [(large(seed), ForceRole()) for seed in range(4)]
    for _ in range(2):
        for result, (each, _) in zip(evaluator.evaluate(work), work, strict=True):
            np.testing.assert_array_equal(result.forces, -2.0 * each.positions)
    assert evaluator.statistics.n_splits == 2
    assert dict(evaluator.statistics.batch_sizes) == {1: 8}


def test_the_memory_of_a_call_that_failed_is_free_when_the_next_begins() -> None:
    tensors: list[weakref.ref[torch.Tensor]] = []

    class Full(TwinSpring):
        def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
            if tensors and threading.current_thread() is threading.main_thread():
                assert tensors[0]() is None
            taken = torch.zeros(1)
            tensors.append(weakref.ref(taken))
            return super().__call__(batch, want)

    evaluator = Evaluator({"default": Full(fits_at_once=1)})
    assert len(evaluator.evaluate([(large(seed), ForceRole()) for seed in range(2)])) == 2


def test_a_model_that_cannot_be_copied_is_evaluated_by_one(caplog: pytest.LogCaptureFixture) -> None:
    class Single(TwinSpring):
        def twin(self) -> TwinSpring:
            raise RuntimeError("Cannot serialize custom bound C++ class")

    potential = Single(seconds=0.0)
    evaluator = Evaluator({"default": potential})
    for _ in range(2):
        assert len(evaluator.evaluate([(large(seed), ForceRole()) for seed in range(3)])) == 3
    assert potential.callers == [(threading.current_thread().name, 3)] * 6
    assert caplog.text.count("cannot be copied") == 1
    assert evaluator.n_at_once == 1
