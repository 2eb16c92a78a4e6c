"""What a request costs while other connections of the same server stand idle.

    python benchmarks/idle_connections.py [--idle 0 31 127] [--blocks 20] [--requests 300]

A server (`forceserver run noop`) for each number of idle connections, and in place of i-PI a listener that says the same words:
all connections are introduced, one of them is asked again and again for the forces of 192 atoms. The servers take turns in short
blocks, so that what else the machine does falls on all alike. Printed: the median time of a request, and the median ratio of a
block to the block of the first server beside it, with quartiles.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from inputs import WATER64, write_input

from forceserver.exchange import BOHR_PER_ANGSTROM
from forceserver.messages import Header
from forceserver.structure_files import read_structure

BIN = Path(sys.executable).parent


def request_of_water() -> tuple[bytes, int]:
    """POSDATA and GETFORCE as i-PI sends them, and the length of the answer."""
    atoms = read_structure(WATER64)
    cell = np.ascontiguousarray(atoms.cell.array.T) * BOHR_PER_ANGSTROM
    numbers = cell.tobytes() + np.linalg.inv(cell).tobytes() + struct.pack("=i", len(atoms))
    positions = (atoms.positions * BOHR_PER_ANGSTROM).tobytes()
    message = Header.POSDATA + numbers + positions + Header.GETFORCE
    return message, 12 + 8 + 4 + len(positions) + 72 + 4


class Listener:
    """i-PI's end of all connections of one server; the first of them is the one that works."""

    def __init__(self, connections: list[socket.socket]) -> None:
        self._connections = connections
        self._message, self._n_answer = request_of_water()
        for connection in connections:
            self._say(connection, Header.STATUS, Header.NEEDINIT)
            connection.sendall(Header.INIT + struct.pack("=ii", 0, 1) + b" ")
            self._say(connection, Header.STATUS, Header.READY)

    def seconds_per_request(self, n_requests: int) -> float:
        worker = self._connections[0]
        began = time.perf_counter()
        for _ in range(n_requests):
            worker.sendall(self._message)
            _receive(worker, self._n_answer)
            self._say(worker, Header.STATUS, Header.READY)
        return (time.perf_counter() - began) / n_requests

    def leave(self) -> None:
        for connection in self._connections:
            connection.sendall(Header.EXIT)
            connection.close()

    @staticmethod
    def _say(connection: socket.socket, word: bytes, answer: bytes) -> None:
        connection.sendall(word)
        heard = _receive(connection, len(answer))
        if heard != answer:
            raise RuntimeError(f"the server answered {word!r} with {heard!r}, wanted {answer!r}")


def _receive(connection: socket.socket, n_bytes: int) -> bytes:
    data = b""
    while len(data) < n_bytes:
        piece = connection.recv(n_bytes - len(data))
        if not piece:
            raise RuntimeError("the server left")
        data += piece
    return data


@contextmanager
def served(n_idle: int) -> Iterator[Listener]:
    """A server with one connection that works and so many that do not."""
    with tempfile.TemporaryDirectory(prefix="fs-") as name, socket.socket(socket.AF_UNIX) as door:
        folder = Path(name)
        path = write_input(folder, steps=1)
        door.bind(str(folder / "s_ff"))
        door.listen(n_idle + 1)
        server = subprocess.Popen(
            [str(BIN / "forceserver"), "run", "noop", "-i", str(path), "--connections", str(n_idle + 1)],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            listener = Listener([door.accept()[0] for _ in range(n_idle + 1)])
            yield listener
            listener.leave()
            door.close()  # nobody to dial again
            server.wait(20)
        finally:
            server.kill()
            server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--idle", type=int, nargs="+", default=[0, 31, 127], help="connections that only stand there"
    )
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--requests", type=int, default=300, help="in a block")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        listeners = [stack.enter_context(served(n_idle)) for n_idle in arguments.idle]
        for listener in listeners:
            listener.seconds_per_request(arguments.requests)
        times = [
            [listener.seconds_per_request(arguments.requests) for listener in listeners]
            for _ in range(arguments.blocks)
        ]
    print(f"{'idle connections':>16s} {'us/request':>10s} {'ratio':>7s} {'quartiles':>15s}")
    for n_idle, column in zip(arguments.idle, zip(*times, strict=True), strict=True):
        ratios = [own / row[0] for own, row in zip(column, times, strict=True)]
        lower, middle, upper = statistics.quantiles(ratios, n=4)
        print(f"{n_idle:16d} {1e6 * statistics.median(column):10.1f} {middle:7.3f} {lower:7.3f} {upper:7.3f}")


if __name__ == "__main__":
    main()
