"""How many threads of torch are best for one evaluation: found by trial, in the first evaluations of a run.

More are not always faster: what a thread gets of 192 atoms is soon too little for the trouble of handing it out. Measured with a
small PET on two cores: direct forces of 192 atoms take 38 ms with one thread, 45 to 52 ms with two; of 768 atoms less with two.
Where that turns depends on the model, its size, and the machine, so nobody can say it beforehand.

The numbers of threads that are tried take turns, so that what else the machine does hits all alike, and their shortest times
are compared. The forces are the same to rounding, whatever the number.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable

log = logging.getLogger(__name__)

WARM_UP = 3  # evaluations that are not compared: TorchScript compiles in the first ones
ROUNDS = 5  # in which each number of threads is tried once
WORTH_IT = 0.95  # of the time: a gain less than that is left to whoever else needs a core
MOST_TRIALS = 256  # kinds of evaluations that are told apart; what comes after has all threads


class ThreadTrials:
    """The trials of one potential. Any thread may ask at any time.

    Args:
        name: of the potential, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._trials: dict[Hashable, _Trial] = {}
        self._lock = threading.Lock()

    def choose(self, what: Hashable, most: int) -> int:
        """With how many threads to do the next evaluation of this kind.

        Args:
            what: whatever may matter for the choice; its text goes into the log.
            most: threads that there are.
        """
        with self._lock:
            trial = self._trials.get((what, most))
            if trial is None:
                if len(self._trials) >= MOST_TRIALS:
                    return most
                trial = self._trials[what, most] = _Trial(most)
            return trial.choose()

    def note(self, what: Hashable, most: int, n_threads: int, seconds: float) -> None:
        """What an evaluation took."""
        with self._lock:
            trial = self._trials.get((what, most))
            if trial is not None and not trial.is_over:
                trial.note(n_threads, seconds)
                if trial.is_over:
                    log.info("%s: %s: %s", self._name, what, trial)


class _Trial:
    def __init__(self, most: int) -> None:
        self._candidates = [max(1, most >> k) for k in range(most.bit_length())]
        self._n_to_warm_up = WARM_UP
        self._seconds: dict[int, list[float]] = {n: [] for n in self._candidates}
        self._best = most
        self.is_over = most == 1

    def __str__(self) -> str:
        times = ", ".join(f"{n}: {1e3 * min(seconds):.1f} ms" for n, seconds in self._seconds.items())
        return f"{self._best} of torch's threads from now on (shortest times by threads: {times})"

    def choose(self) -> int:
        if self.is_over or self._n_to_warm_up:
            return self._best
        return min(self._candidates, key=lambda n: len(self._seconds[n]))

    def note(self, n_threads: int, seconds: float) -> None:
        if self._n_to_warm_up:
            self._n_to_warm_up -= 1
            return
        self._seconds[n_threads].append(seconds)
        if min(map(len, self._seconds.values())) == ROUNDS:
            shortest = {n: min(times) for n, times in self._seconds.items()}
            enough = min(shortest.values()) / WORTH_IT
            self._best = min(n for n, time in shortest.items() if time <= enough)
            self.is_over = True
