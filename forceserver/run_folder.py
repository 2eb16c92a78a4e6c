"""The folder of a launched run and the addresses of its sockets: one launch at a time, and nobody else's i-PI."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forceserver.errors import ForceServerError, UsageError
from forceserver.inputfile import read_input
from forceserver.transport import InetAddress

LOCK = ".forceserver.lock"


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Keep a second launch out of the folder. The lock is a file descriptor and ends with the last process that holds it."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context((folder / LOCK).open("a+"))
        except OSError as error:
            raise UsageError(
                f"cannot write in {folder}, where the run would live: {error.strerror}"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UsageError(
                f"{folder} is in use by another launch (process {holder}); give each run its own folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


@contextmanager
def disk_errors_named(folder: Path) -> Iterator[None]:
    """Raises:
    ForceServerError: in place of an OSError of ours: a full disk, a quota, a folder that was taken away.
    """
    try:
        yield
    except OSError as error:
        raise ForceServerError(
            f"cannot go on in {folder}: {error.strerror} ({error.filename or 'while writing'}). What was saved stays; make room, "
            "and the same command continues the run"
        ) from error


def check_addresses(input_path: Path) -> None:
    """Our servers must not meet the i-PI of somebody else, which a port or a folder shared with it would lead them to.

    Raises:
        UsageError: somebody listens on a port of this input, its host is not this machine, or a unix socket is named by a path.
    """
    for spec in read_input(input_path, sockets_prefix="", folder=input_path.parent).sockets:
        if not isinstance(spec.address, InetAddress):
            if not spec.address.path or "/" in spec.address.path:
                raise UsageError(
                    f"<address> of socket '{spec.name}' is '{spec.address}': launch puts the sockets of a run into a folder of "
                    "their own, so write a plain name, e.g. <address>water</address>"
                )
            continue
        with socket.socket() as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as i-PI: what lingers is no obstacle
            try:
                probe.bind((spec.address.host, spec.address.port))
            except OSError as error:
                busy = error.errno == errno.EADDRINUSE
                remedy = (
                    "choose another <port>, or mode='unix'"
                    if busy
                    else "i-PI listens on its own machine only"
                )
                raise UsageError(
                    f"i-PI cannot listen at {spec.address} of socket '{spec.name}': {error.strerror}; {remedy}"
                ) from None
