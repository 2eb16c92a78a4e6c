"""The log: to stderr, because stdout is for results; to a file as well where one is named."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from forceserver.errors import UsageError


def start_logging(log_file: Path | None = None, *, verbose: bool = False) -> None:
    """Set up the logger of this package; others (torch, matplotlib) keep theirs.

    Raises:
        UsageError: the file cannot be written.
    """
    root = logging.getLogger("forceserver")
    root.setLevel(logging.DEBUG if verbose or log_file else logging.INFO)
    root.handlers.clear()
    root.propagate = False
    screen = logging.StreamHandler(sys.stderr)
    screen.setLevel(logging.DEBUG if verbose else logging.INFO)
    screen.setFormatter(logging.Formatter("forceserver: %(message)s"))
    root.addHandler(screen)
    if log_file is not None:
        try:
            file = logging.FileHandler(log_file)
        except OSError as error:
            raise UsageError(f"cannot write the log file {log_file}: {error.strerror}") from None
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(file)
