"""Fusion: both kinds of forces from one forward pass, where the rhythm of a simulation says that both will be asked for."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forceserver.errors import BadForces, ModelError, OutOfMemory
from forceserver.evaluate import Evaluator
from forceserver.foresight import LONGEST_CYCLE
from forceserver.potentials.interface import Batch, Capabilities, Evaluation, Forces
from forceserver.potentials.pair import PairedPotential
from forceserver.structures import CONSERVATIVE, DIRECT, ForceKind, ForceRole, Result, Structure

BOTH = frozenset({CONSERVATIVE, DIRECT})
SLOW, FAST, BLENDED = ForceRole(0.0), ForceRole(1.0), ForceRole(0.5)

Request = tuple[Hashable, ForceRole]  # what names a geometry, and the forces wanted there
Gathering = Sequence[Request]


class Spring:
    """E = r^2 eV/A^2 for each atom; the direct forces are turned a little. What it was asked for is noted."""

    def __init__(self, *, shares_forward_pass: bool = True, stiffness: float = 1.0) -> None:
        self.calls: list[tuple[int, frozenset[ForceKind]]] = []
        self.fits_both = True
        self.bad: frozenset[ForceKind] = frozenset()  # kinds of forces that come out as NaN
        self.raises = False
        self._stiffness = stiffness
        self.capabilities = Capabilities(
            "spring", None, None, torch.float64, torch.device("cpu"), True, True, True,
            shares_forward_pass=shares_forward_pass,
        )  # fmt: skip

    def n_evaluated(self, kind: ForceKind) -> int:
        return sum(n_structures for n_structures, want in self.calls if kind in want)

    def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        self.calls.append((batch.n_structures, want))
        if self.raises:
            raise RuntimeError("no such thing")
        if want == BOTH and not self.fits_both:
            raise torch.OutOfMemoryError("CUDA out of memory")
        forces = -2.0 * self._stiffness * batch.positions
        energies = torch.zeros(batch.n_structures, dtype=torch.float64)
        energies.index_add_(0, batch.atom_to_structure, self._stiffness * (batch.positions**2).sum(1))
        virials = energies[:, None, None] * torch.eye(3, dtype=torch.float64)
        turned = forces + 0.1 * forces.roll(1, dims=1)
        spoilt = {kind: torch.nan if kind in self.bad else 1.0 for kind in BOTH}
        return Evaluation(
            energies,
            Forces(forces * spoilt[CONSERVATIVE], virials) if CONSERVATIVE in want else None,
            Forces(turned * spoilt[DIRECT], 2.0 * virials) if DIRECT in want else None,
        )


def geometry(name: Hashable) -> Structure:
    """Equal names make equal geometries, in arrays of their own."""
    positions = np.random.default_rng(crc32(repr(name).encode())).normal(size=(2, 3))
    return Structure(np.ones(2, dtype=np.int64), positions, np.eye(3) * 10.0, np.ones(3, dtype=bool))


def mts(
    n_steps: int, n_inner: int, n_beads: int = 1, *, run: Hashable = "", role: ForceRole = SLOW
) -> Iterator[Gathering]:
    """Multiple time stepping as i-PI does it: both forces at the start, then the slow one after the last fast one."""
    beads = range(n_beads)
    yield [((run, 0, 0, bead), each) for each in (role, FAST) for bead in beads]
    for step in range(n_steps):
        for inner in range(n_inner):
            yield [((run, step, inner + 1, bead), FAST) for bead in beads]
        yield [((run, step, n_inner, bead), role) for bead in beads]


def contracted_mts(
    n_steps: int, n_inner: int, n_beads: int, n_contracted: int, *, run: Hashable = "", undo: bool = True
) -> Iterator[Gathering]:
    """The slow force on a contracted ring polymer; where `undo`, the fast one as well, to be taken away there."""
    roles = (SLOW, FAST) if undo else (SLOW,)
    for step in range(n_steps):
        yield [((run, step, "contracted", bead), role) for role in roles for bead in range(n_contracted)]
        for inner in range(n_inner):
            yield [((run, step, inner, bead), FAST) for bead in range(n_beads)]


def play(evaluator: Evaluator, gatherings: Iterator[Gathering], asker: Hashable = "i-PI") -> list[Result]:
    results: list[Result] = []
    for gathering in gatherings:
        work = [(geometry(name), role) for name, role in gathering]
        results += evaluator.evaluate(work, [asker] * len(work))
    return results


def assert_equal(got: Sequence[Result], wanted: Sequence[Result]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert one.energy == other.energy
        np.testing.assert_array_equal(one.forces, other.forces)
        np.testing.assert_array_equal(one.virial, other.virial)


# The rhythm


@pytest.mark.parametrize("n_inner", [2, 4, 8])
@pytest.mark.parametrize("n_beads", [1, 4])
def test_an_outer_step_takes_as_many_forward_passes_as_it_has_inner_steps(n_inner: int, n_beads: int) -> None:
    """Two outer steps are looked at, every other takes M passes, not M + 1; the start takes one, not two."""
    potential = Spring()
    play(Evaluator({"default": potential}), mts(10, n_inner, n_beads))
    assert [size for size, _ in potential.calls] == [n_beads] * len(potential.calls)
    kinds = [want for _, want in potential.calls]
    looked_at = [frozenset({DIRECT})] * n_inner + [frozenset({CONSERVATIVE})]
    foreseen = [frozenset({DIRECT})] * (n_inner - 1) + [BOTH]
    assert kinds == [BOTH] + 2 * looked_at + 8 * foreseen


def shuffled(gatherings: Iterator[Gathering], random: Random) -> Iterator[Gathering]:
    """The beads of a gathering in any order, and not all of them at once."""
    for gathering in gatherings:
        rest = random.sample(gathering, len(gathering))
        while rest:
            n_now = random.randint(1, len(rest))
            yield rest[:n_now]
            rest = rest[n_now:]


@pytest.mark.parametrize("seed", range(5))
def test_beads_may_ask_in_any_order_and_not_all_at_once(seed: int) -> None:
    potential, n_steps, n_learning = Spring(), 20, 4
    evaluator = Evaluator({"default": potential})
    play(evaluator, shuffled(mts(n_steps, 4, 8), Random(seed)))
    n_in_vain = evaluator.statistics.foresight.n_mispredicted
    assert n_in_vain <= 8  # beads that come one by one at the start may look like a rhythm, once
    assert evaluator.statistics.foresight.n_recalled >= (n_steps - n_learning) * 8
    assert potential.n_evaluated(CONSERVATIVE) == (n_steps + 1) * 8 + n_in_vain


@pytest.mark.parametrize("role", [SLOW, BLENDED])
def test_whatever_needs_the_conservative_forces_is_foreseen(role: ForceRole) -> None:
    potential = Spring()
    results = play(Evaluator({"default": potential}), mts(10, 4, 2, role=role))
    assert potential.n_evaluated(CONSERVATIVE) == 11 * 2
    assert len(potential.calls) == 1 + 2 * 5 + 8 * 4
    assert_equal(results, play(Evaluator({"default": Spring()}, fusion=False), mts(10, 4, 2, role=role)))


def test_a_contraction_with_both_forces_evaluates_its_beads_once() -> None:
    potential = Spring()
    play(Evaluator({"default": potential}), contracted_mts(10, 4, 8, 2))
    assert potential.calls == ([(2, BOTH)] + [(8, frozenset({DIRECT}))] * 4) * 10


@pytest.mark.parametrize("seed", range(5))
def test_it_does_so_when_the_two_sockets_ask_one_after_the_other(seed: int) -> None:
    potential, random = Spring(), Random(seed)
    evaluator = Evaluator({"default": potential})

    def apart() -> Iterator[Gathering]:
        for gathering in contracted_mts(10, 4, 8, 2):
            for role in random.sample([SLOW, FAST], 2):
                yield [each for each in gathering if each[1] == role]

    play(evaluator, (gathering for gathering in apart() if gathering))
    assert potential.n_evaluated(DIRECT) <= 10 * (4 * 8 + 2) + 2  # 2: before it has heard of both
    assert potential.n_evaluated(CONSERVATIVE) == 10 * 2
    assert evaluator.statistics.foresight.n_mispredicted == 0
    assert potential.calls.count((2, BOTH)) >= 6


def test_a_contraction_with_the_conservative_force_alone_is_never_foreseen() -> None:
    potential = Spring()
    evaluator = Evaluator({"default": potential})
    play(evaluator, contracted_mts(300, 4, 8, 2, undo=False))
    assert evaluator.statistics.n_fused_passes == 0
    assert evaluator.n_kept == 0
    assert 2 * LONGEST_CYCLE < 300 * (4 * 8 + 2)  # what is remembered of it was thrown away more than once


def test_another_number_of_inner_steps_is_learnt_at_no_cost_but_the_learning() -> None:
    potential = Spring()
    evaluator = Evaluator({"default": potential})
    play(evaluator, mts(10, 8, run="first"))
    n_before = len(potential.calls)
    play(evaluator, mts(10, 4, run="restarted with another M"))
    assert evaluator.statistics.foresight.n_mispredicted == 0
    assert potential.n_evaluated(CONSERVATIVE) == 2 * 11
    assert len(potential.calls) - n_before == 1 + 2 * 5 + 8 * 4


@pytest.mark.parametrize("n_gatherings", range(40, 49))
def test_a_run_that_breaks_off_anywhere_and_starts_again_is_followed(n_gatherings: int) -> None:
    def broken_off() -> Iterator[Gathering]:
        yield from (each for _, each in zip(range(n_gatherings), mts(20, 8, 2), strict=False))
        yield from mts(20, 8, 2, run="again")

    potential, plain = Spring(), Evaluator({"default": Spring()}, fusion=False)
    evaluator = Evaluator({"default": potential})
    assert_equal(play(evaluator, broken_off()), play(plain, broken_off()))
    assert (
        evaluator.statistics.foresight.n_mispredicted <= 2
    )  # two beads, if it broke off between the two kinds
    assert evaluator.statistics.foresight.n_recalled >= 2 * 17


def test_estimators_that_displace_atoms_now_and_then_hardly_mislead() -> None:
    """Every 5 outer steps i-PI asks for both forces at geometries of its own."""

    def with_estimators() -> Iterator[Gathering]:
        for index, gathering in enumerate(mts(50, 4, 2)):
            yield gathering
            if index % 25 == 0:
                yield [(("displaced", index, bead), role) for role in (SLOW, FAST) for bead in range(2)]

    evaluator = Evaluator({"default": Spring()})
    play(evaluator, with_estimators())
    assert evaluator.statistics.foresight.n_mispredicted <= 2  # at the start, where both come twice in a row
    assert evaluator.statistics.foresight.n_recalled >= 2 * 50 // 5 * 2


def test_a_conservative_request_that_does_not_come_costs_one_evaluation_of_each_bead() -> None:
    potential = Spring()
    evaluator = Evaluator({"default": potential})
    play(evaluator, mts(5, 4, 2))
    assert potential.n_evaluated(CONSERVATIVE) == 6 * 2
    play(evaluator, iter([[(("on", step, bead), FAST) for bead in range(2)] for step in range(100)]))
    assert potential.n_evaluated(CONSERVATIVE) == 7 * 2
    assert evaluator.statistics.foresight.n_mispredicted == 2
    assert evaluator.n_kept == 0


def test_simulations_with_different_rhythms_share_a_server() -> None:
    potential, plain = Spring(), Evaluator({"default": Spring()}, fusion=False)
    evaluator = Evaluator({"default": potential})
    for first, second in zip(mts(20, 8, 2, run="first"), mts(30, 5, 1, run="second"), strict=True):
        requests = [(geometry(name), role) for name, role in [*first, *second]]
        askers = ["first"] * len(first) + ["second"] * len(second)
        assert_equal(evaluator.evaluate(requests, askers), plain.evaluate(requests))
    assert evaluator.statistics.foresight.n_mispredicted == 0
    assert evaluator.statistics.foresight.n_recalled == 18 * 2 + 28
    assert potential.n_evaluated(CONSERVATIVE) == 21 * 2 + 31


def test_a_run_with_one_kind_of_forces_keeps_nothing_and_compares_nothing() -> None:
    def one_kind() -> Iterator[Gathering]:
        for step in range(100):
            yield [(step // 2, FAST)]  # each geometry twice, as in a line search

    potential = Spring()
    evaluator = Evaluator({"default": potential})
    play(evaluator, one_kind())
    assert len(potential.calls) == 100
    assert evaluator.n_kept == 0


def test_the_conservative_virial_brings_conservative_forces_that_are_kept() -> None:
    potential = Spring()
    evaluator = Evaluator({"default": potential}, virial="conservative")
    results = play(evaluator, mts(10, 4))
    assert len(potential.calls) == 1 + 2 * 5 + 8 * 4
    assert evaluator.statistics.foresight.n_recalled == 8
    plain = Evaluator({"default": Spring()}, virial="conservative", fusion=False)
    assert_equal(results, play(plain, mts(10, 4)))


def test_a_pair_of_models_has_nothing_to_gain_and_is_left_alone() -> None:
    first, second = Spring(), Spring(stiffness=0.5)
    evaluator = Evaluator({"default": PairedPotential(first, second)})
    results = play(evaluator, mts(10, 4, 2))
    assert first.calls == [(2, frozenset({CONSERVATIVE}))] * 11
    assert second.calls == [(2, frozenset({DIRECT}))] * 41
    plain = Evaluator({"default": PairedPotential(Spring(), Spring(stiffness=0.5))}, fusion=False)
    assert_equal(
        results, play(plain, mts(10, 4, 2))
    )  # their energies too: direct forces bring the second model's


def test_each_model_has_a_rhythm_of_its_own() -> None:
    """A third, cheap force on all levels is another model's and does not disturb."""

    def three_levels() -> Iterator[Gathering]:
        for gathering in mts(10, 4):
            yield gathering
            yield [((name, "cheap"), ForceRole(0.0, "cheap")) for name, _ in gathering[:1]]

    potential = Spring()
    evaluator = Evaluator({"default": potential, "cheap": Spring()})
    play(evaluator, three_levels())
    assert len(potential.calls) == 1 + 2 * 5 + 8 * 4


def test_what_is_kept_answers_no_more_than_it_holds() -> None:
    """Direct forces asked for twice, which is a rhythm too, and then for once the conservative ones."""

    def twice_direct() -> Iterator[Gathering]:
        yield [("start", SLOW)]
        for step in range(5):
            yield [((step, "once"), FAST)]
            yield from [[((step, "twice"), FAST)]] * 2
        yield [((4, "twice"), SLOW)]

    potential = Spring()
    evaluator = Evaluator({"default": potential})
    results = play(evaluator, twice_direct())
    assert evaluator.statistics.foresight.n_recalled > 0
    assert potential.n_evaluated(CONSERVATIVE) == 2
    assert_equal(results, play(Evaluator({"default": Spring()}, fusion=False), twice_direct()))


# Whatever is asked: the same answers, and bounded memory


@dataclass(frozen=True)
class Segment:
    """A stretch of what a simulation asks for."""

    kind: str
    n_steps: int
    n_inner: int
    n_beads: int
    noise: tuple[tuple[tuple[int, int], ...], ...]

    def gatherings(self, run: Hashable) -> Iterator[Gathering]:
        if self.kind == "noise":
            roles = (SLOW, FAST, BLENDED)
            return ([(name, roles[role]) for name, role in gathering] for gathering in self.noise)
        if self.kind == "mts":
            return mts(self.n_steps, self.n_inner, self.n_beads, run=run)
        undo = self.kind == "contracted with undo"
        return contracted_mts(self.n_steps, self.n_inner, self.n_beads, 2, run=run, undo=undo)


KINDS = ("mts", "contracted", "contracted with undo", "noise")
NOISE = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=4).map(tuple), max_size=15
)
SEGMENTS = st.lists(
    st.builds(Segment, st.sampled_from(KINDS), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), NOISE.map(tuple)),
    min_size=1, max_size=4,
)  # fmt: skip
MOST_REPEATED = 5  # of any segment in one cycle: names in the noise, beads elsewhere


@settings(max_examples=150, deadline=None)
@given(st.lists(SEGMENTS, min_size=1, max_size=2), st.booleans(), st.randoms(use_true_random=False))
def test_whatever_is_asked_the_answers_are_those_without_fusion(
    simulations: list[list[Segment]], in_pieces: bool, random: Random
) -> None:
    streams = []
    for segments in simulations:
        stream: Iterator[Gathering] = (
            gathering for run, segment in enumerate(segments) for gathering in segment.gatherings(run)
        )
        streams.append(shuffled(stream, random) if in_pieces else stream)
    potential, plain_potential = Spring(), Spring()
    evaluator, plain = (
        Evaluator({"default": potential}),
        Evaluator({"default": plain_potential}, fusion=False),
    )
    while streams:
        work, askers = [], []
        for asker in random.sample(range(len(streams)), random.randint(1, len(streams))):
            gathering = next(streams[asker], [])
            work += [(geometry(name), role) for name, role in gathering]
            askers += [id(streams[asker])] * len(gathering)
        if not work:
            break
        assert_equal(evaluator.evaluate(work, askers), plain.evaluate(work))
        assert evaluator.n_kept <= MOST_REPEATED * len(simulations)
    in_vain = evaluator.statistics.foresight.n_mispredicted + evaluator.n_kept
    for kind in (CONSERVATIVE, DIRECT):
        assert potential.n_evaluated(kind) <= plain_potential.n_evaluated(kind) + in_vain


# What goes wrong


def test_conservative_forces_that_are_not_finite_spoil_no_direct_answer(tmp_path: Path) -> None:
    potential = Spring()
    evaluator = Evaluator({"default": potential}, dump_directory=tmp_path)
    play(evaluator, mts(5, 4))
    potential.bad = frozenset({CONSERVATIVE})
    ahead = list(mts(1, 4, run="ahead"))[1:]
    play(evaluator, iter(ahead[:-1]))
    assert potential.calls[-1] == (1, BOTH)
    with pytest.raises(BadForces, match="not finite"):
        play(evaluator, iter(ahead[-1:]))
    potential.bad = frozenset()
    play(evaluator, mts(5, 4, run="after"))
    assert potential.calls[-1] == (1, BOTH)  # learnt again


def test_where_both_kinds_at_once_do_not_fit_in_memory_each_comes_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    potential, plain = Spring(), Evaluator({"default": Spring()}, fusion=False)
    evaluator = Evaluator({"default": potential})
    potential.fits_both = False
    assert_equal(play(evaluator, mts(10, 4)), play(plain, mts(10, 4)))
    assert "both kinds of forces at once do not fit" in caplog.text
    assert [want for _, want in potential.calls].count(BOTH) == 1
    with pytest.raises(OutOfMemory):  # not a matter of fusion: the user asked for a blend
        play(evaluator, iter([[("blend", BLENDED)]]))


def test_a_failure_in_between_is_survived(tmp_path: Path) -> None:
    potential, plain = Spring(), Evaluator({"default": Spring()}, fusion=False)
    evaluator = Evaluator({"default": potential}, dump_directory=tmp_path)
    for index, gathering in enumerate(mts(30, 4, 2)):
        work = [(geometry(name), role) for name, role in gathering]
        if index % 35 == 21:
            potential.raises = True
            with pytest.raises(ModelError):
                evaluator.evaluate(work, ["i-PI"] * len(work))
            potential.raises = False
        assert_equal(evaluator.evaluate(work, ["i-PI"] * len(work)), plain.evaluate(work))
    assert evaluator.statistics.foresight.n_recalled > 2 * 10


def test_equal_positions_of_other_atoms_or_in_another_cell_are_another_geometry() -> None:
    potential = Spring()
    evaluator = Evaluator({"default": potential})
    play(evaluator, mts(5, 1))
    one = geometry("one")
    evaluator.evaluate([(one, FAST)], ["i-PI"])
    assert potential.calls[-1] == (1, BOTH)
    n_recalled = evaluator.statistics.foresight.n_recalled
    for other in (replace(one, atomic_numbers=one.atomic_numbers + 1), replace(one, cell=2 * one.cell)):
        evaluator.evaluate([(other, SLOW)], ["i-PI"])
        assert evaluator.statistics.foresight.n_recalled == n_recalled
