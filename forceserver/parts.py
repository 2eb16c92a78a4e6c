"""The results of a batch on the host, taken apart by structure: one transfer and one check an array, not a structure.

Units: eV and angstrom, float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

from forceserver.potentials.interface import Evaluation, Forces
from forceserver.structures import FloatArray, Structure, is_finite


class Part(NamedTuple):
    """The share of one structure in an `Evaluation`."""

    energy: float  # eV
    conservative_forces: FloatArray | None  # (n_atoms, 3) eV/A
    conservative_virial: FloatArray | None  # (3, 3) eV
    direct_forces: FloatArray | None
    direct_virial: FloatArray | None
    is_finite: bool  # all of it; False also where something else in its batch is not


def take_apart(evaluation: Evaluation, structures: Sequence[Structure]) -> list[Part]:
    """Bring a batch of results to the host and cut it where its structures end."""
    energies = _to_host(evaluation.energies)
    conservative_forces, conservative_virials = _arrays(evaluation.conservative)
    direct_forces, direct_virials = _arrays(evaluation.direct)
    forces_and_virials = (conservative_forces, conservative_virials, direct_forces, direct_virials)
    finite = is_finite(energies, *[array for array in forces_and_virials if array is not None])
    if len(structures) == 1:
        virials = [None if each is None else each[0] for each in (conservative_virials, direct_virials)]
        return [Part(energies.item(), conservative_forces, virials[0], direct_forces, virials[1], finite)]
    ends = list(accumulate([structure.n_atoms for structure in structures]))
    columns = (
        energies.tolist(),
        _cut(conservative_forces, ends),
        _each(conservative_virials, structures),
        _cut(direct_forces, ends),
        _each(direct_virials, structures),
    )
    return [Part(*shares, finite) for shares in zip(*columns, strict=True)]


def _arrays(forces: Forces | None) -> tuple[FloatArray | None, FloatArray | None]:
    """Forces (n_atoms_total, 3) and virials (n_structures, 3, 3) on the host, where there are any."""
    if forces is None:
        return None, None
    if forces.virials is None:
        return _to_host(forces.forces), None
    return _to_host(forces.forces), _to_host(forces.virials)


def _cut(forces: FloatArray | None, ends: Sequence[int]) -> Sequence[FloatArray | None]:
    """The share of each structure; what stands behind the last `end` is the last one's, and wrong."""
    if forces is None:
        return [None] * len(ends)
    return [forces[begin:end] for begin, end in pairwise((0, *ends[:-1], None))]


def _each(virials: FloatArray | None, structures: Sequence[Structure]) -> Sequence[FloatArray | None]:
    return [None] * len(structures) if virials is None else list(virials)


def _to_host(tensor: Tensor) -> FloatArray:
    array: FloatArray = (tensor if tensor.is_cpu else tensor.cpu()).numpy()
    return array if array.dtype == np.float64 else array.astype(np.float64)
