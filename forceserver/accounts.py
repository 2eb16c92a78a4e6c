"""What a server has counted, as one line of JSON: at its end, and whenever it is sent SIGUSR1. Times in seconds."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from forceserver.errors import UsageError

if TYPE_CHECKING:
    from forceserver.bookkeeping import ServeStatistics
    from forceserver.evaluate import Evaluator

log = logging.getLogger(__name__)


def account(served: ServeStatistics, evaluator: Evaluator) -> dict[str, Any]:
    """Everything since the start; the difference of two accounts is what lies between them."""
    lists = [getattr(potential, "neighbor_statistics", None) for potential in evaluator.models.values()]
    return {
        "n_requests": sum(served.n_requests.values()),
        "requests": [
            {"socket": name, "role": role, "n": count} for (name, role), count in served.n_requests.items()
        ],
        "n_gatherings": served.n_gatherings,
        "n_lingered": served.n_lingered,
        "seconds": dict(served.clock.seconds),
        "evaluation": _plain(evaluator.statistics),
        "neighbor_lists": [_plain(each) for each in lists if each is not None],
    }


def _plain(value: Any) -> Any:
    """As `dataclasses.asdict`, which cannot copy a `defaultdict` before Python 3.12."""
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return dict(value) if isinstance(value, dict) else value


def claim_report(path: Path | None) -> None:
    """Before minutes of loading: see that the file can be written, and let nobody who asks too early end the process.

    Raises:
        UsageError: the file cannot be written.
    """
    if path is None:
        return
    try:
        path.open("a").close()
    except OSError as error:
        raise UsageError(f"cannot write the report {path}: {error.strerror}") from None
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


@contextmanager
def keep_accounts(path: Path | None, served: ServeStatistics, evaluator: Evaluator) -> Iterator[None]:
    """Append an account to the file at the end, and at every SIGUSR1 until then, if that can be done. Without a path, nothing."""
    if path is None:
        yield
        return

    def write(number: int = 0, frame: FrameType | None = None) -> None:
        try:
            with path.open("a") as file:
                file.write(json.dumps(account(served, evaluator)) + "\n")
        except OSError as error:  # a full disk: no reason to end a simulation
            log.warning("cannot write the report %s: %s", path, error.strerror)

    previous = signal.signal(signal.SIGUSR1, write)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, previous)
        write()
