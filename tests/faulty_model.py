"""A harmonic trap that goes wrong on demand, served for real: `ase:faulty_model:FaultyCalculator,fault=nan,at=20`.

Units: eV and angstrom. Needs this folder on PYTHONPATH.
"""

from __future__ import annotations

import os
import signal
import time
import weakref
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from torch import OutOfMemoryError

from forceserver.messages import Header
from forceserver.protocol import Session

SPRING = 2.0  # eV/A^2, as `harmonic:k=2.0`

NAP_SECONDS = 6.0

Fault = Literal["none", "raise", "nan", "shape", "hang", "nap", "death", "half"]


class FaultyCalculator(Calculator):
    """E = SPRING/2 |r|^2, until something goes wrong.

    Args:
        fault: what goes wrong: an exception, a force that is NaN, one atom too few, no answer at all, one that takes long,
            death in the worst moment (`die_between_promise_and_delivery`), or in the middle of a reply (`die_in_a_reply`).
        at: in which evaluation of this process (from 0), and in every one after it, unless it was a nap.
        when: not before this file exists.
        fits: how many structures fit in memory at once. Each takes its share until its whole batch is done, as on a device,
            and the one too many raises what torch raises.
        pause: seconds that each evaluation takes.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  ASE's own way to declare them

    def __init__(
        self,
        fault: Fault = "none",
        at: int = 0,
        when: str = "",
        fits: int | None = None,
        pause: float = 0.0,
    ) -> None:
        super().__init__()
        self.fault, self.at, self.when, self.fits, self.pause = fault, at, when, fits, pause
        self.n_evaluations = 0
        self.in_memory: list[weakref.ref[Atoms]] = []
        if fault == "death":
            die_between_promise_and_delivery(when)
        if fault == "half":
            die_in_a_reply(when)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = ("energy",),
        system_changes: Any = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        assert atoms is not None
        self.in_memory = [each for each in self.in_memory if each() is not None] + [weakref.ref(atoms)]
        if self.fits is not None and len(self.in_memory) > self.fits:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        time.sleep(self.pause)
        goes_wrong = self.n_evaluations >= self.at and (not self.when or Path(self.when).exists())
        self.n_evaluations += 1
        forces = -SPRING * atoms.positions
        if goes_wrong:
            forces = self.spoil(forces)
        self.results = {"energy": 0.5 * SPRING * float((atoms.positions**2).sum()), "forces": forces}

    def spoil(self, forces: np.ndarray) -> np.ndarray:
        if self.fault == "raise":
            raise ValueError("the neighbour list is full")
        if self.fault == "hang":
            time.sleep(3600.0)
        if self.fault == "nap":
            self.fault = "none"
            time.sleep(NAP_SECONDS)
        if self.fault == "nan":
            forces[-1, 2] = np.nan
        return forces[:-1] if self.fault == "shape" else forces


def die_between_promise_and_delivery(when: str) -> None:
    """Once a file exists: say HAVEDATA on one connection only, and be killed when i-PI collects there.

    As by an OOM killer in the unluckiest moment of an i-PI without consolidated messages: it waits for forces on one connection
    and for HAVEDATA on the others.
    """
    data_to_send = Session.data_to_send
    promised: list[Session] = []

    def data_until_death(self: Session) -> bytes:
        data = data_to_send(self)
        if data.startswith(Header.FORCEREADY) and self in promised:
            os.kill(os.getpid(), signal.SIGKILL)
        if data != Header.HAVEDATA or not Path(when).exists():
            return data
        if promised:
            return b""
        promised.append(self)
        return data

    Session.data_to_send = data_until_death  # type: ignore[method-assign]


def die_in_a_reply(when: str) -> None:
    """Once a file exists: send one half of some forces, and be killed at the next opportunity."""
    data_to_send = Session.data_to_send
    cut: list[Session] = []

    def half_of_data(self: Session) -> bytes:
        if cut:
            os.kill(os.getpid(), signal.SIGKILL)
        data = data_to_send(self)
        if not data.startswith(Header.FORCEREADY) or not Path(when).exists():
            return data
        cut.append(self)
        return data[: len(data) // 2]

    Session.data_to_send = half_of_data  # type: ignore[method-assign]
