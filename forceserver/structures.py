"""What travels inside: a structure and its role go in, a result comes out.

Units: eV and angstrom, with ASE's conventions (cells as rows). Atomic units exist only in `protocol` and `exchange`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

ForceKind = Literal["conservative", "direct"]

CONSERVATIVE: ForceKind = "conservative"
DIRECT: ForceKind = "direct"
DEFAULT_MODEL = "default"

MOST_IN_ONE_PRODUCT = 10_000  # numbers; BLAS would wake its threads for more


@dataclass(frozen=True)
class ForceRole:
    """Which forces a connection wants: (1 - direct_fraction) conservative + direct_fraction direct.

    The energy that goes with them is always the conservative one.
    """

    direct_fraction: float = 0.0  # 0 conservative, 1 direct, between: blended
    model: str = DEFAULT_MODEL  # a name given to `forceserver run`

    def __post_init__(self) -> None:
        if not 0.0 <= self.direct_fraction <= 1.0:
            raise ValueError(f"direct_fraction must lie in [0, 1], got {self.direct_fraction}")

    @cached_property
    def kinds(self) -> frozenset[ForceKind]:
        """The kinds of forces that a model must be asked for."""
        if self.direct_fraction == 0.0:
            return frozenset({CONSERVATIVE})
        if self.direct_fraction == 1.0:
            return frozenset({DIRECT})
        return frozenset({CONSERVATIVE, DIRECT})

    def __str__(self) -> str:
        if self.direct_fraction == 0.0:
            return "conservative"
        if self.direct_fraction == 1.0:
            return "direct"
        return f"blended ({self.direct_fraction:g} direct)"


@dataclass(frozen=True, eq=False)
class Structure:
    """One geometry to evaluate."""

    atomic_numbers: IntArray  # (n_atoms,)
    positions: FloatArray  # (n_atoms, 3) A
    cell: FloatArray  # (3, 3) A, lattice vectors as rows
    pbc: BoolArray  # (3,)

    @property
    def n_atoms(self) -> int:
        return len(self.atomic_numbers)

    def displaced(self, spread: float, random: np.random.Generator) -> Structure:
        """A copy whose coordinates are normally distributed about ours, `spread` (A) wide."""
        noise = spread * random.standard_normal(self.positions.shape)
        return replace(self, positions=self.positions + noise)


@dataclass(frozen=True, eq=False)
class Result:
    """What a model says about one structure."""

    energy: float  # eV
    forces: FloatArray  # (n_atoms, 3) eV/A
    virial: FloatArray | None  # (3, 3) eV, -dE/d(strain); None where the model has no such thing
    extras: Mapping[str, Any] = field(default_factory=dict)  # {name: anything JSON can hold}


def is_finite(*arrays: FloatArray) -> bool:
    """Whether arrays hold neither infinities nor NaN: small ones are judged by their squares, unless these overflow."""
    total = 0.0
    for array in arrays:
        if array.size > MOST_IN_ONE_PRODUCT:
            break
        flat = array.reshape(-1)
        total += flat.dot(flat)
    else:
        if math.isfinite(total):
            return True
    return all(bool(np.isfinite(array).all()) for array in arrays)
