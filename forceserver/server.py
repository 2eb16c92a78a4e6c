"""The server: gather what is asked on every connection, evaluate once, answer all. One select in one thread.

i-PI sends nothing while it is owed an answer, except STATUS probes, which can wait. So while the model works there is nothing to
do here, and it works in this thread: on a GPU the requests of all simulations are one gathering, and so one batch. Where
structures are evaluated at the same time (`parallel`: on a CPU), batches gain nothing, and waiting for each other costs: cores
idle while the last structure of a gathering is evaluated, and again while every i-PI moves its atoms. There the requests of each
simulation are a gathering of their own, evaluated in a thread of its own (`background`) as soon as it is complete and a core is
free; unless structures are so small that two of them had better share a call. All else, sockets above all, stays in this thread.

What goes wrong stays where it belongs: one simulation that fails is closed, drained, and reported; the others go on.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from forceserver.atom_order import check_order
from forceserver.background import Background
from forceserver.bookkeeping import ServeStatistics
from forceserver.connection import Connection
from forceserver.endpoint import Endpoint, ServedSimulation
from forceserver.errors import Disconnected, ForceServerError, ModelError, PeerError
from forceserver.evaluate import Evaluator
from forceserver.exchange import distinct_structures, make_reply
from forceserver.gathering import Asked, Gathering
from forceserver.inputfile import SimulationInput
from forceserver.messages import Exit, ForceRequest, Initialized
from forceserver.preflight import check_role, lacks_virial
from forceserver.roles import parse_role
from forceserver.signals import StopRequest
from forceserver.structures import ForceRole, Result, Structure

log = logging.getLogger(__name__)

CONSERVATIVE_ROLE = ForceRole()
DELIVERY_SECONDS = 2.0  # for i-PI to take what it was promised, before we leave

Evaluations = Background[tuple[Gathering, Asked], list[Result]]


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
        self._gathering_of, self._background = self._arrange()
        self._gatherings = tuple(dict.fromkeys(self._gathering_of.values()))
        self._selector = selectors.DefaultSelector()
        self._endpoints = [endpoint for simulation in self._simulations for endpoint in simulation.endpoints]

    def _arrange(
        self,
    ) -> tuple[dict[ServedSimulation, Gathering], Evaluations | None]:
        """Who is evaluated with whom, and the threads for it if each is evaluated by itself."""
        linger = self._options.linger_seconds
        n_atoms = [
            min(endpoint.template.n_atoms for endpoint in each.endpoints) for each in self._simulations
        ]
        if len(n_atoms) > 1 and self._evaluator.share_out(n_atoms):
            gatherings = {each: Gathering([each], linger) for each in self._simulations}
            return gatherings, Background(len(n_atoms))
        together = Gathering(self._simulations, linger, keep_together=self._evaluator.gains_from_batches)
        return dict.fromkeys(self._simulations, together), None

    def _gathering_with(self, connection: Connection) -> Gathering:
        return self._gathering_of[connection.endpoint.simulation]

    def run(self) -> None:
        """Serve until every simulation has ended, or a signal asks to stop.

        Raises:
            NobodyListening: a socket was not there in time.
            PeerError: i-PI left without EXIT, or does not speak its protocol.
            ModelError: an evaluation failed. Nothing false was sent.
            UsageError: i-PI asked for something impossible in INIT.
        """
        self._selector.register(self._stop.fileno(), selectors.EVENT_READ)
        if self._background:
            self._selector.register(self._background, selectors.EVENT_READ, self._background)
        try:
            while not self._stop.reason and self._dial():
                self._listen()
                for gathering in self._gatherings:
                    if gathering.due_in() == 0.0:
                        self._gather(gathering)
            while self._background and self._background.n_under_way:
                self.statistics.clock.enter("model")
                self._take_results(self._background)
            if not self._stop.reason:
                self._raise_first_failure()
        finally:
            for simulation in self._simulations:
                self._close(simulation)
            if self._background:
                self._background.close()
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
        """Wait for bytes and results, at most until the linger or the next attempt to connect is due, and hand them on."""
        self.statistics.clock.enter(
            "model" if self._background and self._background.n_under_way else "waiting"
        )
        ready = self._selector.select(self._patience())
        self.statistics.clock.enter("unpacking")
        for key, events in ready:
            source: Connection | Evaluations | None = key.data
            if isinstance(source, Background):
                self._take_results(source)
                self.statistics.clock.enter("unpacking")
                continue
            if source is None or not source.is_open:
                continue  # a signal, at which `run` looks, or closed by what came before it in this list
            if events & selectors.EVENT_WRITE:
                self._flush(source)
            if events & selectors.EVENT_READ and source.is_open:
                self._hear(source)

    def _patience(self) -> float | None:
        """Seconds to wait for bytes; None: as long as it takes."""
        deadlines = [endpoint.next_deadline_in() for endpoint in self._endpoints if not endpoint.is_settled]
        deadlines += [due for each in self._gatherings if (due := each.due_in()) is not None]
        return min(deadlines, default=None)

    def _hear(self, connection: Connection) -> None:
        gathering = self._gathering_with(connection)
        if connection in gathering:  # listen no more until it is answered
            self._watch(connection, connection.watched_for & ~selectors.EVENT_READ)
            return
        try:
            if connection.receive():
                gathering.hear()
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
                self._gathering_with(connection).add(connection, event)
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
            self._warn_of_zeros(connection.endpoint, role)
            connection.introduce(role)

    def _warn_of_zeros(self, endpoint: Endpoint, role: ForceRole) -> None:
        """Where i-PI's input is not known, a barostat on a virial of zeros could not be refused."""
        spec, capabilities = endpoint.spec, self._evaluator.models[role.model].capabilities
        is_told = spec.n_requests is not None or endpoint.n_introduced > 0
        if not is_told and lacks_virial(role, capabilities, self._evaluator.virial, spec.template):
            log.warning(
                "%s: %s forces of %s come without a virial; zeros are sent in its place. Whether i-PI reads it only its input "
                "tells (-i): with a barostat, or a pressure among its outputs, the run is wrong%s",
                endpoint, role, capabilities.name,
                "; --virial conservative helps" if capabilities.conservative_virial else "",
            )  # fmt: skip

    def _flush(self, connection: Connection) -> None:
        """Send what can be sent, and wait for i-PI to take the rest. Where an answer is owed, listening may have ended."""
        if not connection.flush():
            self._part(connection)
            return
        if connection.watched_for == selectors.EVENT_READ and not connection.has_unsent:
            return  # nearly always
        is_asking = connection in self._gathering_with(connection)
        listened = connection.watched_for if is_asking else selectors.EVENT_READ
        wanted = listened & selectors.EVENT_READ
        if connection.has_unsent:
            wanted |= selectors.EVENT_WRITE
        if wanted != connection.watched_for:
            self._watch(connection, wanted)

    def _gather(self, gathering: Gathering) -> None:
        """Have all evaluated that is asked for, complete or not."""
        gathering.begin()
        self.statistics.n_lingered += not gathering.is_complete
        asked: Asked = {
            connection: distinct_structures(request, connection.endpoint.template)
            for connection, request in gathering.requests.items()
        }
        asked = self._without_misordered(gathering, asked)
        self.statistics.n_gatherings += bool(asked)
        self._evaluate(gathering, asked)

    def _without_misordered(self, gathering: Gathering, asked: Asked) -> Asked:
        """At the first request on an endpoint: fail the simulations that hold their atoms in another order."""
        if all(connection.endpoint.is_order_checked for connection in asked):
            return asked
        for connection in [each for each in asked if not each.endpoint.is_order_checked]:
            connection.endpoint.is_order_checked = True
            try:
                check_order(connection.endpoint.template, asked[connection][0])
            except ForceServerError as error:
                self._fail(connection.endpoint.simulation, error)
        return gathering.still_asked(asked)

    def _evaluate(self, gathering: Gathering, asked: Asked) -> None:
        if not asked:
            return
        work = [(each, role_of(connection)) for connection in asked for each in asked[connection]]
        askers = [connection.endpoint.simulation for connection in asked for _ in asked[connection]]
        task = partial(self._evaluator.evaluate, work, askers)
        if self._background:
            gathering.is_under_way = True
            self._background.start((gathering, asked), task)
        else:
            self.statistics.clock.enter("model")
            self._answer(gathering, asked, task)

    def _take_results(self, background: Evaluations) -> None:
        (gathering, asked), evaluated = background.take()
        gathering.is_under_way = False
        self._answer(gathering, asked, evaluated.result)

    def _answer(self, gathering: Gathering, asked: Asked, get_results: Callable[[], list[Result]]) -> None:
        """Send what was asked for. What fails takes its own connection out, and no other: the rest is evaluated again."""
        began = time.monotonic()
        try:
            results = iter(get_results())
        except ModelError as error:
            asked = self._without_culprits(gathering, asked, error)
        else:
            gathering.end(asked, time.monotonic() - began)
            self.statistics.clock.enter("packing")
            for connection, structures in asked.items():
                own = [next(results) for _ in structures]
                self._send(gathering, connection, own)
            return
        self._evaluate(gathering, asked)

    def _without_culprits(
        self, gathering: Gathering, asked: Asked, error: ModelError
    ) -> dict[Connection, Sequence[Structure]]:
        """Deal with a failed evaluation: close what asked for it, or its whole simulation; return who can still be served."""
        culprits = [
            connection
            for connection, structures in gathering.still_asked(asked).items()
            if error.structure is None or error.structure in structures
        ]
        for connection in culprits:
            if self._options.on_bad_forces == "reconnect" and connection.is_open:
                connection.endpoint.simulation.refused = error
                self._lose(connection, str(error))
            else:
                self._fail(connection.endpoint.simulation, error)
        return gathering.still_asked(asked)

    def _send(self, gathering: Gathering, connection: Connection, results: Sequence[Result]) -> None:
        request = gathering.settle(connection)
        if request is None:  # a failure while answering another has closed its simulation
            return
        try:
            connection.reply(make_reply(request, results))
            self._handle_events(connection)
        except ForceServerError as error:
            self._fail(connection.endpoint.simulation, error)
        if connection.is_open:
            connection.endpoint.n_redials = 0
            connection.endpoint.simulation.refused = None
            self.statistics.n_requests[connection.account] += len(results)

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
        self._gathering_with(connection).settle(connection)
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
