"""One connection to i-PI: a stream, the session on it, and what i-PI said that it is for."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from forceserver.messages import Event, ForceReply
from forceserver.protocol import Session
from forceserver.structures import ForceRole
from forceserver.transport import Stream

if TYPE_CHECKING:
    from forceserver.endpoint import Endpoint


class Connection:
    """A stream, the session on it, and what i-PI said that it is for."""

    def __init__(self, endpoint: Endpoint, stream: Stream) -> None:
        self.endpoint = endpoint
        self.role: ForceRole | None = None  # INIT says which; no request comes before INIT
        self.account = ("", "")  # (socket, role), under which its requests are counted
        self.is_open = True
        self.watched_for = 0  # the events that the server's selector waits for
        self._stream = stream
        self._session = Session(frozenset({endpoint.template.n_atoms}))
        self._fileno = stream.fileno()

    def __str__(self) -> str:
        return f"{self.endpoint} [fd {self._fileno}]"

    def fileno(self) -> int:
        return self._fileno

    @property
    def has_unsent(self) -> bool:
        return self._stream.has_unsent

    def introduce(self, role: ForceRole) -> None:
        """i-PI said in INIT what this connection is for; it may do so again."""
        self.endpoint.n_introduced += self.role is None
        self.role = role
        self.account = (self.endpoint.spec.name, str(role))

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

    def flush(self) -> bool:
        """Send what waits to be sent. False when the peer is gone."""
        data = self._session.data_to_send()
        if not data and not self._stream.has_unsent:
            return True
        return self._stream.send(data) and self._answer_ahead()

    def _answer_ahead(self) -> bool:
        """In a packet of its own, never cut: of a status that i-PI reads in two parts it makes a lost connection."""
        if not self._stream.is_clear:
            return True
        answer = self._session.answer_ahead()
        return self._stream.send(answer) if answer else True

    def deliver(self, deadline: float) -> None:
        """Go on to the next moment at which i-PI can lose a client: forces that it was promised are handed over, positions taken.

        Args:
            deadline: on `time.monotonic()`; an i-PI that does not do its part until then is left all the same.
        """
        while self.flush() and (self._session.is_relied_upon or self.has_unsent):
            patience = deadline - time.monotonic()
            if patience <= 0:
                return
            readiness = select.poll()  # `select.select` takes no descriptor beyond 1023
            readiness.register(self, select.POLLIN | (select.POLLOUT if self.has_unsent else 0))
            readiness.poll(1e3 * patience)
            data = self._stream.receive()
            if data == b"":
                return
            self._session.receive_data(data or b"")

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.endpoint.n_introduced -= self.role is not None
            self._stream.close()
            self.endpoint.connections.remove(self)
