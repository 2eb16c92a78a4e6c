"""i-PI's side of the conversation as bytes, written from its source and independent of `forceserver.protocol`.

Atomic units, native-endian, lattice vectors as columns.
"""

from __future__ import annotations

import numpy as np


def header(word: str) -> bytes:
    return word.upper().ljust(12).encode()


STATUS, GETFORCE, EXIT = header("status"), header("getforce"), header("exit")
NEEDINIT, READY, HAVEDATA, FORCEREADY = (
    header(word) for word in ("needinit", "ready", "havedata", "forceready")
)


def init(parameters: str = " ", request_id: int = 0) -> bytes:
    text = parameters.encode()
    return header("init") + np.int32(request_id).tobytes() + np.int32(len(text)).tobytes() + text


def posdata(positions: np.ndarray, cell: np.ndarray) -> bytes:
    """One structure: positions (n_atoms, 3), cell (3, 3) with columns."""
    return (
        header("posdata")
        + cell.tobytes()
        + np.linalg.inv(cell).tobytes()
        + np.int32(len(positions)).tobytes()
        + positions.tobytes()
    )


def posdata_batch(positions: np.ndarray, cells: np.ndarray) -> bytes:
    """A batch: positions (batch_size, n_atoms, 3), cells (batch_size, 3, 3) with columns."""
    cell_block = b"".join(cell.tobytes() + np.linalg.inv(cell).tobytes() for cell in cells)
    return header("posdata") + np.int32(positions.shape[1]).tobytes() + cell_block + positions.tobytes()


def forceready(energies: np.ndarray, forces: np.ndarray, virials: np.ndarray, extras: list[str]) -> bytes:
    """What i-PI expects to read after GETFORCE; a single structure is a batch of one."""
    tail = b"".join(np.int32(len(extra)).tobytes() + extra.encode() for extra in extras)
    n_atoms = np.int32(forces.shape[1]).tobytes()
    return FORCEREADY + energies.tobytes() + n_atoms + forces.tobytes() + virials.tobytes() + tail
