"""Orders to a child process and its answers: one line of JSON each, over a socket pair that ends with either side."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

CHUNK_BYTES = 1 << 16


class Control:
    """One end. `fileno` lets a select wait for the next line."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pending = b""

    @staticmethod
    def from_descriptor(descriptor: int) -> Control:
        return Control(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, **message: Any) -> None:
        """Raises:
        OSError: the other side is gone.
        """
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> Mapping[str, Any] | None:
        """The next line, when it is there; None: the other side is gone."""
        while b"\n" not in self._pending:
            try:
                chunk = self._connection.recv(CHUNK_BYTES)
            except OSError:
                chunk = b""
            if not chunk:
                return None
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        message: Mapping[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        self._connection.close()
