"""Several evaluations of one potential at the same time: on a CPU, a core for each structure beats all cores for one.

Measured with a small PET on two cores, one structure of 192 atoms after the other with two threads of torch, against two at a
time with one thread each: direct 36 and 20 ms for a structure, conservative 49 and 41 ms; of 768 atoms 131 and 77, 189 and 170
ms. A batch of eight is no faster than one by one: what a structure needs fits in a core's cache, what a batch needs does not. So
a potential that allows it (`Twinned`) is given calls of few structures here, each to the next core that is free. On a GPU, and
for any other potential, all structures stay in one call.

The forces of a structure that has a call for itself are the same to the last bit, whoever computes them and beside whatever
else; with another number of torch's threads for each, to rounding.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import pairwise
from queue import SimpleQueue

import torch

from forceserver.errors import one_line
from forceserver.parts import Part, take_apart
from forceserver.potentials.interface import BatchBuilder, Potential, Twinned
from forceserver.structures import ForceKind, Structure

log = logging.getLogger(__name__)

# Structures smaller than this share a call: the fixed costs of a call of the PET above, 5 ms, are those of 30 atoms.
ATOMS_OF_A_CALL = 200

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's mallopt
LARGEST_FROM_HEAP = 2**30  # bytes
LARGEST_SPARE = 2**28  # bytes of heap that are not given back to the system


class Crew:
    """One potential, and the threads that evaluate it.

    Args:
        potential: evaluated in this thread alone, or in several threads by itself and its twins.
        n_threads: cores to use.
    """

    def __init__(self, potential: Potential, n_threads: int) -> None:
        self._able = potential.capabilities
        self._potential = potential
        self._n_threads = n_threads
        self._cuts = isinstance(potential, Twinned) and self._able.device.type == "cpu"
        self._n_callers = 1
        self._n_desks = 0
        self._changing = threading.Lock()  # held by who takes all desks, or adds some
        self._idle: SimpleQueue[_Desk] = SimpleQueue()
        self._add_desk(potential)
        self._workers: ThreadPoolExecutor | None = None

    @property
    def n_at_once(self) -> int:
        """Calls that are evaluated at the same time, at most."""
        return self._n_threads if self._cuts else 1

    @property
    def is_shared(self) -> bool:
        """Whether several threads call `evaluate` at the same time."""
        return self._n_callers > 1

    def share_out(self, n_atoms: Sequence[int]) -> bool:
        """Let several threads call `evaluate` at the same time, with their share of the cores each.

        Args:
            n_atoms: of a structure of each of them.

        Returns:
            False: they may not, or had better share their calls, because the structures are small.
        """
        if len(n_atoms) > 1:
            may = self._cuts and sum(sorted(n_atoms)[:2]) > ATOMS_OF_A_CALL
            if not may or self._hire(self._n_threads) < 2:
                return False
        self._n_callers = len(n_atoms)
        return True

    def cut(self, n_atoms: Sequence[int]) -> list[slice]:
        """Which of the structures with so many atoms each share a call."""
        if not self._cuts or len(n_atoms) == 1:
            return [slice(0, len(n_atoms))]
        most = -(-len(n_atoms) // self._n_threads)
        begins: list[int] = []
        room = 0
        for place, n in enumerate(n_atoms):
            if n > room or place - begins[-1] == most:
                begins.append(place)
                room = ATOMS_OF_A_CALL
            room -= n
        return [slice(begin, end) for begin, end in pairwise((*begins, len(n_atoms)))]

    def evaluate_alone(self, call: Sequence[Structure], kinds: frozenset[ForceKind]) -> list[Part]:
        """Evaluate one call while no other is evaluated, in the memory of all."""
        with self._all_desks() as desks:
            return desks[0].evaluate(call, kinds)

    def evaluate(self, calls: Sequence[Sequence[Structure]], kinds: frozenset[ForceKind]) -> list[Part]:
        """Evaluate calls, the results in the order of the structures.

        Raises:
            Exception: what the first of the calls that failed raised, when no other is under way any more.
        """
        n_workers = 1 if len(calls) == 1 else self._hire(min(len(calls), self._n_threads))
        if n_workers < 2:
            own = max(1, self._n_threads // self._n_callers) if self.is_shared else None
            return [part for call in calls for part in self._work(call, kinds, own)]
        assert self._workers is not None
        share = self._n_threads // n_workers
        pending = [self._workers.submit(self._work, call, kinds, share) for call in calls]
        parts: list[Part] = []
        try:
            wait(pending, return_when=FIRST_EXCEPTION)
            _call_off(pending)
            while pending:
                parts += pending.pop(0).result()
        finally:
            _call_off(pending)  # where a signal ends the waiting
            pending.clear()
            # Nothing here may hold a future that failed: it holds the error, that this frame, and both the memory of the call.
        return parts

    def _hire(self, n_workers: int) -> int:
        """See that so many can work at a time; how many can."""
        try:
            if self._n_desks < n_workers:
                assert isinstance(self._potential, Twinned)
                with self._all_desks():
                    for _ in range(self._n_desks, n_workers):
                        self._add_desk(self._potential.twin())
        except Exception as error:  # TorchScript can copy most models, and says in many ways that it cannot
            log.warning(
                "%s cannot be copied, so its structures are evaluated one after the other: %s",
                self._able.name,
                one_line(error),
            )
            self._n_threads = 1
            return 1
        if n_workers > 1 and self._workers is None:
            self._workers = ThreadPoolExecutor(self._n_threads, thread_name_prefix="evaluation")
        return n_workers

    @contextmanager
    def _all_desks(self) -> Iterator[list[_Desk]]:
        """All of them, when those at work have come back."""
        with self._changing:
            desks = [self._idle.get() for _ in range(self._n_desks)]
            try:
                yield desks
            finally:
                for desk in desks:
                    self._idle.put(desk)

    def _add_desk(self, potential: Potential) -> None:
        self._idle.put(_Desk(potential))
        self._n_desks += 1

    def _work(
        self, call: Sequence[Structure], kinds: frozenset[ForceKind], n_threads: int | None
    ) -> list[Part]:
        """Evaluate one call at an idle desk, with so many threads of torch; None: with those that this thread has."""
        # Each thread has a number of its own, in torch as in OpenMP and MKL; a new one has that which was set last, anywhere.
        if n_threads is not None and torch.get_num_threads() != n_threads:
            torch.set_num_threads(n_threads)
        desk = self._idle.get()
        try:
            return desk.evaluate(call, kinds)
        finally:
            self._idle.put(desk)


class _Desk:
    """What one thread at a time works with."""

    def __init__(self, potential: Potential) -> None:
        self._potential = potential
        known = potential.capabilities
        self._builder = BatchBuilder(known.dtype, known.device, any_image=known.any_image)

    def evaluate(self, structures: Sequence[Structure], kinds: frozenset[ForceKind]) -> list[Part]:
        # A GPU's errors surface where results are read.
        return take_apart(self._potential(self._builder.build(structures), kinds), structures)


def _call_off(pending: Sequence[Future[list[Part]]]) -> None:
    """Let nobody start any more, and wait for those who have."""
    for each in pending:
        each.cancel()
    wait(pending)


def keep_heaps(n_threads: int) -> None:
    """Have glibc serve so many threads, and large tensors too, from heaps that it keeps; elsewhere nothing happens.

    By default large tensors are mapped and unmapped at every allocation, while the other threads wait; all threads in one heap
    wait for its lock. A conservative evaluation by each of two threads, ms, the slower thread, by default, with one heap, and so:
    192 atoms 81, 78 to 103 (eight runs), 75 to 80; 1536 atoms 681, 621 to 682, 660; 3072 atoms 1849, 1440, 1280.
    A user's own MALLOC_... settings stand.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(M_ARENA_MAX, n_threads)
    mallopt(M_MMAP_THRESHOLD, LARGEST_FROM_HEAP)
    mallopt(M_TRIM_THRESHOLD, LARGEST_SPARE)
