"""Tasks in other threads, whose results come back into a select."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeVar

Key = TypeVar("Key")
Outcome = TypeVar("Outcome")


class Background(Generic[Key, Outcome]):
    """Readable as a file while something is done that nobody has taken.

    Args:
        n_threads: tasks that are under way at the same time, at most.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_under_way = 0  # and not taken
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="simulation")
        self._done: SimpleQueue[tuple[Key, Future[Outcome]]] = SimpleQueue()
        self._reader, self._writer = socket.socketpair()

    def fileno(self) -> int:
        return self._reader.fileno()

    def start(self, key: Key, task: Callable[[], Outcome]) -> None:
        self.n_under_way += 1
        self._threads.submit(task).add_done_callback(partial(self._arrive, key))

    def take(self) -> tuple[Key, Future[Outcome]]:
        """One that is done, as soon as there is one. To be called while any is under way."""
        key, future = self._done.get()
        self._reader.recv(1)  # there, or about to be
        self.n_under_way -= 1
        return key, future

    def close(self) -> None:
        """Start nothing any more. What is under way ends for nobody."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._reader.close()
        self._writer.close()

    def _arrive(self, key: Key, future: Future[Outcome]) -> None:
        self._done.put((key, future))
        with contextlib.suppress(OSError):  # closed: nobody listens any more
            self._writer.send(b"\0")
