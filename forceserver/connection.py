"""Who is served: a connection (a stream and the session on it), the endpoint that opens as many as a socket needs, and the
simulation whose endpoints live and die together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from forceserver.errors import ForceServerError, NobodyListening, PeerError
from forceserver.exchange import Template
from forceserver.inputfile import SimulationInput, SocketSpec
from forceserver.messages import Event, ForceReply
from forceserver.protocol import Session
from forceserver.structures import ForceRole
from forceserver.transport import Dialer, Stream

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 128  # i-PI's own default for workers
SHORTEST_PAUSE = 0.005  # s, between attempts to connect
LONGEST_PAUSE = 0.5
FIRST_WORD_AFTER = 1.0  # s of waiting, then say what we wait for
REDIAL_SECONDS = 0.5  # an i-PI that dropped us still listens; one that died does not
MOST_REDIALS = 5  # in a row, without one answer between them
GREETING_SECONDS = 60.0  # after redialling; an i-PI whose polling thread has died accepts and never speaks


class Connection:
    """A stream, the session on it, and what i-PI said that it is for."""

    def __init__(self, endpoint: Endpoint, stream: Stream) -> None:
        self.endpoint = endpoint
        self.role: ForceRole | None = None  # INIT says which; no request comes before INIT
        self.is_open = True
        self._stream = stream
        self._session = Session(endpoint.expected_n_atoms)
        self._fileno = stream.fileno()

    def __str__(self) -> str:
        return f"{self.endpoint} [fd {self._fileno}]"

    def fileno(self) -> int:
        return self._fileno

    @property
    def has_unsent(self) -> bool:
        return self._stream.has_unsent

    def receive(self) -> bool:
        """Take what has arrived. False when nothing has.

        Raises:
            Disconnected: i-PI left without EXIT.
            ProtocolError: it said something illegal.
        """
        data = self._stream.receive()
        if data is None:
            return False
        self.endpoint.greeting_due = None
        if data:
            self._session.receive_data(data)
        else:
            self._session.receive_eof()
        return True

    def events(self) -> Iterator[Event]:
        return self._session.events()

    def reply(self, reply: ForceReply) -> None:
        self._session.reply(reply)
        self.endpoint.n_redials = 0

    def flush(self) -> bool:
        """Send what waits to be sent. False when the peer is gone."""
        return self._stream.send(self._session.data_to_send())

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._stream.close()
            self.endpoint.connections.remove(self)


class Endpoint:
    """One socket of one simulation: dials until it has its connections, and knows when a gathering is complete."""

    def __init__(
        self,
        simulation: ServedSimulation,
        spec: SocketSpec,
        *,
        n_connections: int | None,
        wait_seconds: float,
    ) -> None:
        self.simulation = simulation
        self.spec = spec
        self.connections: list[Connection] = []
        self.last_words = ""
        self.n_redials = 0  # in a row
        self.greeting_due: float | None = None
        self._n_missing = n_connections or default_connections(spec)
        self._templates = {template.n_atoms: template for template in spec.templates}
        self._dialer = Dialer(spec.address)
        self._dialing_since = time.monotonic()
        self._give_up_at = self._dialing_since + wait_seconds
        self._next_attempt = 0.0
        self._next_word = self._dialing_since + FIRST_WORD_AFTER
        self._pause = SHORTEST_PAUSE
        self._was_connected = False

    def __str__(self) -> str:
        return f"socket '{self.spec.name}' at {self.spec.address}"

    @property
    def expected_n_atoms(self) -> frozenset[int]:
        return frozenset(self._templates)

    def template(self, n_atoms: int) -> Template:
        return self._templates[n_atoms]

    @property
    def is_dialing(self) -> bool:
        return self._n_missing > 0

    @property
    def is_alive(self) -> bool:
        return bool(self.connections) or self.is_dialing

    def is_filled_by(self, n_structures: int) -> bool:
        """Whether i-PI can be expected to ask for no more before it has answers.

        A connection counts from its INIT on: before, it may well stand in i-PI's queue and be asked for nothing.
        """
        n_introduced = sum(connection.role is not None for connection in self.connections)
        capacity = n_introduced * self.spec.batch_size
        return n_structures >= min(self.spec.n_requests or capacity, capacity)

    def next_deadline_in(self) -> float | None:
        """Seconds until this endpoint wants to be looked at again; None: whenever i-PI speaks."""
        now = time.monotonic()
        deadlines = [self._next_attempt] if self.is_dialing else []
        deadlines += [self.greeting_due] if self.greeting_due is not None else []
        return max(0.0, min(deadlines) - now) if deadlines else None

    def dial(self) -> list[Connection]:
        """Open what is missing and can be opened now; never waits.

        Raises:
            NobodyListening: the time to wait is over, and no connection was ever made.
            PeerError: i-PI took the connection back and has said nothing since.
            UsageError: the address can never work.
        """
        opened: list[Connection] = []
        now = time.monotonic()
        if self.greeting_due is not None and now > self.greeting_due:
            raise PeerError(
                f"{self}: {self.last_words}, and i-PI has not spoken to the new connection; it hangs"
            )
        while self._n_missing and now >= self._next_attempt:
            stream = self._dialer.attempt()
            if stream is None:
                self._postpone(now)
                break
            opened.append(Connection(self, stream))
            self._n_missing -= 1
            self._pause = SHORTEST_PAUSE
            self.greeting_due = now + GREETING_SECONDS if self.n_redials else None
            self._was_connected = True
        self.connections += opened
        return opened

    def redial(self, reason: str) -> None:
        """A connection was lost: open another, if somebody still listens there."""
        self.last_words = reason
        self.n_redials += 1
        if self.n_redials <= MOST_REDIALS:
            self._n_missing += 1
            self._dialing_since = time.monotonic()
            self._give_up_at = self._dialing_since + REDIAL_SECONDS

    def give_up(self) -> None:
        """Dial no more."""
        self._n_missing = 0
        self._dialer.close()

    def _postpone(self, now: float) -> None:
        if now > self._give_up_at:
            self._stop_waiting(now)
        if now >= self._next_word and not self._was_connected:
            log.info("waiting for i-PI at %s (%s)", self.spec.address, self._dialer.reason)
            self._next_word = now + max(10.0, now - self._dialing_since)
        self._next_attempt = now + self._pause
        self._pause = min(2.0 * self._pause, LONGEST_PAUSE)

    def _stop_waiting(self, now: float) -> None:
        self.give_up()
        if not self._was_connected:
            raise NobodyListening(
                f"nobody listens at {self.spec.address} after {now - self._dialing_since:.0f} s ({self._dialer.reason}). "
                "Start i-PI with the input that has this address, or give it more time with --wait SECONDS"
            )


class ServedSimulation:
    """The sockets of one i-PI: one EXIT ends them all, one failure fails them all."""

    def __init__(
        self, simulation: SimulationInput, *, n_connections: int | None, wait_seconds: float
    ) -> None:
        self.endpoints = [
            Endpoint(self, spec, n_connections=n_connections, wait_seconds=wait_seconds)
            for spec in simulation.sockets
        ]
        self.said_exit = False
        self.failure: ForceServerError | None = None

    @property
    def is_alive(self) -> bool:
        return not self.said_exit and any(endpoint.is_alive for endpoint in self.endpoints)

    def outcome(self) -> ForceServerError | None:
        """Why it ended, where it did not end well."""
        if self.said_exit or self.failure is not None:
            return self.failure
        for endpoint in self.endpoints:
            if endpoint.last_words:
                return PeerError(
                    f"{endpoint}: {endpoint.last_words}. Look at i-PI's own output for the reason; "
                    "a RESTART file, if there is one, continues the run"
                )
        return None


def default_connections(spec: SocketSpec) -> int:
    """As many connections as bring all requests of a step at once, whole batches on each."""
    if spec.n_requests is None:
        return 1
    return min(-(-spec.n_requests // spec.batch_size), MOST_CONNECTIONS)
