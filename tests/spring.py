"""A spring for each atom, as the potential of tests that look at what surrounds a model, and go wrong on purpose."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from forceserver.potentials.interface import Batch, Capabilities, Evaluation, Forces
from forceserver.structures import ForceKind, Structure

BOHR = 1.8897261  # per angstrom, i-PI's
HARTREE = 0.036749326  # per eV, i-PI's
CELL = np.diag([20.0, 21.0, 22.0])


class Spring:
    """E = |r|^2 eV/A^2 per atom, with what a test wants to go wrong. Its direct forces are the true ones plus a constant."""

    def __init__(self, *, spoil: str = "", fits: int = 10**9, direct_virial: bool = True) -> None:
        self.spoil, self.fits, self.calls = spoil, fits, []
        self.capabilities = Capabilities(
            "spring", None, None, torch.float64, torch.device("cpu"), True, True, direct_virial
        )

    def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        if batch.n_structures > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.spoil == "raise":
            raise RuntimeError("shape mismatch\nin layer 3")
        self.calls.append((batch.n_structures, want))
        squares = (batch.positions**2).sum(1)
        energies = torch.zeros(batch.n_structures, dtype=torch.float64).index_add(
            0, batch.atom_to_structure, squares
        )
        forces = -2.0 * batch.positions
        virials = torch.eye(3, dtype=torch.float64).repeat(batch.n_structures, 1, 1)
        if self.spoil == "energy":
            energies[0] = torch.nan
        if self.spoil == "forces":
            forces[-1, 0] = torch.inf
        if self.spoil == "virial":
            virials[0, 0, 0] = torch.nan
        if self.spoil == "shape":
            forces = forces[:-1]
        direct = Forces(forces + 1.0, virials if self.capabilities.direct_virial else None)
        return Evaluation(
            energies,
            Forces(forces, virials) if "conservative" in want else None,
            direct if "direct" in want else None,
        )


class TwinSpring(Spring):
    """A spring that may be evaluated in several threads, and remembers who did, with how many threads of torch."""

    def __init__(self, *, fits_at_once: int = 10**9, seconds: float = 0.02) -> None:
        super().__init__()
        self.fits_at_once, self.seconds = fits_at_once, seconds
        self.callers: list[tuple[str, int]] = []
        self.under_way: list[Batch] = []
        self.most_under_way = 0

    def twin(self) -> TwinSpring:
        return self

    def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        self.callers.append((threading.current_thread().name, torch.get_num_threads()))
        self.under_way.append(batch)
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        try:
            time.sleep(self.seconds)
            if len(self.under_way) > self.fits_at_once:
                raise RuntimeError(
                    "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
                )
            return super().__call__(batch, want)
        finally:
            self.under_way.remove(batch)


def structure(n_atoms: int = 2, seed: int = 0) -> Structure:
    positions = np.random.default_rng(seed).normal(size=(n_atoms, 3))
    return Structure(np.ones(n_atoms, dtype=np.int64), positions, np.eye(3) * 10, np.ones(3, dtype=bool))


@contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """So many threads of torch, and at the end as many as before, whatever was set meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
