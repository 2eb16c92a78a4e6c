"""A force for i-PI's `<ffdirect>`: harmonic wells plus a swirl about z, which no energy has. Atomic units.

f = -k r + a z x r on every atom: linear, so that the stationary state under any linear thermostat is known exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ipi.pes.dummy import Dummy_driver

__DRIVER_NAME__ = "swirl"
__DRIVER_CLASS__ = "Swirl"


class Swirl(Dummy_driver):  # type: ignore[misc]
    """Parameters: k (hartree/bohr^2), swirl (hartree/bohr^2)."""

    def __init__(self, k: float, swirl: float, *args: Any, **kwargs: Any) -> None:
        self.k, self.swirl = float(k), float(swirl)
        super().__init__(*args, **kwargs)

    def compute_structure(
        self, cell: np.ndarray, pos: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray, str]:
        where = pos.reshape(-1, 3)
        force = -self.k * where
        force[:, 0] -= self.swirl * where[:, 1]
        force[:, 1] += self.swirl * where[:, 0]
        return 0.5 * self.k * float((where**2).sum()), force.reshape(pos.shape), np.zeros((3, 3)), ""
