"""i-PI, some steps at a time: reads a number of steps from stdin, does them, prints the seconds that they took.

    python benchmarks/stepwise_ipi.py input.xml

It is i-PI's own engine with its own main loop, outputs and checkpoints, as the command `i-pi` runs it; only it stops to listen.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from ipi.engine.simulation import Simulation
from ipi.utils.softexit import softexit


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):  # i-PI's log
        with Path(sys.argv[1]).open() as file:
            simulation = Simulation.load_from_xml(file)
        softexit.hard_exit = True
        for line in sys.stdin:
            simulation.tsteps = simulation.step + int(line)
            began = time.perf_counter()
            simulation.run()
            seconds = time.perf_counter() - began
            simulation.step += 1
            print(seconds, file=sys.__stdout__, flush=True)
        softexit.trigger(status="success", message="no more steps are wanted")


if __name__ == "__main__":
    main()
