"""How long a thread of torch that waits for the others holds its core. To be decided before torch is loaded.

Between the loops of a model torch's threads wait for each other: GNU OpenMP has them spin for milliseconds, or, with
OMP_WAIT_POLICY=PASSIVE, sleep at once. Spinning is fast while every thread has a core of its own; a thread whose core is taken,
by i-PI or anybody else, holds up all others, each spinning on the core that it could run on. Sleeping costs a wake-up a loop.
A short spin has most of both. An outer step of multiple time stepping (M = 4, water-pet, 192 atoms, latency 1e-3), two threads on
two cores, ms:

    GOMP_SPINCOUNT                0 (PASSIVE)   300   1000   10,000   300,000 (libgomp's own)   one thread
    nobody else on the cores             213     204    178      167        162                      225
    a busy process on one of them        255     284    308      728      1,905                      238
"""

from __future__ import annotations

import os

SPIN_COUNT = 1000
USERS_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def spin_briefly() -> None:
    """Let threads that wait spin for some ten microseconds, here and in every child, unless the user has said how they wait."""
    if not any(name in os.environ for name in USERS_CHOICES):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
