"""The results of a batch on the host, taken apart by structure: one transfer and one check an array, not a structure.

Units: eV and angstrom, float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from forceserver.potentials.interface import Evaluation, Forces
from forceserver.structures import FloatArray, Structure, is_finite


@dataclass(frozen=True, eq=False)
class Part:
    """The share of one structure in an `Evaluation`."""

    energy: float  # eV
    conservative_forces: FloatArray | None  # (n_atoms, 3) eV/A
    conservative_virial: FloatArray | None  # (3, 3) eV, exactly symmetric
    direct_forces: FloatArray | None
    direct_virial: FloatArray | None
    is_finite: bool  # all of it; False also where something else in its batch is not


def take_apart(evaluation: Evaluation, structures: Sequence[Structure]) -> list[Part]:
    """Bring a batch of results to the host and cut it where its structures end."""
    energies = _to_host(evaluation.energies)
    ends = list(accumulate(structure.n_atoms for structure in structures))[:-1]
    conservative_forces, conservative_virials, conservative_finite = _cut(evaluation.conservative, ends)
    direct_forces, direct_virials, direct_finite = _cut(evaluation.direct, ends)
    columns = (energies.tolist(), conservative_forces, conservative_virials, direct_forces, direct_virials)
    finite = is_finite(energies) and conservative_finite and direct_finite
    return [Part(*shares, finite) for shares in zip(*columns, strict=True)]


def _cut(
    forces: Forces | None, ends: Sequence[int]
) -> tuple[Sequence[FloatArray | None], Sequence[FloatArray | None], bool]:
    nothing = [None] * (len(ends) + 1)
    if forces is None:
        return nothing, nothing, True
    components = _to_host(forces.forces)
    finite = is_finite(components)
    shares = [components[begin:end] for begin, end in pairwise((0, *ends, None))]
    if forces.virials is None:
        return shares, nothing, finite
    virials = _to_host(forces.virials)
    symmetric = 0.5 * (virials + virials.swapaxes(1, 2))  # to the last bit: i-PI keeps one triangle only
    return shares, list(symmetric), finite and is_finite(symmetric)


def _to_host(tensor: Tensor) -> FloatArray:
    if tensor.dtype is not torch.float64 or not tensor.is_cpu:
        tensor = tensor.to("cpu", torch.float64)
    array: FloatArray = tensor.numpy()
    return array
