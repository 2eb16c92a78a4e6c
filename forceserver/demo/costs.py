"""What one evaluation of a model costs here: conservative forces, direct forces, and both from one forward pass.

Times in seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from forceserver.processes import n_cores
from forceserver.structures import CONSERVATIVE, DIRECT, ForceKind, Structure

if TYPE_CHECKING:
    from forceserver.potentials.interface import Potential

MOVE = 1e-3  # A, between two calls
N_WARM = 3  # TorchScript specialises its code in the first calls
KINDS: dict[str, frozenset[ForceKind]] = {
    CONSERVATIVE: frozenset({CONSERVATIVE}),
    DIRECT: frozenset({DIRECT}),
    "both": frozenset({CONSERVATIVE, DIRECT}),
}


def sensible_threads() -> int:
    """Of torch: what OMP_NUM_THREADS says, else a few, for boxes of 192 atoms fill no more."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    return min(4, n_cores())


def runs_at_once(device: str = "cpu") -> tuple[int, int]:
    """How many runs go on side by side, and torch's threads for each: two, with half of the cores each, where there are several.

    A core for each of two runs gets more done than both for one after the other, as with structures (`parallel`). Another
    device is there once.
    """
    n_threads = sensible_threads()
    if device != "cpu":
        return 1, n_threads
    if "OMP_NUM_THREADS" not in os.environ and n_cores() > 1:
        n_threads = min(n_threads, n_cores() // 2)
    return (2 if n_cores() >= 2 * n_threads else 1), n_threads


def time_evaluations(
    potential: Potential, structures: Sequence[Structure], n_repeats: int
) -> dict[str, list[float]]:
    """Seconds of each repeat, by what is wanted; the kinds take turns, so that a noisy machine hits them alike.

    Args:
        potential: of conservative and direct forces.
        structures: evaluated as one batch. They move a little between two calls, as in dynamics.
        n_repeats: of each kind, after those that warm up.
    """
    from forceserver.potentials.interface import BatchBuilder

    known = potential.capabilities
    builder, random = BatchBuilder(known.dtype, known.device), np.random.default_rng(1)
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    for repeat in range(N_WARM + n_repeats):
        for name, wanted in KINDS.items():
            moved = [structure.displaced(MOVE, random) for structure in structures]
            began = time.perf_counter()
            answer = potential(builder.build(moved), wanted)
            float(answer.energies[0])  # waits for a device
            if repeat >= N_WARM:
                seconds[name].append(time.perf_counter() - began)
    return seconds
