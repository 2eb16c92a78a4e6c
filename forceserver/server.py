"""The server: gather what is asked on every connection, evaluate once, answer all. One thread, one select.

One process has one model on one device, so a second thread would have nothing to do here (`parallel` has threads of its own, for
the evaluation alone). i-PI sends nothing while it is owed an answer, except STATUS probes, which can wait.

A gathering is evaluated as soon as it is complete, so that a regular run never waits: every socket that has asked for anything
holds as many structures as the input says it will ask for, or has no idle connection left. Failing that, after a short silence:
i-PI sends what it has queued at that moment, which on a busy machine is not all, and sends no more before that is answered.
Where structures are evaluated at the same time (`parallel`), a complete gathering that would leave cores idle waits a moment for
other simulations: else one that asks alone has one core work for it, while the rest wait for their turn together.

What goes wrong stays where it belongs: one simulation that fails is closed, drained, and reported; the others go on.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from forceserver.atom_order import check_order
from forceserver.bookkeeping import ServeStatistics
from forceserver.connection import Connection
from forceserver.endpoint import Endpoint, ServedSimulation
from forceserver.errors import Disconnected, ForceServerError, ModelError, PeerError
from forceserver.evaluate import Evaluator
from forceserver.exchange import distinct_structures, make_reply
from forceserver.inputfile import SimulationInput
from forceserver.messages import Exit, ForceRequest, Initialized
from forceserver.preflight import check_role
from forceserver.roles import parse_role
from forceserver.signals import StopRequest
from forceserver.structures import ForceRole, Result, Structure

log = logging.getLogger(__name__)

CONSERVATIVE_ROLE = ForceRole()
# Of the time of the last evaluation: how long cores may idle while another simulation may ask.
IDLE_PATIENCE = 0.2
DELIVERY_SECONDS = 2.0  # for i-PI to take what it was promised, before we leave

Asked = Mapping[Connection, Sequence[Structure]]


@dataclass(frozen=True)
class ServeOptions:
    default_role: ForceRole = CONSERVATIVE_ROLE  # of a socket that says nothing
    n_connections: int | None = None  # per socket; None: as many as the input's requests fill
    wait_seconds: float = 600.0  # for i-PI to listen
    linger_seconds: float = 0.001  # of silence, after which an incomplete gathering is evaluated
    on_bad_forces: Literal["stop", "reconnect"] = "stop"


class Server:
    """Serves the sockets of one or several simulations until each has said EXIT.

    Args:
        simulations: whose sockets to dial.
        evaluator: holds the models.
        options: see `ServeOptions`.
        stop: asked between evaluations whether to end early.
    """

    def __init__(
        self,
        simulations: Sequence[SimulationInput],
        evaluator: Evaluator,
        options: ServeOptions,
        stop: StopRequest,
    ) -> None:
        self.statistics = ServeStatistics()
        self._evaluator = evaluator
        self._options = options
        self._stop = stop
        self._simulations = [
            ServedSimulation(
                simulation, n_connections=options.n_connections, wait_seconds=options.wait_seconds
            )
            for simulation in simulations
        ]
        self._asking: dict[Connection, ForceRequest] = {}
        self._last_heard = 0.0
        self._evaluation_seconds = 0.0  # of the last
        self._selector = selectors.DefaultSelector()
        self._endpoints = [endpoint for simulation in self._simulations for endpoint in simulation.endpoints]

    def run(self) -> None:
        """Serve until every simulation has ended, or a signal asks to stop.

        Raises:
            NobodyListening: a socket was not there in time.
            PeerError: i-PI left without EXIT, or does not speak its protocol.
            ModelError: an evaluation failed. Nothing false was sent.
            UsageError: i-PI asked for something impossible in INIT.
        """
        self._selector.register(self._stop.fileno(), selectors.EVENT_READ)
        try:
            while not self._stop.reason and self._dial():
                self._listen()
                if self._asking and self._gathering_is_complete():
                    self._answer()
            if not self._stop.reason:
                self._raise_first_failure()
        finally:
            for simulation in self._simulations:
                self._close(simulation)
            self._selector.close()
            self.statistics.clock.enter("ended")

    def _dial(self) -> bool:
        """Open connections that are still missing. False when there is nothing left to serve."""
        for endpoint in self._endpoints:
            if not endpoint.is_settled and endpoint.next_deadline_in() == 0.0:
                for connection in list(endpoint.connections):  # what they said while we were busy comes first
                    self._hear(connection)
                self._dial_endpoint(endpoint)
        return any(endpoint.is_alive for endpoint in self._endpoints)

    def _dial_endpoint(self, endpoint: Endpoint) -> None:
        try:
            for connection in endpoint.dial():
                self._watch(connection, selectors.EVENT_READ)
        except ForceServerError as error:
            self._fail(endpoint.simulation, error)

    def _listen(self) -> None:
        """Wait for bytes, at most until the linger or the next attempt to connect is due, and hand them on."""
        self.statistics.clock.enter("waiting")
        ready = self._selector.select(self._patience())
        self.statistics.clock.enter("unpacking")
        for key, events in ready:
            connection: Connection | None = key.data
            if connection is None or not connection.is_open:
                continue  # a signal, at which `run` looks, or closed by what came before it in this list
            if events & selectors.EVENT_WRITE:
                self._flush(connection)
            if events & selectors.EVENT_READ and connection.is_open:
                self._hear(connection)

    def _patience(self) -> float | None:
        """Seconds to wait for bytes; None: as long as it takes."""
        deadlines = [endpoint.next_deadline_in() for endpoint in self._endpoints if not endpoint.is_settled]
        if self._asking:
            deadlines.append(max(0.0, self._last_heard + self._linger() - time.monotonic()))
        return min(deadlines, default=None)

    def _hear(self, connection: Connection) -> None:
        if connection in self._asking:  # listen no more until it is answered
            self._watch(connection, connection.watched_for & ~selectors.EVENT_READ)
            return
        try:
            if connection.receive():
                self._last_heard = time.monotonic()
                self._handle_events(connection)
        except Disconnected as error:
            self._lose(connection, str(error))
        except ForceServerError as error:
            self._fail(connection.endpoint.simulation, error)

    def _handle_events(self, connection: Connection) -> None:
        for event in connection.events():
            log.debug("%s: %s", connection, event)
            if isinstance(event, Initialized):
                self._introduce(connection, event)
            elif isinstance(event, ForceRequest):
                self._asking[connection] = event
                connection.endpoint.n_asked += event.n_structures
            elif isinstance(event, Exit):
                connection.flush()  # an answer may stand before the EXIT
                self._take_leave(connection)
                return
        self._flush(connection)

    def _introduce(self, connection: Connection, event: Initialized) -> None:
        connection.endpoint.simulation.said_exit = False
        role = parse_role(event.parameters, self._options.default_role, frozenset(self._evaluator.models))
        if role != connection.role:
            check_role(role, connection.endpoint.spec, self._evaluator.models, self._evaluator.virial)
            connection.introduce(role)

    def _flush(self, connection: Connection) -> None:
        """Send what can be sent, and wait for i-PI to take the rest. Where an answer is owed, listening may have ended."""
        if not connection.flush():
            self._part(connection)
            return
        if connection.watched_for == selectors.EVENT_READ and not connection.has_unsent:
            return  # nearly always
        listened = connection.watched_for if connection in self._asking else selectors.EVENT_READ
        wanted = listened & selectors.EVENT_READ
        if connection.has_unsent:
            wanted |= selectors.EVENT_WRITE
        if wanted != connection.watched_for:
            self._watch(connection, wanted)

    def _gathering_is_complete(self) -> bool:
        linger = self._linger()
        if linger == 0.0:
            return True
        is_over = time.monotonic() - self._last_heard >= linger
        self.statistics.n_lingered += is_over and linger == self._options.linger_seconds
        return is_over

    def _linger(self) -> float:
        """Seconds of silence after which to evaluate what is asked: none when no more is to come."""
        asking = [endpoint for endpoint in self._endpoints if endpoint.n_asked]
        if not all(endpoint.is_filled for endpoint in asking):
            return self._options.linger_seconds
        if len(self._simulations) == 1:
            return 0.0
        if sum(endpoint.n_asked for endpoint in asking) % self._evaluator.n_at_once == 0:
            return 0.0
        simulations = {endpoint.simulation for endpoint in asking}
        others = (each for each in self._simulations if each not in simulations)
        may_ask = any(endpoint.connections for each in others for endpoint in each.endpoints)
        return IDLE_PATIENCE * self._evaluation_seconds if may_ask else 0.0

    def _answer(self) -> None:
        """Evaluate all that is asked, and send the answers. What fails takes its own connection out, and no other."""
        asked: Asked = {
            connection: distinct_structures(request, connection.endpoint.template)
            for connection, request in self._asking.items()
        }
        asked = self._without_misordered(asked)
        self.statistics.clock.enter("model")
        began = time.monotonic()
        while True:
            try:
                work = [(each, role_of(c)) for c in asked for each in asked[c]]
                askers = [c.endpoint.simulation for c in asked for _ in asked[c]]
                results = iter(self._evaluator.evaluate(work, askers))
                break
            except ModelError as error:
                asked = self._without_culprits(asked, error)
        self._evaluation_seconds = time.monotonic() - began
        self.statistics.clock.enter("packing")
        self.statistics.n_gatherings += bool(asked)
        for connection, structures in asked.items():
            own = [next(results) for _ in structures]
            if connection in self._asking:  # a failure while answering another may have closed its simulation
                self._send(connection, own)

    def _without_misordered(self, asked: Asked) -> Asked:
        """At the first request on an endpoint: fail the simulations that hold their atoms in another order."""
        if all(connection.endpoint.is_order_checked for connection in asked):
            return asked
        for connection in [each for each in asked if not each.endpoint.is_order_checked]:
            connection.endpoint.is_order_checked = True
            try:
                check_order(connection.endpoint.template, asked[connection][0])
            except ForceServerError as error:
                self._fail(connection.endpoint.simulation, error)
        return {
            connection: structures for connection, structures in asked.items() if connection in self._asking
        }

    def _send(self, connection: Connection, results: Sequence[Result]) -> None:
        request = self._settle(connection)
        assert request is not None
        try:
            connection.reply(make_reply(request, results))
            self._handle_events(connection)
        except ForceServerError as error:
            self._fail(connection.endpoint.simulation, error)
        if connection.is_open:
            connection.endpoint.n_redials = 0
            self.statistics.n_requests[connection.account] += len(results)

    def _settle(self, connection: Connection) -> ForceRequest | None:
        """What a connection asks for is answered now, or never."""
        request = self._asking.pop(connection, None)
        if request is not None:
            connection.endpoint.n_asked -= request.n_structures
        return request

    def _without_culprits(self, asked: Asked, error: ModelError) -> dict[Connection, Sequence[Structure]]:
        """Deal with a failed evaluation: close what asked for it, or its whole simulation; return who can still be served."""
        culprits = [
            c for c, structures in asked.items() if error.structure is None or error.structure in structures
        ]
        for connection in culprits:
            if self._options.on_bad_forces == "reconnect" and connection.is_open:
                log.error("%s", error)
                self._lose(connection, str(error))
            else:
                self._fail(connection.endpoint.simulation, error)
        return {
            connection: structures for connection, structures in asked.items() if connection in self._asking
        }

    def _watch(self, connection: Connection, events: int) -> None:
        """Let the selector wait for these events on a connection; 0: for none."""
        if connection.watched_for:
            self._selector.unregister(connection)
        if events:
            self._selector.register(connection, events, connection)
        connection.watched_for = events

    def _part(self, connection: Connection) -> None:
        """i-PI takes no more. Its last word tells whether it meant that: EXIT, which stands behind what we did not read."""
        with contextlib.suppress(PeerError):
            while connection.receive():
                if any(isinstance(event, Exit) for event in connection.events()):
                    self._take_leave(connection)
                    return
        self._lose(connection, "i-PI closed the connection")

    def _take_leave(self, connection: Connection) -> None:
        """i-PI said EXIT: it ends, or goes on without this connection."""
        connection.endpoint.simulation.said_exit = True
        self._drop(connection)
        connection.endpoint.redial("")

    def _lose(self, connection: Connection, reason: str) -> None:
        """A connection is gone without EXIT: i-PI may still listen, having dropped it, or be gone itself."""
        self._drop(connection)
        if not connection.endpoint.simulation.said_exit:
            log.warning("%s: %s", connection.endpoint, reason)
            connection.endpoint.redial(reason)

    def _fail(self, simulation: ServedSimulation, error: ForceServerError) -> None:
        """Close a simulation and go on with the others; `run` raises the error in the end."""
        if simulation.failure is None and not simulation.said_exit:
            simulation.failure = error
            if len(self._simulations) > 1:
                log.error("%s", error)
        self._close(simulation)

    def _close(self, simulation: ServedSimulation) -> None:
        deadline = time.monotonic() + DELIVERY_SECONDS
        for endpoint in simulation.endpoints:
            endpoint.give_up()
            for connection in list(endpoint.connections):
                if not simulation.said_exit:
                    self._deliver(connection, deadline)
                self._drop(connection)

    def _deliver(self, connection: Connection, deadline: float) -> None:
        with contextlib.suppress(PeerError):  # it is closed next, whatever i-PI says now
            connection.deliver(deadline)

    def _drop(self, connection: Connection) -> None:
        self._settle(connection)
        if connection.is_open:
            self._watch(connection, 0)
        connection.close()

    def _raise_first_failure(self) -> None:
        for simulation in self._simulations:
            failure = simulation.outcome()
            if failure is not None:
                raise failure


def role_of(connection: Connection) -> ForceRole:
    """What a connection that asks for forces wants: the protocol lets none ask that has not been introduced."""
    assert connection.role is not None
    return connection.role
