"""i-PI as a child of the bench: the engine behind the program `i-pi`, through i-PI's scripting interface, so that it can be
held between two steps.

    python -m forceserver.bench.stepper input.xml DESCRIPTOR

It says `ready` when its sockets are open. `look` has the forces of the present geometry evaluated; `run` makes so many steps and
answers with the time at which the first began and each of them ended (s, on the clock that all processes share); anything else
ends it.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import time
from pathlib import Path

from forceserver.bench.control import Control

PR_SET_PDEATHSIG = 1


def main() -> None:
    die_with_parent()
    path, control = Path(sys.argv[1]), Control.from_descriptor(int(sys.argv[2]))
    from ipi.scripting import InteractiveSimulation
    from ipi.utils.softexit import softexit

    ended: list[float] = []

    def note_time(properties: object) -> float:
        """A property that i-PI writes into its output at the end of every step."""
        ended.append(time.perf_counter())
        return ended[-1]

    simulation = InteractiveSimulation(path.read_text(), custom_properties={"clock": note_time})
    softexit.hard_exit = True  # as the program does: it leaves the process as soon as its clients are told
    control.send(ready=True)
    while order := control.receive():
        if order["do"] == "look":
            control.send(
                potential_eV=simulation.properties("potential"), force=simulation.properties("forcemod")
            )
        elif order["do"] == "run":
            ended.clear()
            began = time.perf_counter()
            simulation.run(order["steps"])
            control.send(
                ended=[began, *ended[-order["steps"] :]]
            )  # before its first step it writes the start as well
        else:
            break
    softexit.trigger(status="success", message="the bench is over.")


def die_with_parent() -> None:
    """Be killed when the bench dies: a frozen process would heed no gentler signal, and stay frozen for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
