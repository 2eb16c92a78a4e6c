"""Two models as one: which gives what, and in whose arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from forceserver.errors import UsageError
from forceserver.evaluate import Evaluator
from forceserver.neighbors import NeighborStatistics
from forceserver.potentials import load_potential
from forceserver.potentials.contract import assert_keeps_contract, check_potential
from forceserver.potentials.interface import Batch, Capabilities, Evaluation, Forces, Potential
from forceserver.potentials.pair import PairedPotential
from forceserver.structures import CONSERVATIVE, DEFAULT_MODEL, DIRECT, ForceKind, ForceRole
from systems import lj_crystal

BOTH = frozenset({CONSERVATIVE, DIRECT})
FIRST = "lj:epsilon=0.0104,sigma=3.4,cutoff=6.0"
SECOND = "lj:epsilon=0.0200,sigma=3.3,cutoff=5.0"
SECOND_WITH_HEAD = f"{SECOND},direct=0.3"
CRYSTALS = [lj_crystal(1), lj_crystal(1, seed=1)]


class Spy:
    """Notes what is asked of a potential, and can pretend to other capabilities."""

    def __init__(self, potential: Potential, capabilities: Capabilities | None = None) -> None:
        self._potential = potential
        self.capabilities = capabilities or potential.capabilities
        self.asked: list[frozenset[ForceKind]] = []
        self.dtypes: list[torch.dtype] = []

    def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        self.asked.append(want)
        self.dtypes.append(batch.positions.dtype)
        return self._potential(batch, want)


def pretend(**changes: object) -> Capabilities:
    plain: dict[str, object] = {
        "name": "model", "elements": None, "cutoff": None, "dtype": torch.float64, "device": torch.device("cpu"),
        "conservative": True, "direct": False, "direct_virial": False,
    }  # fmt: skip
    return Capabilities(**(plain | changes))  # type: ignore[arg-type]


def evaluate(potential: Potential, want: frozenset[ForceKind] = BOTH) -> Evaluation:
    dtype, device = potential.capabilities.dtype, potential.capabilities.device
    return potential(Batch.from_structures(CRYSTALS, dtype=dtype, device=device), want)


def assert_same(got: Forces | None, wanted: Forces | None) -> None:
    assert got is not None
    assert wanted is not None
    assert got.virials is not None
    assert wanted.virials is not None
    torch.testing.assert_close(got.forces, wanted.forces)
    torch.testing.assert_close(got.virials, wanted.virials)


@pytest.mark.parametrize("second", [FIRST, f"{FIRST},direct=0.3"])
def test_pair_keeps_the_contract(second: str) -> None:
    assert_keeps_contract(load_potential(FIRST, direct_spec=second), CRYSTALS)


@pytest.mark.parametrize("second", [SECOND, SECOND_WITH_HEAD])
def test_pair_of_different_models_breaks_only_the_clause_on_the_energy_of_direct_forces(second: str) -> None:
    violations = check_potential(load_potential(FIRST, direct_spec=second), CRYSTALS)
    assert [violation.clause for violation in violations] == ["kinds together"]
    assert "energies differ" in violations[0].message


def test_conservative_forces_are_the_first_models_and_direct_ones_the_seconds() -> None:
    evaluation = evaluate(load_potential(FIRST, direct_spec=SECOND_WITH_HEAD))
    first, second = (
        evaluate(load_potential(FIRST), frozenset({CONSERVATIVE})),
        load_potential(SECOND_WITH_HEAD),
    )
    torch.testing.assert_close(evaluation.energies, first.energies)
    assert_same(evaluation.conservative, first.conservative)
    assert_same(evaluation.direct, evaluate(second).direct)


def test_second_model_without_a_direct_head_lends_its_conservative_forces() -> None:
    pair = load_potential(FIRST, direct_spec=SECOND)
    assert_same(
        evaluate(pair).direct, evaluate(load_potential(SECOND), frozenset({CONSERVATIVE})).conservative
    )
    assert "conservative forces, used as direct" in pair.capabilities.name
    assert pair.capabilities.direct
    assert pair.capabilities.direct_virial


@pytest.mark.parametrize(
    ("want", "first_asked", "second_asked", "energy_of"),
    [
        (BOTH, [frozenset({CONSERVATIVE})], [frozenset({DIRECT})], FIRST),
        (frozenset({CONSERVATIVE}), [frozenset({CONSERVATIVE})], [], FIRST),
        (frozenset({DIRECT}), [], [frozenset({DIRECT})], SECOND),
        (frozenset(), [frozenset()], [], FIRST),
    ],
)
def test_only_the_model_that_is_needed_is_evaluated(
    want: frozenset[ForceKind],
    first_asked: list[frozenset[ForceKind]],
    second_asked: list[frozenset[ForceKind]],
    energy_of: str,
) -> None:
    first, second = Spy(load_potential(FIRST)), Spy(load_potential(SECOND_WITH_HEAD))
    evaluation = evaluate(PairedPotential(first, second), want)
    assert (first.asked, second.asked) == (first_asked, second_asked)
    expected = evaluate(load_potential(energy_of), frozenset({CONSERVATIVE})).energies
    torch.testing.assert_close(evaluation.energies, expected)


@pytest.mark.parametrize(("first_dtype", "second_dtype"), [("float64", "float32"), ("float32", "float64")])
def test_each_model_computes_in_its_own_dtype(first_dtype: str, second_dtype: str) -> None:
    first = Spy(load_potential(FIRST, dtype=first_dtype))  # type: ignore[arg-type]
    second = Spy(load_potential(SECOND_WITH_HEAD, dtype=second_dtype))  # type: ignore[arg-type]
    pair = PairedPotential(first, second)
    evaluation = evaluate(pair)
    assert pair.capabilities.dtype == torch.float64
    assert first.dtypes == [getattr(torch, first_dtype)]
    assert second.dtypes == [getattr(torch, second_dtype)]
    assert evaluation.direct is not None
    assert evaluation.conservative is not None
    assert evaluation.direct.forces.dtype == evaluation.conservative.forces.dtype == torch.float64
    exact = evaluate(load_potential(SECOND_WITH_HEAD)).direct
    assert exact is not None
    np.testing.assert_allclose(evaluation.direct.forces, exact.forces, atol=1e-5)


@pytest.mark.parametrize("periodic", [(True, True, True), (True, True, False)])
@pytest.mark.parametrize("first_dtype", ["float32", "float64"])
def test_atoms_that_have_wandered_off_are_brought_back_for_a_member_in_single_precision(
    first_dtype: str, periodic: tuple[bool, bool, bool]
) -> None:
    members = [load_potential(FIRST, dtype=dtype) for dtype in (first_dtype, "float32")]  # type: ignore[arg-type]
    pair = PairedPotential(
        *(Spy(each, replace(each.capabilities, any_image=True)) for each in members)  # type: ignore[misc]
    )
    here = replace(CRYSTALS[0], pbc=np.array(periodic))
    laps = np.random.default_rng(3).integers(-3000, 3000, here.positions.shape) * periodic
    away = replace(here, positions=here.positions + laps @ here.cell)
    evaluator = Evaluator({DEFAULT_MODEL: pair})
    for role in (ForceRole(0.0), ForceRole(1.0)):
        near, far = evaluator.evaluate([(here, role), (away, role)])
        np.testing.assert_allclose(far.forces, near.forces, atol=1e-5)


def test_any_image_will_do_for_a_pair_if_it_does_for_both() -> None:
    model = load_potential(FIRST)
    fixed, free = Spy(model, pretend()), Spy(model, pretend(any_image=True))
    assert PairedPotential(free, free).capabilities.any_image
    assert not PairedPotential(free, fixed).capabilities.any_image
    assert not PairedPotential(fixed, free).capabilities.any_image


def test_the_neighbour_lists_of_a_pair_are_those_of_its_members() -> None:
    def keeping(builds: int, reuses: int, seconds: float) -> Spy:
        spy = Spy(load_potential(FIRST))
        spy.neighbor_statistics = NeighborStatistics(builds, reuses, seconds)  # type: ignore[attr-defined]
        return spy

    without, one, other = Spy(load_potential(FIRST)), keeping(1, 20, 0.5), keeping(2, 30, 0.25)
    assert PairedPotential(one, other).neighbor_statistics == NeighborStatistics(3, 50, 0.75)
    assert PairedPotential(without, one).neighbor_statistics == one.neighbor_statistics  # type: ignore[attr-defined]
    assert PairedPotential(without, without).neighbor_statistics is None


def test_capabilities_are_composed() -> None:
    first = pretend(name="a", elements=frozenset({1, 6, 8}), cutoff=5.0, conservative_virial=False)
    second = pretend(
        name="b", elements=frozenset({1, 8, 9}), cutoff=6.0, dtype=torch.float32, direct=True, direct_virial=True,
        synthetic_direct=True,
    )  # fmt: skip
    model = load_potential(FIRST)
    capabilities = PairedPotential(Spy(model, first), Spy(model, second)).capabilities
    assert capabilities == pretend(
        name="a + b (direct forces)", elements=frozenset({1, 8}), cutoff=6.0, direct=True, direct_virial=True,
        synthetic_direct=True, conservative_virial=False, shares_forward_pass=False,
    )  # fmt: skip


def test_virial_of_borrowed_conservative_forces_is_there_when_they_have_one() -> None:
    model = load_potential(FIRST)
    without = Spy(model, pretend(conservative_virial=False))
    assert not PairedPotential(Spy(model), without).capabilities.direct_virial
    assert PairedPotential(without, Spy(model)).capabilities.direct_virial


def test_elements_that_any_model_knows_are_no_bound() -> None:
    water = load_potential("qtip4pf")
    argon = load_potential(FIRST)
    assert PairedPotential(water, argon).capabilities.elements == water.capabilities.elements == {1, 8}
    assert PairedPotential(argon, water).capabilities.elements == {1, 8}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (pretend(conservative=False, direct=True), pretend(), "cannot be the first model of a pair"),
        (pretend(), pretend(conservative=False), "cannot be the second model of a pair"),
        (pretend(elements=frozenset({1})), pretend(elements=frozenset({8})), "no element is known to both"),
    ],
)
def test_impossible_pairs_are_refused(first: Capabilities, second: Capabilities, message: str) -> None:
    model = load_potential(FIRST)
    with pytest.raises(UsageError, match=message):
        PairedPotential(Spy(model, first), Spy(model, second))
