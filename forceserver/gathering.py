"""What is asked for together and evaluated together, and whether more is to come before that.

A gathering is evaluated as soon as it is complete, so that a regular run never waits: every socket that has asked for anything
holds as many structures as the input says it will ask for, or has no idle connection left. Failing that, after a short silence:
i-PI sends what it has queued at that moment, which on a busy machine is not all, and sends no more before that is answered.

Several simulations in one gathering would fall into two groups, each of them evaluated while the other moves its atoms, and
where a batch costs little more than one structure, as on a GPU, that takes twice the time: `Rendezvous` keeps them together.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

from forceserver.connection import Connection
from forceserver.endpoint import ServedSimulation
from forceserver.messages import ForceRequest
from forceserver.structures import Structure

Asked = Mapping[Connection, Sequence[Structure]]

PATIENCE = 0.2  # of the time of an evaluation
MOST_ROUNDS = 64  # in which a simulation is not waited for


class Rendezvous:
    """Whom to wait for: those that the last evaluation answered, for a part of the time that it took.

    Who comes too late is not waited for in the next round, then in two rounds, in four: a simulation that always takes long
    between two steps costs the others next to nothing, and one that writes its output now and then does not stay apart from them.
    """

    def __init__(self) -> None:
        self._awaited: set[ServedSimulation] = set()
        self._until = 0.0
        # Rounds in which it is not waited for: after it was late for the last time, and what is left of them.
        self._n_rounds: dict[ServedSimulation, int] = {}
        self._n_left: dict[ServedSimulation, int] = {}

    def answer(self, simulations: Collection[ServedSimulation], seconds: float) -> None:
        """They were answered just now, by an evaluation of so many seconds."""
        self._until = time.monotonic() + PATIENCE * seconds
        self._awaited = {each for each in simulations if not self._n_left.get(each)}
        for each in simulations:
            self._n_left[each] = max(0, self._n_left.get(each, 0) - 1)

    def meet(self, simulation: ServedSimulation) -> None:
        """It asks for forces."""
        if simulation in self._awaited:
            self._awaited.remove(simulation)
            self._n_rounds[simulation] = 0

    def depart(self) -> None:
        """An evaluation begins without those that are not here."""
        for each in self._awaited:
            self._n_rounds[each] = min(max(1, 2 * self._n_rounds.get(each, 0)), MOST_ROUNDS)
            self._n_left[each] = self._n_rounds[each]
        self._awaited.clear()

    @property
    def over_in(self) -> float:
        """Seconds until all are here, have gone, or are late."""
        if not any(endpoint.connections for each in self._awaited for endpoint in each.endpoints):
            return 0.0
        return max(0.0, self._until - time.monotonic())


class Gathering:
    """The requests of some simulations that wait for an answer.

    Args:
        simulations: whose requests are evaluated together.
        linger_seconds: of silence, after which one that is not complete is due all the same.
        keep_together: wait a moment for who was answered last, see `Rendezvous`.
    """

    def __init__(
        self,
        simulations: Sequence[ServedSimulation],
        linger_seconds: float,
        *,
        keep_together: bool = False,
    ) -> None:
        self.is_under_way = False  # it is being evaluated; what is asked now waits for the next time
        self._endpoints = [endpoint for simulation in simulations for endpoint in simulation.endpoints]
        self._linger_seconds = linger_seconds
        self._rendezvous = Rendezvous() if keep_together and len(simulations) > 1 else None
        self._asking: dict[Connection, ForceRequest] = {}
        self._last_heard = 0.0

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._asking

    def hear(self) -> None:
        """One of the simulations has said something."""
        self._last_heard = time.monotonic()

    def add(self, connection: Connection, request: ForceRequest) -> None:
        self._asking[connection] = request
        if self._rendezvous:
            self._rendezvous.meet(connection.endpoint.simulation)
        connection.endpoint.n_asked += request.n_structures

    def begin(self) -> None:
        """What is asked for now is evaluated now."""
        if self._rendezvous:
            self._rendezvous.depart()

    def end(self, asked: Asked, seconds: float) -> None:
        """It was answered, after an evaluation of so many seconds."""
        if self._rendezvous:
            self._rendezvous.answer({connection.endpoint.simulation for connection in asked}, seconds)

    def settle(self, connection: Connection) -> ForceRequest | None:
        """What a connection asks for is answered now, or never."""
        request = self._asking.pop(connection, None)
        if request is not None:
            connection.endpoint.n_asked -= request.n_structures
        return request

    @property
    def requests(self) -> Mapping[Connection, ForceRequest]:
        """By the connection on which each was made."""
        return self._asking

    def still_asked(self, asked: Asked) -> dict[Connection, Sequence[Structure]]:
        """Without the connections that are gone."""
        return {
            connection: structures for connection, structures in asked.items() if connection in self._asking
        }

    @property
    def is_complete(self) -> bool:
        """Whether no more is to come before an answer."""
        return all(endpoint.is_filled for endpoint in self._endpoints if endpoint.n_asked)

    def due_in(self) -> float | None:
        """Seconds until it should be evaluated; None: not before something is asked, or what is under way is done."""
        if not self._asking or self.is_under_way:
            return None
        others = self._rendezvous.over_in if self._rendezvous else 0.0
        if self.is_complete:
            return others
        return max(others, self._last_heard + self._linger_seconds - time.monotonic())
