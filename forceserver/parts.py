"""The results of a batch on the host, taken apart by structure: one transfer and one check an array, not a structure.

Units: eV and angstrom, float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forceserver.potentials.interface import Evaluation, Forces
from forceserver.structures import FloatArray, Structure


@dataclass(frozen=True, eq=False)
class Part:
    """The share of one structure in an `Evaluation`."""

    energy: float  # eV
    conservative_forces: FloatArray | None  # (n_atoms, 3) eV/A
    conservative_virial: FloatArray | None  # (3, 3) eV, exactly symmetric
    direct_forces: FloatArray | None
    direct_virial: FloatArray | None


@dataclass(frozen=True, eq=False)
class Parts:
    """All shares of an `Evaluation`, in the order of the batch."""

    parts: Sequence[Part]
    all_finite: bool


def take_apart(evaluation: Evaluation, structures: Sequence[Structure]) -> Parts:
    """Bring a batch of results to the host and cut it where its structures end."""
    energies = _to_host(evaluation.energies)
    ends = np.cumsum([structure.n_atoms for structure in structures])[:-1]
    conservative_forces, conservative_virials, conservative_finite = _cut(evaluation.conservative, ends)
    direct_forces, direct_virials, direct_finite = _cut(evaluation.direct, ends)
    columns = (energies.tolist(), conservative_forces, conservative_virials, direct_forces, direct_virials)
    parts = [Part(*shares) for shares in zip(*columns, strict=True)]
    return Parts(parts, bool(np.isfinite(energies).all()) and conservative_finite and direct_finite)


def _cut(
    forces: Forces | None, ends: np.ndarray
) -> tuple[Sequence[FloatArray | None], Sequence[FloatArray | None], bool]:
    nothing = [None] * (len(ends) + 1)
    if forces is None:
        return nothing, nothing, True
    components = _to_host(forces.forces)
    finite = bool(np.isfinite(components).all())
    if forces.virials is None:
        return np.split(components, ends), nothing, finite
    virials = _to_host(forces.virials)
    symmetric = 0.5 * (virials + virials.swapaxes(1, 2))  # to the last bit: i-PI keeps one triangle only
    return np.split(components, ends), list(symmetric), finite and bool(np.isfinite(symmetric).all())


def _to_host(tensor: Tensor) -> FloatArray:
    array: FloatArray = tensor.to("cpu", torch.float64).numpy()
    return array
