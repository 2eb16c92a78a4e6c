"""A scripted i-PI on a real unix socket, in a thread: says what a test wants it to say, hears what it is told."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import fake_ipi
from forceserver.evaluate import Evaluator
from forceserver.exchange import Template
from forceserver.inputfile import SimulationInput, SocketSpec
from forceserver.server import ServeOptions, Server
from forceserver.signals import StopRequest
from forceserver.transport import UnixAddress


def receive_exactly(connection: socket.socket, n_bytes: int) -> bytes:
    data = b""
    while len(data) < n_bytes:
        chunk = connection.recv(n_bytes - len(data))
        if not chunk:
            break
        data += chunk
    return data


class Peer:
    """One accepted connection, seen from i-PI's side."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(20.0)
        self.connection = connection

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def receive(self, n_bytes: int) -> bytes:
        return receive_exactly(self.connection, n_bytes)

    def handshake(self, parameters: str = " ") -> None:
        self.send(fake_ipi.STATUS)
        assert self.receive(12) == fake_ipi.NEEDINIT
        self.send(fake_ipi.init(parameters) + fake_ipi.STATUS)
        assert self.receive(12) == fake_ipi.READY

    def ask(self, positions: np.ndarray, cell: np.ndarray) -> None:
        self.send(fake_ipi.posdata(positions, cell) + fake_ipi.GETFORCE)

    def hear_forces(self, n_atoms: int) -> tuple[float, np.ndarray, np.ndarray]:
        assert self.receive(12) == fake_ipi.FORCEREADY
        energy = float(np.frombuffer(self.receive(8))[0])
        assert np.frombuffer(self.receive(4), np.int32)[0] == n_atoms
        forces = np.frombuffer(self.receive(24 * n_atoms)).reshape(n_atoms, 3)
        virial = np.frombuffer(self.receive(72)).reshape(3, 3)
        self.receive(int(np.frombuffer(self.receive(4), np.int32)[0]))
        return energy, forces, virial

    def exit(self) -> None:
        with contextlib.suppress(OSError):  # i-PI does not mind who has left already either
            self.send(fake_ipi.EXIT)


@contextmanager
def scripted_ipi(
    script: Callable[[list[Peer]], None], n_connections: int = 1, *, keep_listening: bool = False
) -> Iterator[UnixAddress]:
    """Listen, accept `n_connections`, then run the script on them; an assertion that fails in it fails the test.

    Args:
        keep_listening: as an i-PI does whose polling thread has died: more connections are taken, and never served.
    """
    failures: list[BaseException] = []
    with tempfile.TemporaryDirectory(prefix="fs-") as folder, socket.socket(socket.AF_UNIX) as listener:
        address = UnixAddress(str(Path(folder) / "s"))
        listener.bind(address.path)
        listener.listen(n_connections)
        listener.settimeout(20.0)

        def play() -> None:
            peers = []
            try:
                peers = [Peer(listener.accept()[0]) for _ in range(n_connections)]
                if not keep_listening:
                    listener.close()
                script(peers)
            except BaseException as error:
                failures.append(error)
            finally:
                for peer in peers:
                    peer.connection.close()

        thread = threading.Thread(target=play)
        thread.start()
        try:
            yield address
        finally:
            thread.join(30.0)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def make_server(
    address: UnixAddress,
    evaluator: Evaluator,
    numbers: list[int],
    *,
    others: Sequence[UnixAddress] = (),
    positions: np.ndarray | None = None,
    **changes: object,
) -> Server:
    """A server for scripted sockets, one simulation each; `changes` go to `ServeOptions`."""
    template = Template(np.array(numbers), np.ones(3, dtype=bool), positions)
    simulations = [
        SimulationInput(None, (SocketSpec("test", each, {}, 1, None, template),))
        for each in (address, *others)
    ]
    return Server(simulations, evaluator, ServeOptions(**changes), StopRequest())  # type: ignore[arg-type]


def count_selects(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The timeouts of all looks of a server at its sockets, in a list that grows."""
    timeouts: list[float | None] = []
    select = server._selector.select

    def count(timeout: float | None = None) -> object:
        timeouts.append(timeout)
        return select(timeout)

    monkeypatch.setattr(server._selector, "select", count)
    return timeouts
