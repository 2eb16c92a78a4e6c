"""The evaluator: which structures share a call, what becomes of a bad one, and how forces are blended."""

from __future__ import annotations

import resource
from pathlib import Path

import ase.io
import numpy as np
import pytest

from forceserver.dump import dump_structure
from forceserver.errors import (
    BadForces,
    ModelError,
    OutOfMemory,
)
from forceserver.evaluate import Evaluator
from forceserver.potentials.interface import Batch, Evaluation
from forceserver.structures import ForceKind, ForceRole, Structure, is_finite
from spring import Spring, structure


def test_a_model_that_raises_ends_the_service_in_one_line_with_evidence(tmp_path: Path) -> None:
    evaluator = Evaluator({"default": Spring(spoil="raise")}, dump_directory=tmp_path)
    with pytest.raises(ModelError, match="RuntimeError: shape mismatch") as caught:
        evaluator.evaluate([(structure(), ForceRole())])
    assert "\n" not in str(caught.value)
    assert (tmp_path / "bad-structure-1.xyz").exists()


def test_evidence_is_never_overwritten(tmp_path: Path) -> None:
    evaluator = Evaluator({"default": Spring(spoil="energy")}, dump_directory=tmp_path)
    for _ in range(2):
        with pytest.raises(BadForces):
            evaluator.evaluate([(structure(), ForceRole())])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad-structure-1.xyz", "bad-structure-2.xyz"]


def test_a_structure_on_which_the_model_raises_is_found_in_its_batch(tmp_path: Path) -> None:
    class Raising(Spring):
        def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
            if bool((batch.positions > 50).any()):
                raise RuntimeError("no such thing")
            return super().__call__(batch, want)

    far = structure(seed=3)
    far = Structure(far.atomic_numbers, far.positions + 100.0, far.cell, far.pbc)
    work = [(structure(seed=1), ForceRole()), (far, ForceRole()), (structure(seed=2), ForceRole())]
    with pytest.raises(ModelError) as caught:
        Evaluator({"default": Raising()}, dump_directory=tmp_path).evaluate(work)
    assert caught.value.structure is far


def test_a_batch_that_does_not_fit_is_split_and_the_size_remembered() -> None:
    potential = Spring(fits=3)
    evaluator = Evaluator({"default": potential})
    work = [(structure(seed=seed), ForceRole()) for seed in range(8)]
    for _ in range(2):
        results = evaluator.evaluate(work)
        for result, (each, _) in zip(results, work, strict=True):
            np.testing.assert_allclose(result.forces, -2.0 * each.positions)
    assert [size for size, _ in potential.calls] == [2] * 8
    assert evaluator.statistics.n_splits == 2  # 8 and 4 did not fit; the second round did not try


def test_one_structure_that_does_not_fit_says_so() -> None:
    with pytest.raises(OutOfMemory, match="2 atoms does not fit"):
        Evaluator({"default": Spring(fits=0)}).evaluate([(structure(), ForceRole())])


def test_the_net_force_of_direct_forces_is_removed_or_kept_and_conservative_ones_are_left_alone() -> None:
    one = structure(5)
    true = -2.0 * one.positions
    removed = Evaluator({"default": Spring()})
    kept = Evaluator({"default": Spring()}, keep_net_force=True)
    direct = ForceRole(1.0)
    np.testing.assert_allclose(removed.evaluate([(one, direct)])[0].forces, true - true.mean(0))
    np.testing.assert_allclose(kept.evaluate([(one, direct)])[0].forces, true + 1.0)
    np.testing.assert_allclose(removed.evaluate([(one, ForceRole())])[0].forces, true)


def test_structures_that_want_the_same_share_a_call_and_results_keep_their_order() -> None:
    potential = Spring()
    work = [
        (structure(seed=seed), ForceRole(fraction)) for seed, fraction in enumerate([1.0, 0.0, 0.5, 1.0, 0.0])
    ]
    results = Evaluator({"default": potential}, keep_net_force=True).evaluate(work)
    assert sorted(size for size, _ in potential.calls) == [1, 2, 2]
    for result, (each, role) in zip(results, work, strict=True):
        np.testing.assert_allclose(result.forces, -2.0 * each.positions + role.direct_fraction)


@pytest.mark.parametrize(
    ("virial", "fraction", "has_virial"),
    [
        ("own", 1.0, False),
        ("conservative", 1.0, True),
        ("own", 0.5, False),
        ("conservative", 0.5, True),
        ("none", 0.0, True),
    ],
)
def test_a_virial_that_the_model_lacks_is_missing_unless_the_conservative_one_is_asked_for(
    virial: str, fraction: float, has_virial: bool
) -> None:
    evaluator = Evaluator({"default": Spring(direct_virial=False)}, virial=virial)  # type: ignore[arg-type]
    (result,) = evaluator.evaluate([(structure(), ForceRole(fraction))])
    assert (result.virial is not None) == has_virial


@pytest.mark.parametrize("n", [3, 20_000])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_wherever_it_stands_and_what_is_huge_is_not(n: int, bad: float) -> None:
    numbers = np.ones((n, 3))
    numbers[n // 2, 1] = 1e200  # its square is not a number any more
    with np.errstate(over="ignore"):
        assert is_finite(numbers)
        assert is_finite(numbers.T[::2])
        assert is_finite(numbers[:0])
        numbers[n // 2, 1] = bad
        assert not is_finite(numbers)
        numbers[0, 0] = -bad
        assert not is_finite(numbers)


def test_a_structure_that_has_no_place_where_it_belongs_is_written_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forceserver.dump.tempfile.tempdir", str(tmp_path))
    lost = structure()
    said = str(dump_structure(lost, tmp_path / "gone", reason="nan", role=None))
    assert said == f"{tmp_path}/bad-structure-1.xyz (in {tmp_path}/gone: No such file or directory)"
    np.testing.assert_array_equal(ase.io.read(tmp_path / "bad-structure-1.xyz").positions, lost.positions)


def test_half_a_structure_is_not_left_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forceserver.dump.tempfile.tempdir", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        said = str(dump_structure(structure(), tmp_path, reason="nan", role=None))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert said.endswith("bad-structure-1.xyz (not written: File too large)")
    assert not list(tmp_path.iterdir())
