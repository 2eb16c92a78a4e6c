"""Sockets: from an address to connected, non-blocking byte streams, and away from them without leaving a mess.

i-PI listens and we dial in, so nothing here ever opens a port. Connecting never blocks: i-PI shakes hands with one client at a
time and waits for its answer, so a server that blocks in connect() while the queue is full stops i-PI and itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
from dataclasses import dataclass

from forceserver.errors import UsageError

RECEIVE_BYTES = 1 << 18
LONGEST_UNIX_PATH = 107  # bytes
SIOCOUTQNSD = 0x894B  # of Linux: how much of what was written is not sent
NOT_YET = {
    errno.ENOENT,
    errno.ECONNREFUSED,
    errno.EAGAIN,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ECONNRESET,
}


@dataclass(frozen=True)
class UnixAddress:
    """A socket file: i-PI's `sockets_prefix` followed by the address."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class InetAddress:
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


Address = UnixAddress | InetAddress


def parse_address(text: str, sockets_prefix: str) -> Address:
    """Read `-a`: `NAME` is a unix socket behind the prefix, `/a/path` one at that path, `HOST:PORT` a host.

    Raises:
        UsageError: a port that is no port.
    """
    if text.startswith("/"):
        return UnixAddress(text)
    host, separator, port = text.rpartition(":")
    if not separator:
        return UnixAddress(sockets_prefix + text)
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(
            f"-a {text}: wanted HOST:PORT with a port between 1 and 65535, or the NAME of a unix socket"
        )
    return InetAddress(host or "localhost", int(port))


class Stream:
    """One connected socket that never blocks; what cannot be sent at once waits in a buffer."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._is_unix = connected.family == socket.AF_UNIX
        if not self._is_unix:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected
        self._unsent = bytearray()
        self._landing = memoryview(
            bytearray(RECEIVE_BYTES)
        )  # kept: a fresh buffer for each message costs more than it

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    @property
    def is_clear(self) -> bool:
        """Whether all that was sent is on its way, so that what comes next travels by itself."""
        if self._unsent or self._is_unix:
            return not self._unsent
        return _n_waiting_for_the_network(self._socket) == 0

    def receive(self) -> bytes | None:
        """What has arrived; empty at the end of the stream; None where nothing has."""
        try:
            return bytes(self._landing[: self._socket.recv_into(self._landing)])
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:  # reset by a peer that died with data unread
            return b""

    def send(self, data: bytes) -> bool:
        """Send what can be sent now, keep the rest. False when the peer is gone."""
        try:
            if not self._unsent:
                n_sent = self._send_now(data)
                if n_sent == len(data):  # nearly always
                    return True
                data = data[n_sent:]
            self._unsent += data
            while self._unsent and (n_sent := self._send_now(self._unsent)):
                del self._unsent[:n_sent]
        except OSError:
            return False
        return True

    def _send_now(self, data: bytes | bytearray) -> int:
        """How many bytes went; 0 where none can go now."""
        try:
            return self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0

    def close(self) -> None:
        """Drain, then close. Closing with unread data would send a reset, on which i-PI hangs for ever."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while self._socket.recv(RECEIVE_BYTES):
                pass
        self._socket.close()


class Dialer:
    """An attempt to connect that is looked at again and again and never waits."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._socket: socket.socket | None = None
        self.reason = "no answer"  # why the last attempt failed, for the line that says what we wait for
        self._numeric_host: str | None = None
        self.is_queueing = False  # somebody listens, but has a full queue

    def attempt(self) -> Stream | None:
        """A connected stream, or None: not yet.

        Raises:
            UsageError: this address can never work (no such host, a path too long, no permission).
        """
        if self._socket is None:
            self._socket = _new_socket(self.address)
        try:
            code = self._socket.connect_ex(self._socket_name())
        except (OSError, OverflowError, UnicodeError, TypeError) as error:
            self.close()
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
                self.reason = "its name cannot be looked up now"
                return None
            if isinstance(error, socket.gaierror):
                raise UsageError(
                    f"host of {self.address} not found: {error.strerror}; check the name after -a or in <address>"
                ) from None
            length = len(os.fsencode(str(self.address)))
            if isinstance(self.address, UnixAddress) and length > LONGEST_UNIX_PATH:
                raise UsageError(
                    f"the unix socket {self.address} has a path of {length} bytes, and at most {LONGEST_UNIX_PATH} can be had; "
                    "give i-PI and the server a shorter prefix: -S /tmp/ipi_"
                ) from None
            raise UsageError(
                f"{self.address} cannot be an address: {error}; check -a, or <address> and <port>"
            ) from None
        if code in (0, errno.EISCONN):
            if _is_connected_to_itself(self._socket):
                self.close()
                return None
            stream, self._socket = Stream(self._socket), None
            return stream
        if code in (errno.EINPROGRESS, errno.EALREADY):
            return None
        self.reason = _describe(code, self.address)
        self.is_queueing = code == errno.EAGAIN  # which only unix sockets say
        self.close()
        if code not in NOT_YET:
            raise UsageError(f"cannot connect to {self.address}: {self.reason}")
        return None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _socket_name(self) -> str | tuple[str, int]:
        """Where to connect; a host is looked up once, for that may take long."""
        if isinstance(self.address, UnixAddress):
            return self.address.path
        if self._numeric_host is None:
            found = socket.getaddrinfo(
                self.address.host, self.address.port, socket.AF_INET, socket.SOCK_STREAM
            )
            self._numeric_host = str(found[0][4][0])
        return self._numeric_host, self.address.port


def _n_waiting_for_the_network(connected: socket.socket) -> int | None:
    """Bytes that TCP has not yet put into a packet; None where the system does not say."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        answer: bytes = fcntl.ioctl(connected.fileno(), SIOCOUTQNSD, bytes(4))
    except OSError:
        return None
    return int.from_bytes(answer, sys.byteorder)


def _describe(code: int, address: Address) -> str:
    if isinstance(address, UnixAddress):
        if code == errno.ECONNREFUSED:
            return "a file is there, but nobody listens: left behind by an i-PI that was killed? Remove it before i-PI starts"
        if code == errno.EAGAIN:
            return "i-PI listens, but takes no more connections now"
    return os.strerror(code)


def _new_socket(address: Address) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, UnixAddress) else socket.AF_INET
    try:
        fresh = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(
            f"no socket can be had for {address}: {error.strerror}; raise the limit (ulimit -n), or have fewer with --connections"
        ) from None
    fresh.setblocking(False)
    return fresh


def _is_connected_to_itself(connected: socket.socket) -> bool:
    """TCP lets a socket that polls a local port for long enough meet itself there."""
    return connected.family == socket.AF_INET and connected.getsockname() == connected.getpeername()
