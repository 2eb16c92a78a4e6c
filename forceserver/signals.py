"""SIGINT and SIGTERM as a request that is looked at between evaluations, never in the middle of one."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


class StopRequest:
    """Readable as a file as soon as somebody wants us to stop, so that a select wakes up; `reason` then says who."""

    def __init__(self) -> None:
        self.reason = ""
        self.signal_number = 0
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    def request(self, reason: str) -> None:
        self.reason = reason
        self._writer.send(b"\0")

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a `StopRequest`; a second one acts as it always does."""
    stop = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)
        stop.signal_number = number
        log.warning(
            "%s: stopping after what is being done now; once more to stop at once",
            signal.Signals(number).name,
        )
        stop.request(signal.Signals(number).name)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        stop.close()
