"""Streams on real sockets: what cannot be sent waits in order, and the wire is called clear only when it is."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator

import pytest

from forceserver.errors import UsageError
from forceserver.transport import Dialer, Stream, UnixAddress
from peer import receive_exactly

MESSAGE = bytes(range(256)) * 40_000  # 10 MB: more than any socket takes at once


def unix_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def inet_pair() -> tuple[socket.socket, socket.socket]:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        listener.listen(1)
        near = socket.create_connection(listener.getsockname())
        return near, listener.accept()[0]


@pytest.fixture(params=[unix_pair, inet_pair], ids=["unix", "inet"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Stream, socket.socket]]:
    near, far = request.param()
    far.settimeout(20.0)
    stream = Stream(near)
    yield stream, far
    stream.close()
    far.close()


def test_what_cannot_be_sent_at_once_waits_and_arrives_in_order(ends: tuple[Stream, socket.socket]) -> None:
    stream, far = ends
    assert stream.send(MESSAGE)
    assert stream.has_unsent
    assert not stream.is_clear
    assert stream.send(b"the end")  # behind what waits
    heard = b""
    while len(heard) < len(MESSAGE) + 7:
        heard += receive_exactly(far, min(1 << 16, len(MESSAGE) + 7 - len(heard)))
        assert stream.send(b"")
    assert heard == MESSAGE + b"the end"
    assert not stream.has_unsent


def test_a_small_message_leaves_the_wire_clear(ends: tuple[Stream, socket.socket]) -> None:
    stream, far = ends
    assert stream.is_clear
    assert stream.send(b"READY       ")
    assert stream.is_clear
    assert receive_exactly(far, 12) == b"READY       "


def test_tcp_is_not_clear_while_it_holds_back_what_it_took() -> None:
    near, far = inet_pair()
    stream = Stream(near)
    n_sent = 0
    while stream.is_clear:  # until the window of the peer is full, which reads nothing
        assert stream.send(bytes(1 << 16))
        n_sent += 1 << 16
    assert not stream.has_unsent
    far.settimeout(20.0)
    receive_exactly(far, n_sent)
    deadline = time.monotonic() + 10.0
    while not stream.is_clear and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stream.is_clear
    stream.close()
    far.close()


def test_the_end_of_a_stream_is_told_from_silence(ends: tuple[Stream, socket.socket]) -> None:
    stream, far = ends
    assert stream.receive() is None
    far.sendall(b"EXIT        ")
    far.close()
    time.sleep(0.05)
    assert stream.receive() == b"EXIT        "
    assert stream.receive() == b""
    stream.send(b"x")
    time.sleep(0.05)
    assert not stream.send(b"x")


def test_a_unix_socket_with_a_name_that_no_system_takes_is_refused_with_the_length_that_can_be_had() -> None:
    with pytest.raises(
        UsageError, match=r"has a path of 205 bytes, and at most 107 can be had; .* -S /tmp/ipi_"
    ):
        Dialer(UnixAddress("/tmp/" + "x" * 200)).attempt()


def test_too_many_open_files_are_said_with_both_remedies() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(UsageError, match=r"/tmp/x: Too many open files; .*ulimit -n.*--connections"):
            Dialer(UnixAddress("/tmp/x")).attempt()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
