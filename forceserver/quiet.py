"""i-PI's readers, which print as they read and keep state in globals, for a package whose stdout is for results."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator

_READING = threading.RLock()  # what redirects stdout must also be the one who puts it back


@contextlib.contextmanager
def quiet_ipi() -> Iterator[None]:
    """Let i-PI read, in one thread at a time, and keep what it prints off stdout."""
    with _READING, contextlib.redirect_stdout(io.StringIO()):
        yield
