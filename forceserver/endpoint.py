"""One socket of one simulation and the connections that it needs, and the simulation whose sockets live and die together."""

from __future__ import annotations

import logging
import time

from forceserver.connection import Connection
from forceserver.errors import ForceServerError, NobodyListening, PeerError
from forceserver.exchange import Template
from forceserver.inputfile import SimulationInput, SocketSpec
from forceserver.transport import Dialer

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 128  # i-PI's own default for workers
SHORTEST_PAUSE = 0.005  # s, between attempts to connect
LONGEST_PAUSE = 0.5
FIRST_WORD_AFTER = 1.0  # s of waiting, then say what we wait for
REDIAL_SECONDS = 0.5  # an i-PI that dropped us still listens; one that ended does not
MOST_REDIALS = 5  # for each connection, without one answer delivered between them
GREETING_SECONDS = 60.0  # in which i-PI speaks to a new connection, if its polling thread lives


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
        self.n_redials = 0  # without an answer delivered between them
        self.greeting_due: float | None = None
        self.is_order_checked = False
        # Of the connections: before its INIT one may well stand in i-PI's queue, and be asked for nothing.
        self.n_introduced = 0
        self.n_asked = 0  # structures that wait for an answer
        self._n_wanted = self._n_missing = n_connections or default_connections(spec)
        self._dialer = Dialer(spec.address)
        self._dialing_since = time.monotonic()
        self._give_up_at = self._dialing_since + wait_seconds
        self._next_attempt = 0.0
        self._next_word = self._dialing_since + FIRST_WORD_AFTER
        self._pause = SHORTEST_PAUSE
        self._was_connected = False
        self._queued_at: float | None = None  # when i-PI was last seen to listen with a full queue

    def __str__(self) -> str:
        return f"socket '{self.spec.name}' at {self.spec.address}"

    @property
    def template(self) -> Template:
        return self.spec.template

    @property
    def is_dialing(self) -> bool:
        return self._n_missing > 0

    @property
    def is_alive(self) -> bool:
        return bool(self.connections) or self.is_dialing

    @property
    def is_filled(self) -> bool:
        """Whether i-PI can be expected to ask for no more before it has answers."""
        capacity = self.n_introduced * self.spec.batch_size
        return self.n_asked >= min(self.spec.n_requests or capacity, capacity)

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to look at here until i-PI speaks."""
        return not self._n_missing and self.greeting_due is None

    def next_deadline_in(self) -> float:
        """Seconds until an endpoint that is not settled wants to be looked at again."""
        deadlines = [self._next_attempt] if self.is_dialing else []
        deadlines += [self.greeting_due] if self.greeting_due is not None else []
        return max(0.0, min(deadlines) - time.monotonic())

    def dial(self) -> list[Connection]:
        """Open what is missing and can be opened now; never waits.

        Raises:
            NobodyListening: the time to wait is over, and no connection was ever made.
            PeerError: i-PI took the connection back and has said nothing since.
            UsageError: the address can never work.
        """
        opened: list[Connection] = []
        now = time.monotonic()
        self._check_greeting(now)
        while self._n_missing and now >= self._next_attempt:
            stream = self._dialer.attempt()
            if stream is None:
                self._postpone(now)
                break
            opened.append(Connection(self, stream))
            self.connections.append(opened[-1])  # at once: the next attempt may raise
            self._n_missing -= 1
            self._pause, self._queued_at = SHORTEST_PAUSE, None
            self.greeting_due = now + GREETING_SECONDS
            self._was_connected = True
        return opened

    def redial(self, reason: str) -> None:
        """A connection was lost, or i-PI said EXIT on it (reason ""): open another, if somebody still listens there.

        i-PI says EXIT when it ends, and just the same to a client that it drops (its <timeout>) while it goes on.
        """
        self.last_words = reason
        self.n_redials += 1
        if self.n_redials <= MOST_REDIALS * self._n_wanted:
            self._n_missing += 1
            self._dialing_since = time.monotonic()
            self._give_up_at = self._dialing_since + REDIAL_SECONDS

    def give_up(self) -> None:
        """Dial no more, expect nothing."""
        self._n_missing = 0
        self.greeting_due = None
        self._dialer.close()

    def _check_greeting(self, now: float) -> None:
        """A connection stands, and i-PI has said nothing on it for a long time."""
        if self.greeting_due is None or now < self.greeting_due:
            return
        self.greeting_due = None
        if self.simulation.said_exit:
            self.give_up()
            for connection in list(self.connections):
                connection.close()
            return
        if self.last_words:
            raise PeerError(
                f"{self}: {self.last_words}, and i-PI has not spoken to the new connection; it hangs"
            )
        log.warning(
            "connected to %s, which has said nothing for %.0f s: is it i-PI that listens there?",
            self.spec.address, GREETING_SECONDS,
        )  # fmt: skip

    def _postpone(self, now: float) -> None:
        if now > self._give_up_at or self._is_left_alone(now):
            self._stop_waiting(now)
        if now >= self._next_word and not self._was_connected:
            log.info("waiting for i-PI at %s (%s)", self.spec.address, self._dialer.reason)
            self._next_word = now + max(10.0, now - self._dialing_since)
        self._next_attempt = now + self._pause
        self._pause = min(2.0 * self._pause, LONGEST_PAUSE)

    def _is_left_alone(self, now: float) -> bool:
        """Whether an i-PI that we queued for is gone: it listened, and has not done so for a while."""
        if self._dialer.is_queueing:
            self._queued_at = now
        return self._queued_at is not None and now > self._queued_at + REDIAL_SECONDS

    def _stop_waiting(self, now: float) -> None:
        self.give_up()
        if not self._was_connected:
            raise NobodyListening(
                f"nobody listens at {self.spec.address} after {now - self._dialing_since:.0f} s ({self._dialer.reason}). "
                "Start i-PI with the input that has this address, or give it more time with --wait SECONDS"
            )


class ServedSimulation:
    """The sockets of one i-PI: they end together, and one failure fails them all."""

    def __init__(
        self, simulation: SimulationInput, *, n_connections: int | None, wait_seconds: float
    ) -> None:
        self.endpoints = [
            Endpoint(self, spec, n_connections=n_connections, wait_seconds=wait_seconds)
            for spec in simulation.sockets
        ]
        self.said_exit = False  # and has not spoken since
        self.failure: ForceServerError | None = None
        self.refused: ForceServerError | None = None  # forces not fit to be sent, with none sent since

    @property
    def is_alive(self) -> bool:
        return any(endpoint.is_alive for endpoint in self.endpoints)

    def outcome(self) -> ForceServerError | None:
        """Why it ended, where it did not end well."""
        if self.said_exit or self.failure is not None:
            return self.failure
        for endpoint in self.endpoints:
            if endpoint.last_words:
                return self.refused or PeerError(
                    f"{endpoint}: {endpoint.last_words}. Look at i-PI's own output for the reason; "
                    "a RESTART file, if there is one, continues the run"
                )
        return None


def default_connections(spec: SocketSpec) -> int:
    """As many connections as bring all requests of a step at once, whole batches on each."""
    if spec.n_requests is None:
        return 1
    return min(-(-spec.n_requests // spec.batch_size), MOST_CONNECTIONS)
