"""What a server counts while it serves: requests, gatherings, and where the time goes (seconds)."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field


class PhaseClock:
    """Where the time goes: each moment belongs to exactly one phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._phase = "waiting"
        self._since = time.perf_counter()

    def enter(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now


@dataclass
class ServeStatistics:
    """What was served, for the report at the end."""

    n_requests: Counter[tuple[str, str]] = field(
        default_factory=Counter
    )  # {(socket, role): structures asked for}
    n_gatherings: int = 0
    n_lingered: int = 0  # gatherings that were evaluated because nobody spoke any more
    clock: PhaseClock = field(default_factory=PhaseClock)
