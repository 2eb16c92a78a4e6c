"""Simulations on a GPU: they stay together, and nobody waits long for who is slow or gone."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from forceserver import gathering
from forceserver.endpoint import ServedSimulation
from forceserver.evaluate import Evaluator
from forceserver.gathering import MOST_ROUNDS, PATIENCE, Rendezvous
from forceserver.inputfile import SimulationInput
from forceserver.potentials.interface import Batch, Evaluation
from forceserver.structures import ForceKind
from peer import Peer, make_server, scripted_ipi
from spring import CELL, Spring

SECONDS = 10.0  # of an evaluation


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(gathering, "time", clock)
    return clock


class Simulation(ServedSimulation):
    """One that is connected, until it is not."""

    def __init__(self) -> None:
        super().__init__(SimulationInput(None, ()), n_connections=None, wait_seconds=0.0)
        self.endpoints = [self]  # type: ignore[list-item]
        self.connections: list[object] = [object()]


def test_the_next_evaluation_waits_for_those_that_the_last_one_answered(clock: Clock) -> None:
    one, other, rendezvous = Simulation(), Simulation(), Rendezvous()
    assert rendezvous.over_in == 0.0  # nobody was answered yet
    rendezvous.answer({one, other}, SECONDS)
    assert rendezvous.over_in == pytest.approx(PATIENCE * SECONDS)
    rendezvous.meet(one)
    clock.now += 0.5 * PATIENCE * SECONDS
    assert rendezvous.over_in == pytest.approx(0.5 * PATIENCE * SECONDS)
    rendezvous.meet(other)
    assert rendezvous.over_in == 0.0


def test_nobody_waits_for_who_is_gone(clock: Clock) -> None:
    gone, rendezvous = Simulation(), Rendezvous()
    rendezvous.answer({gone}, SECONDS)
    gone.connections.clear()
    assert rendezvous.over_in == 0.0


def rounds_without_waiting(rendezvous: Rendezvous, simulation: Simulation) -> int:
    """It is answered, again and again, and always late."""
    for count in range(10 * MOST_ROUNDS):
        rendezvous.answer({simulation}, SECONDS)
        if rendezvous.over_in > 0.0:
            return count
        rendezvous.depart()
    raise AssertionError("never waited for again")


def test_who_is_always_late_is_waited_for_ever_more_seldom_and_who_comes_in_time_is_forgiven(
    clock: Clock,
) -> None:
    slow, rendezvous = Simulation(), Rendezvous()
    counts = []
    for _ in range(10):
        counts.append(rounds_without_waiting(rendezvous, slow))
        rendezvous.depart()
    assert counts == [0, 1, 2, 4, 8, 16, 32, MOST_ROUNDS, MOST_ROUNDS, MOST_ROUNDS]
    assert rounds_without_waiting(rendezvous, slow) == MOST_ROUNDS
    rendezvous.meet(slow)
    assert rounds_without_waiting(rendezvous, slow) == 0


class Signalling(Spring):
    def __init__(self) -> None:
        super().__init__()
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()

    def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        self.has_begun.set()
        assert self.may_go_on.wait(20.0)
        return super().__call__(batch, want)


@pytest.mark.parametrize("keeps_together", [True, False])
def test_two_simulations_that_started_apart_share_their_batches(
    monkeypatch: pytest.MonkeyPatch, keeps_together: bool
) -> None:
    """The second asks while the first is evaluated, and would do so for ever."""
    monkeypatch.setattr(gathering, "PATIENCE", 1e6)  # who comes back, comes in time
    monkeypatch.setattr(Evaluator, "gains_from_batches", keeps_together)
    potential, is_known = Signalling(), threading.Event()

    def ask(peer: Peer, n_steps: int) -> None:
        for _ in range(n_steps):
            peer.ask(np.ones((2, 3)), CELL)
            peer.hear_forces(2)
        peer.exit()

    def first(peers: list[Peer]) -> None:
        peers[0].handshake()
        assert is_known.wait(20.0)
        ask(peers[0], 4)

    def second(peers: list[Peer]) -> None:
        peers[0].handshake()
        is_known.set()
        assert potential.has_begun.wait(20.0)
        peers[0].ask(np.ones((2, 3)), CELL)
        potential.may_go_on.set()
        peers[0].hear_forces(2)
        ask(peers[0], 4)

    with scripted_ipi(first) as one, scripted_ipi(second) as other:
        server = make_server(one, Evaluator({"default": potential}), [1, 1], others=[other])
        server.run()
    sizes = [size for size, _ in potential.calls]
    assert sum(sizes) == 9
    assert sizes[0] == 1
    if keeps_together:
        assert sizes == [1, 2, 2, 2, 1, 1]  # until the first has ended
    else:
        assert server.statistics.n_gatherings > 6
