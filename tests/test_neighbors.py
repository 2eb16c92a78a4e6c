"""Kept neighbour lists give the pairs of fresh ones, whatever the structures do between two calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from forceserver.errors import ModelError, UsageError
from forceserver.neighbors import BatchPairs, NeighborLists, PairRequest
from forceserver.potentials.interface import Batch
from forceserver.structures import Structure
from model_factory import all_pairs
from systems import random_rotation, structure, water_box

CUTOFF = 3.5
FULL = PairRequest(CUTOFF, full=True)
HALF = PairRequest(CUTOFF, full=False)
PairSet = set[tuple[int, ...]]


def batch_of(*structures: Structure, dtype: torch.dtype = torch.float64) -> Batch:
    return Batch.from_structures(structures, dtype=dtype, device=torch.device("cpu"))


def pair_sets(pairs: BatchPairs) -> list[PairSet]:
    """One set of (i, j, a, b, c) for each structure; no pair may come twice."""
    columns = torch.cat([pairs.first_atom[:, None], pairs.second_atom[:, None], pairs.shifts], dim=1)
    sets = []
    for of_structure in columns.to(torch.int64).split(pairs.n_pairs):
        rows = [tuple(row) for row in of_structure.tolist()]
        assert len(rows) == len(set(rows))
        sets.append(set(rows))
    return sets


def mirror(pair: tuple[int, ...]) -> tuple[int, ...]:
    i, j, a, b, c = pair
    return (j, i, -a, -b, -c)


def brute_force(frame: Structure, cutoff: float = CUTOFF) -> PairSet:
    return {(i, j, *map(int, shift)) for i, j, shift in all_pairs(frame, cutoff)}


def moved(frame: Structure, positions: np.ndarray, cell: np.ndarray | None = None) -> Structure:
    return Structure(frame.atomic_numbers, positions, frame.cell if cell is None else cell, frame.pbc)


def walk(frame: Structure, n_steps: int, *, step: float = 0.05, seed: int = 0) -> Iterator[Structure]:
    rng = np.random.default_rng(seed)
    positions = frame.positions
    for _ in range(n_steps):
        positions = positions + step * rng.standard_normal(positions.shape)
        yield moved(frame, positions)


def assert_equal_fresh_lists(lists: NeighborLists, structures: Sequence[Structure]) -> None:
    (pairs,) = lists.find(batch_of(*structures))
    assert pair_sets(pairs) == [brute_force(each) for each in structures]


def test_fresh_lists_equal_brute_force_for_any_cell_and_periodicity() -> None:
    box = water_box(3)
    shear = np.eye(3) + np.array([[0.0, 0.0, 0.0], [0.3, 0.0, 0.0], [-0.2, 0.4, 0.0]])
    sheared = moved(box, box.positions @ shear, box.cell @ shear)
    for frame in (box, sheared, water_box(1, edge=2.5), water_box(3, periodic=False)):
        assert_equal_fresh_lists(NeighborLists([FULL], skin=0.0), [frame])


@pytest.mark.parametrize("pbc", [(True, True, False), (False, True, False), (True, False, True)])
@pytest.mark.parametrize("skin", [0.0, 1.0])
def test_partly_periodic_structures_equal_brute_force(pbc: tuple[bool, bool, bool], skin: float) -> None:
    box = water_box(3)
    periodic = np.array(pbc)
    slab = Structure(box.atomic_numbers, box.positions, box.cell * periodic[:, None], periodic)
    lists = NeighborLists([FULL], skin=skin)
    for frame in walk(slab, 10):
        assert_equal_fresh_lists(lists, [frame])
    assert (lists.statistics.reuses > 0) == (skin > 0.0)


def test_kept_lists_equal_fresh_ones_along_a_random_walk() -> None:
    lists = NeighborLists([FULL], skin=1.0)
    for frame in walk(water_box(4), 60):
        assert_equal_fresh_lists(lists, [frame])
    assert lists.statistics.builds + lists.statistics.reuses == 60
    assert 1 < lists.statistics.builds < 30


def test_pairs_come_in_the_same_order_whichever_geometry_they_were_listed_for() -> None:
    start = water_box(27, seed=4)
    rng = np.random.default_rng(4)
    laps = rng.integers(-2, 3, size=start.positions.shape) @ start.cell
    now = moved(start, start.positions + 0.1 * rng.standard_normal(start.positions.shape) + laps)
    kept = NeighborLists([FULL, HALF])
    kept.find(batch_of(start))
    for reused, fresh in zip(
        kept.find(batch_of(now)), NeighborLists([FULL, HALF]).find(batch_of(now)), strict=True
    ):
        torch.testing.assert_close(reused.first_atom, fresh.first_atom, rtol=0, atol=0)
        torch.testing.assert_close(reused.second_atom, fresh.second_atom, rtol=0, atol=0)
        torch.testing.assert_close(reused.shifts, fresh.shifts, rtol=0, atol=0)
    assert kept.statistics.reuses == 1


def test_kept_lists_equal_fresh_ones_under_changes_of_the_cell() -> None:
    lists = NeighborLists([FULL], skin=1.0)
    rng = np.random.default_rng(2)
    frame = water_box(4)
    for _ in range(60):
        strain = np.eye(3) + 0.01 * rng.standard_normal((3, 3))
        positions = frame.positions @ strain + 0.02 * rng.standard_normal(frame.positions.shape)
        frame = moved(frame, positions, frame.cell @ strain)
        assert_equal_fresh_lists(lists, [frame])
    assert lists.statistics.reuses > 20
    assert lists.statistics.builds > 1


def test_a_compressed_cell_never_hides_a_pair_that_has_come_close() -> None:
    """Every atom keeps its fractional position, so only the cell tells that far pairs are now near."""
    box = water_box(4)
    lists = NeighborLists([FULL], skin=1.0)
    for scale in (1.0, 0.95, 0.9, 0.8, 0.7, 0.6):
        assert_equal_fresh_lists(lists, [moved(box, box.positions * scale, box.cell * scale)])
    assert lists.statistics.builds > 1


def test_an_isotropic_barostat_step_costs_no_build() -> None:
    box = water_box(8)
    lists = NeighborLists([FULL], skin=1.0)
    for scale in (1.0, 1.01, 0.99, 1.02, 0.98):
        assert_equal_fresh_lists(lists, [moved(box, box.positions * scale, box.cell * scale)])
    assert lists.statistics.builds == 1


def test_a_rotated_cell_is_no_change() -> None:
    box = water_box(4)
    lists = NeighborLists([FULL], skin=1.0)
    for seed in range(5):
        rotation = random_rotation(np.random.default_rng(seed))
        assert_equal_fresh_lists(lists, [moved(box, box.positions @ rotation, box.cell @ rotation)])
    assert lists.statistics.builds == 1


def test_wrapped_atoms_cost_no_build_and_get_their_shifts_right() -> None:
    box = water_box(4)
    lists = NeighborLists([FULL, HALF], skin=1.0)
    rng = np.random.default_rng(3)
    for frame in walk(box, 20, step=0.01):
        laps = rng.integers(-3, 4, size=(box.n_atoms, 3))
        wrapped = moved(frame, frame.positions + laps @ frame.cell)
        full, half = (pair_sets(pairs)[0] for pairs in lists.find(batch_of(wrapped)))
        assert full == brute_force(wrapped)
        assert len(half) * 2 == len(full)
        assert half | {mirror(pair) for pair in half} == full
    assert lists.statistics.builds == 1


def test_replicas_are_recognised_in_any_order() -> None:
    lists = NeighborLists([FULL], skin=1.0)
    rng = np.random.default_rng(4)
    beads = [list(walk(water_box(3, seed=0), 8, step=0.15, seed=bead))[-1] for bead in range(6)]
    lists.find(batch_of(*beads))
    assert lists.statistics.builds == 6
    for _ in range(10):
        beads = [next(walk(bead, 1, step=0.01, seed=int(rng.integers(1 << 30)))) for bead in beads]
        order = rng.permutation(6)
        assert_equal_fresh_lists(lists, [beads[place] for place in order])
        assert_equal_fresh_lists(lists, [beads[order[0]]])
    assert lists.statistics.builds == 6


@pytest.mark.parametrize("n_replicas", [1, 4])
def test_lists_that_replicas_have_left_behind_are_dropped(n_replicas: int) -> None:
    """A long run builds thousands of lists, and needs one for each replica."""
    lists = NeighborLists([FULL], skin=1.0)
    walks = [walk(water_box(4, seed=seed), 500, seed=seed) for seed in range(n_replicas)]
    most = 0
    for frames in zip(*walks, strict=True):
        lists.find(batch_of(*frames))
        most = max(most, lists.n_kept)
    assert lists.statistics.builds > 20 * n_replicas
    assert most <= 4 * n_replicas


def test_replicas_that_come_one_by_one_keep_their_lists() -> None:
    lists = NeighborLists([FULL], skin=1.0)
    beads = [water_box(2, seed=bead) for bead in range(40)]
    for _ in range(3):
        for bead in beads:
            lists.find(batch_of(bead))
    assert lists.statistics.builds == 40


def test_a_replica_that_is_asked_for_seldom_keeps_its_list() -> None:
    """As the contracted ring polymer of a slow force is."""
    lists = NeighborLists([FULL], skin=1.0)
    seldom = water_box(4, seed=9)
    for number, frame in enumerate(walk(water_box(4), 400)):
        lists.find(batch_of(frame))
        if number % 10 == 0:
            before = lists.statistics.builds
            lists.find(batch_of(seldom))
            assert lists.statistics.builds == before + (number == 0)


def test_structures_of_different_sizes_share_a_batch() -> None:
    lists = NeighborLists([FULL], skin=1.0)
    frames = [water_box(3), water_box(1, edge=3.0), water_box(3, seed=1), water_box(2, periodic=False)]
    for seed in range(5):
        frames = [next(walk(frame, 1, step=0.02, seed=seed)) for frame in frames]
        assert_equal_fresh_lists(lists, frames)
    assert lists.statistics.builds == 4


def test_least_recently_used_replica_is_dropped() -> None:
    lists = NeighborLists([FULL], skin=1.0, max_replicas=2)
    first, second, third = (water_box(2, seed=seed) for seed in range(3))
    for frame, n_builds in ((first, 1), (second, 2), (first, 2), (third, 3), (first, 3), (second, 4)):
        assert_equal_fresh_lists(lists, [frame])
        assert lists.statistics.builds == n_builds


def test_a_batch_larger_than_the_bound_is_served() -> None:
    lists = NeighborLists([FULL], skin=1.0, max_replicas=2)
    frames = [water_box(2, seed=seed) for seed in range(5)]
    for _ in range(2):
        assert_equal_fresh_lists(lists, frames)


def test_each_request_gets_its_own_cutoff() -> None:
    requests = [PairRequest(2.0), PairRequest(4.5), PairRequest(3.0, full=False)]
    lists = NeighborLists(requests, skin=1.0)
    for frame in walk(water_box(3), 10):
        found = [pair_sets(pairs)[0] for pairs in lists.find(batch_of(frame))]
        assert found[0] == brute_force(frame, 2.0)
        assert found[1] == brute_force(frame, 4.5)
        assert found[2] | {mirror(pair) for pair in found[2]} == brute_force(frame, 3.0)
        assert not found[2] & {mirror(pair) for pair in found[2]}


def test_half_lists_alone_hold_each_pair_once() -> None:
    lists = NeighborLists([HALF], skin=1.0)
    for frame in walk(
        water_box(1, edge=2.9), 10
    ):  # a cell smaller than the cutoff: atoms see their own images
        half = pair_sets(lists.find(batch_of(frame))[0])[0]
        assert not half & {mirror(pair) for pair in half}
        assert half | {mirror(pair) for pair in half} == brute_force(frame)


def test_vectors_point_from_the_first_atom_to_the_second_and_know_their_derivatives() -> None:
    frame = water_box(1, edge=3.0)
    (pairs,) = NeighborLists([FULL], skin=1.0).find(batch_of(frame))
    expected = [
        frame.positions[j] - frame.positions[i] + np.array(shift) @ frame.cell
        for i, j, *shift in zip(pairs.first_atom, pairs.second_atom, *pairs.shifts.unbind(dim=1), strict=True)
    ]
    leaves = [torch.tensor(array).requires_grad_() for array in (frame.positions, frame.cell[None])]
    np.testing.assert_allclose(pairs.vectors(*leaves).detach(), expected, atol=1e-14)
    assert torch.autograd.gradcheck(pairs.vectors, leaves)


def test_structures_without_pairs_have_none() -> None:
    lonely = structure([8], np.zeros((1, 3)), None)
    lists = NeighborLists([FULL], skin=1.0)
    for _ in range(2):
        (pairs,) = lists.find(batch_of(lonely, water_box(2), lonely))
        assert pair_sets(pairs) == [set(), brute_force(water_box(2)), set()]


def test_no_request_means_no_work() -> None:
    lists = NeighborLists([])
    assert lists.find(batch_of(water_box(2))) == ()
    assert lists.statistics.builds == 0


def test_float32_positions_give_the_pairs_of_those_positions() -> None:
    lists = NeighborLists([FULL], skin=1.0)
    for frame in walk(water_box(4), 20):
        rounded = moved(
            frame,
            frame.positions.astype(np.float32).astype(float),
            frame.cell.astype(np.float32).astype(float),
        )
        (pairs,) = lists.find(batch_of(frame, dtype=torch.float32))
        assert pair_sets(pairs)[0] == brute_force(rounded)
    assert lists.statistics.reuses > 0


def test_positions_that_are_not_finite_are_refused_before_and_after_a_build() -> None:
    box = water_box(2)
    broken = moved(box, np.where(np.arange(18).reshape(6, 3) == 4, np.inf, box.positions))
    lists = NeighborLists([FULL], skin=1.0)
    for _ in range(2):
        with pytest.raises(ModelError, match="not finite"):
            lists.find(batch_of(broken))
        assert_equal_fresh_lists(lists, [box])


def test_a_periodic_structure_without_volume_is_refused() -> None:
    box = water_box(2)
    flat = box.cell.copy()
    flat[2] = 0.0
    with pytest.raises(UsageError, match=r"periodic along a, b, c.*Remedy"):
        NeighborLists([FULL], skin=1.0).find(batch_of(moved(box, box.positions, flat)))


def test_a_negative_skin_is_refused() -> None:
    with pytest.raises(ValueError, match="skin >= 0"):
        NeighborLists([FULL], skin=-0.5)


def test_vectors_of_a_batch_are_those_of_its_structures() -> None:
    box = water_box(3)
    larger = moved(box, 1.1 * box.positions, 1.1 * box.cell)
    frames = [box, water_box(1, edge=3.0), larger, water_box(2, periodic=False)]
    for request in (FULL, HALF):
        (together,) = NeighborLists([request]).find(batch_of(*frames))
        batch = batch_of(*frames)
        found = together.vectors(batch.positions, batch.cells).split(together.n_pairs)
        for frame, vectors in zip(frames, found, strict=True):
            (alone,) = NeighborLists([request]).find(batch_of(frame))
            expected = alone.vectors(torch.tensor(frame.positions), torch.tensor(frame.cell[None]))
            np.testing.assert_allclose(vectors, expected, atol=1e-14)
        leaves = (batch.positions.requires_grad_(), batch.cells.requires_grad_())
        assert torch.autograd.gradcheck(together.vectors, leaves)
