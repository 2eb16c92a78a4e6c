"""The messages between i-PI and a force provider: what they carry, and how they are laid out in bytes.

Units on the wire are atomic (bohr, hartree), numbers are native-endian, lattice vectors are the *columns* of a cell.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

from forceserver.errors import BadForces, ProtocolError
from forceserver.structures import FloatArray, is_finite

HEADER_LENGTH = 12
FLOAT64 = np.dtype(np.float64)
INT = struct.Struct("=i")
NO_EXTRA = INT.pack(0)
MAX_INIT_LENGTH = 1 << 20  # bytes; the longest INIT string seen in the wild has a few hundred
MAX_ATOMS = 10_000_000  # in one message, where the caller knows no better


class Header(bytes, Enum):
    """The words of the protocol, as they stand on the wire."""

    STATUS = b"STATUS      "
    INIT = b"INIT        "
    POSDATA = b"POSDATA     "
    GETFORCE = b"GETFORCE    "
    EXIT = b"EXIT        "
    NEEDINIT = b"NEEDINIT    "
    READY = b"READY       "
    HAVEDATA = b"HAVEDATA    "
    FORCEREADY = b"FORCEREADY  "

    __hash__ = bytes.__hash__  # so that a table of headers can be asked with the bytes that came


@dataclass(frozen=True)
class Initialized:
    """i-PI introduced itself: the parameters that the user wrote into the `<ffsocket>`."""

    request_id: int
    parameters: Mapping[str, str]
    batch_size: int

    def __str__(self) -> str:
        pairs = ", ".join(f"{key}: {value}" for key, value in self.parameters.items()) or "no parameters"
        return f"INIT ({pairs}; batch size {self.batch_size})"


@dataclass(frozen=True, eq=False)
class ForceRequest:
    """Structures whose forces i-PI wants, in atomic units and with i-PI's conventions."""

    cells: FloatArray  # (n_structures, 3, 3) bohr, lattice vectors as columns
    positions: FloatArray  # (n_structures, n_atoms, 3) bohr

    @property
    def n_structures(self) -> int:
        return len(self.positions)

    @property
    def n_atoms(self) -> int:
        return int(self.positions.shape[1])

    def __str__(self) -> str:
        return f"POSDATA ({self.n_structures} x {self.n_atoms} atoms)"


@dataclass(frozen=True, eq=False)
class ForceReply:
    """The answer to one `ForceRequest`, in atomic units and with i-PI's conventions."""

    energies: FloatArray  # (n_structures,) hartree
    forces: FloatArray  # (n_structures, n_atoms, 3) hartree/bohr
    virials: FloatArray  # (n_structures, 3, 3) hartree, -dE/d(strain), symmetric
    extras: tuple[str, ...] = ()  # one string a structure, or none at all

    def __str__(self) -> str:
        return f"FORCEREADY ({self.forces.shape[0]} x {self.forces.shape[1]} atoms)"


@dataclass(frozen=True)
class Exit:
    """i-PI said goodbye."""

    def __str__(self) -> str:
        return "EXIT"


Event = Initialized | ForceRequest | Exit


def encode_reply(reply: ForceReply, request: ForceRequest) -> bytes:
    """The answer to GETFORCE. A single structure is laid out as a batch of one.

    This is the last gate before the wire: i-PI believes whatever it gets, NaN included.

    Raises:
        BadForces: the reply has another shape than the request, is not finite, or a virial is not symmetric.
    """
    n_structures, n_atoms, _ = request.positions.shape
    energies, forces, virials = reply.energies, reply.forces, reply.virials
    _check_shape("energies", energies, (n_structures,))
    _check_shape("forces", forces, (n_structures, n_atoms, 3))
    _check_shape("virials", virials, (n_structures, 3, 3))
    if not is_finite(energies, forces, virials):
        raise BadForces("energies, forces or virials for i-PI are not finite")
    virial_bytes = virials.tobytes()
    transposed = virials.swapaxes(1, 2)
    # Equal bits are equal numbers, and cheaper to compare; only -0 and 0 differ in their bits alone.
    if virial_bytes != transposed.tobytes() and not np.array_equal(virials, transposed):
        raise BadForces(
            "a virial for i-PI is not symmetric; i-PI would drop its lower triangle without a word"
        )
    numbers = (energies.tobytes(), INT.pack(n_atoms), forces.tobytes(), virial_bytes)
    return b"".join((Header.FORCEREADY, *numbers, *_encode_extras(reply)))


def _check_shape(name: str, array: FloatArray, shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype != FLOAT64:
        raise BadForces(
            f"{name} for i-PI are {array.dtype} of shape {array.shape}, wanted float64 of {shape}"
        )


def _encode_extras(reply: ForceReply) -> Iterable[bytes]:
    n_structures = len(reply.energies)
    if not reply.extras:
        return (NO_EXTRA,) * n_structures
    if len(reply.extras) != n_structures:
        raise BadForces(f"{len(reply.extras)} extras for i-PI, wanted {n_structures} or none")
    return [INT.pack(len(extra)) + extra for extra in map(str.encode, reply.extras)]


def parse_header(data: bytes) -> Header:
    try:
        return Header(data)
    except ValueError:
        raise ProtocolError(
            f"expected a message of i-PI's protocol, got {data!r}; is it i-PI that listens there?"
        ) from None


def parse_int(data: bytes) -> int:
    value: int = INT.unpack(data)[0]
    return value


def parse_parameters(text: bytes) -> dict[str, str]:
    """Read an INIT string: `key : value` pairs between commas, with stray spaces and empty tokens.

    Raises:
        ProtocolError: not UTF-8.
    """
    try:
        tokens = text.decode().split(",")
    except UnicodeDecodeError:
        raise ProtocolError(f"i-PI sent an INIT string that is not UTF-8: {text[:40]!r}") from None
    pairs = (token.partition(":") for token in tokens if token.strip(" \0"))
    return {key.strip(): value.strip(" \0") for key, _, value in pairs}


def parse_batch_size(text: str) -> int:
    try:
        batch_size = int(text)
    except ValueError:
        batch_size = 0
    if not 1 <= batch_size <= MAX_ATOMS:
        raise ProtocolError(f"i-PI announced a batch size of {text!r}; wanted a positive integer")
    return batch_size
