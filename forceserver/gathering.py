"""What is asked for together and evaluated together, and whether more is to come before that.

A gathering is evaluated as soon as it is complete, so that a regular run never waits: every socket that has asked for anything
holds as many structures as the input says it will ask for, or has no idle connection left. Failing that, after a short silence:
i-PI sends what it has queued at that moment, which on a busy machine is not all, and sends no more before that is answered.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from forceserver.connection import Connection
from forceserver.endpoint import ServedSimulation
from forceserver.messages import ForceRequest
from forceserver.structures import Structure

Asked = Mapping[Connection, Sequence[Structure]]


class Gathering:
    """The requests of some simulations that wait for an answer.

    Args:
        simulations: whose requests are evaluated together.
        linger_seconds: of silence, after which one that is not complete is due all the same.
    """

    def __init__(self, simulations: Sequence[ServedSimulation], linger_seconds: float) -> None:
        self.is_under_way = False  # it is being evaluated; what is asked now waits for the next time
        self._endpoints = [endpoint for simulation in simulations for endpoint in simulation.endpoints]
        self._linger_seconds = linger_seconds
        self._asking: dict[Connection, ForceRequest] = {}
        self._last_heard = 0.0

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._asking

    def hear(self) -> None:
        """One of the simulations has said something."""
        self._last_heard = time.monotonic()

    def add(self, connection: Connection, request: ForceRequest) -> None:
        self._asking[connection] = request
        connection.endpoint.n_asked += request.n_structures

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
        if self.is_complete:
            return 0.0
        return max(0.0, self._last_heard + self._linger_seconds - time.monotonic())
