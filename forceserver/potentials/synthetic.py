"""A synthetic direct head: the true force of a closed-form potential plus a made-up field that no energy has.

Units: eV and angstrom. The direct forces of a trained network are wrong by an amount that nobody knows. These are wrong by an
amount that is chosen, and so they test whatever claims to detect, measure or cure non-conservative forces:

    f_D = f_C + field,    field on j from i:  f_ij = amplitude A(r) (n x r_ij/r),    f_ji = -f_ij

with n a fixed axis of space and A(r) = sin(2 pi (r - NODE) / WAVELENGTH), faded out from ONSET to CUTOFF.

Like the direct heads of trained models it is smooth, short-ranged, independent of the order of equal atoms and of
the origin, conserves momentum, and does work around loops: 2 pi r amplitude A(r) for a pair on a circle around the axis.
Its curl, amplitude (A' + A/r) n for a pair in the plane normal to the axis, is what lambda counts. The node lies at the
length of an O-H bond, where the curl is largest and the force vanishes: a mean force there would be a steady
torque, and spin the molecules. It is not rotation equivariant; neither are unconstrained networks. The virial is the sum of
r_ij f_ij, symmetrised: its trace vanishes, so the pressure is the true one and only the shear stress is wrong.

`strength` is about lambda = |J_anti| / |J| in liquid water (classical q-TIP4P/F, 64 molecules, 300 K): AMPLITUDE_PER_STRENGTH
is the mean over six configurations, 150 fs apart, of |J| / |J_anti of the unit field|, 5.29 +- 0.10 eV/A. In other systems
it is no more than a strength. Measured there in runs of about 1 ps, two copies each, NVE from 300 K, heat in 3 N k_B:

    strength        0.004   0.010   0.015   0.020       published: PET, lambda 0.004, 7 K/ps
    heating, K/ps       2      22      68     118                  ORB-v2, lambda 0.015, about 70 K/ps

Under a global thermostat of 10 fs (four copies, 0.6 ps, one start) the hydrogens are hotter than the oxygens by 88 K at
strength 0.05, where the mean temperature is 317 K, and by -23 K without a field. At 0.015 the mean error of a force
component is 16 meV/A.

It costs more than the conservative force that it contains: a synthetic head shows what direct forces do, never what
they save. Users must be told that it is synthetic: `capabilities.name` says so and `synthetic_direct` is set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from forceserver.errors import ModelError, UsageError
from forceserver.potentials.interface import Batch, Capabilities, Evaluation, Forces, Potential
from forceserver.potentials.pairs import find_pairs, switch
from forceserver.potentials.specification import check_keys, read_numbers
from forceserver.structures import CONSERVATIVE, DIRECT, ForceKind

WAVELENGTH = 0.4  # A
NODE = 0.965  # A, the length of an O-H bond in liquid water
ONSET = 1.0  # A
CUTOFF = 2.5  # A
AXIS = (0.0, 0.0, 1.0)
AMPLITUDE_PER_STRENGTH = 5.3  # eV/A


@dataclass(frozen=True)
class SwirlField:
    """The pair field that no energy has."""

    amplitude: float  # eV/A

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Forces (n_atoms_total, 3) in eV/A and virials (n_structures, 3, 3) in eV of the field alone."""
        pairs = find_pairs(batch, CUTOFF)
        vectors = pairs.vectors(batch)
        distances = torch.linalg.vector_norm(vectors, dim=1)
        axis = vectors.new_tensor(AXIS).expand_as(vectors)
        tangents = torch.linalg.cross(axis, vectors) / distances[:, None]
        pair_forces = (self.amplitude * radial_profile(distances))[:, None] * tangents
        forces = torch.zeros_like(batch.positions).index_add(0, pairs.second, pair_forces)
        forces = forces.index_add(0, pairs.first, -pair_forces)
        virials = pairs.sum_per_structure(vectors[:, :, None] * pair_forces[:, None, :], batch.n_structures)
        return forces, 0.5 * (virials + virials.transpose(1, 2))


@dataclass(frozen=True)
class SyntheticDirect:
    """A potential with conservative forces, and direct ones made of them and of a swirl field."""

    conservative: Potential
    strength: float  # about lambda, in liquid water

    @property
    def field(self) -> SwirlField:
        return SwirlField(self.strength * AMPLITUDE_PER_STRENGTH)

    @property
    def capabilities(self) -> Capabilities:
        true = self.conservative.capabilities
        return replace(
            true,
            name=f"{true.name} + synthetic direct head (strength {self.strength:g})",
            direct=True,
            direct_virial=True,
            synthetic_direct=True,
        )

    def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        """Evaluate the conservative force once, whatever is wanted, and add the field where direct forces are.

        Raises:
            ModelError: the conservative potential cannot evaluate the batch.
        """
        if DIRECT not in want:
            return self.conservative(batch, want)
        true = self.conservative(batch, frozenset({CONSERVATIVE}))
        if true.conservative is None or true.conservative.virials is None:
            raise ModelError(
                f"{self.conservative.capabilities.name} gave no conservative forces when asked for them"
            )
        field_forces, field_virials = self.field.evaluate(batch)
        direct = Forces(true.conservative.forces + field_forces, true.conservative.virials + field_virials)
        return replace(true, conservative=true.conservative if CONSERVATIVE in want else None, direct=direct)


def radial_profile(distances: Tensor) -> Tensor:
    """A(r), the field of a pair at unit amplitude."""
    return torch.sin(2.0 * math.pi * (distances - NODE) / WAVELENGTH) * switch(distances, ONSET, CUTOFF)


def split_direct(
    scheme: str, options: Mapping[str, str], other_keys: Iterable[str]
) -> tuple[dict[str, str], float | None]:
    """Take the option `direct` (the strength of a synthetic direct head, None without one) out of others.

    Raises:
        UsageError: it is not a finite number, or negative, or an option is neither this nor among `other_keys`.
    """
    check_keys(scheme, options, (*other_keys, "direct"))
    others = {key: value for key, value in options.items() if key != "direct"}
    if "direct" not in options:
        return others, None
    strength = read_numbers(scheme, {"direct": options["direct"]}, {"direct": 0.0})["direct"]
    if strength < 0.0:
        raise UsageError(f"{scheme}: option 'direct' must not be negative, got {strength:g}")
    return others, strength


def with_direct(potential: Potential, strength: float | None) -> Potential:
    """Give a potential a synthetic direct head, unless the strength is None."""
    return potential if strength is None else SyntheticDirect(potential, strength)
