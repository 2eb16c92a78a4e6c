"""Neighbour lists for batches: built rarely by vesin, kept per replica on the device, reused between steps.

Units: angstrom. i-PI names no bead when it asks for forces, and asks for the beads in any order; so each
structure is matched with the nearest reference geometry that is kept, and the match is then proven or dropped.

Why a kept list may be reused. A reference lists all pairs within cutoff + skin of a geometry x0 in a cell h0
(rows). Let h be the cell now, F = h0^-1 h the deformation between the two, and u_i = x_i - x0_i F what atom i did
beyond it, less a whole number of lattice vectors, since atoms may have been wrapped. A pair that is now D apart
was D0 apart, with

    D = D0 F + u_j - u_i,    so    |D0| <= |F^-1| (|D| + 2 max|u|)    with the spectral norm,

and no pair within the cutoff can be missing while |F^-1| (cutoff + 2 max|u|) < cutoff + skin. This holds for any
change of the cell and sees a rotated cell as no change at all. The match itself is a matter of speed only: a poor
one fails the proof and is followed by a build.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor
from vesin import NeighborList

from forceserver.errors import ModelError, UsageError
from forceserver.potentials.interface import Batch
from forceserver.structures import BoolArray, FloatArray

# A. Half of it is what an atom may move: less would not outlast the ring polymer of a hydrogen atom.
DEFAULT_SKIN = 2.0
# Enough atoms to tell the replicas of a liquid apart; the proof looks at all of them.
N_FINGERPRINT_ATOMS = 16
MOST_GROUPINGS = 8  # of batches of different sizes, or with different cells, whose frames are kept
PAUSES = 8  # times the longest pause between two uses of a list, after which an unused one is dropped


@dataclass(frozen=True)
class PairRequest:
    """Which pairs a model wants: all within `cutoff`, from both ends (full list) or each once (half list)."""

    cutoff: float
    full: bool = True


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of one structure."""

    first_atom: Tensor  # (n_pairs,) int64
    second_atom: Tensor  # (n_pairs,) int64
    shifts: Tensor  # (n_pairs, 3), whole numbers of lattice vectors added to the second atom, as floats


@dataclass(frozen=True, eq=False)
class BatchPairs:
    """The pairs of all structures of a batch, one structure after the other, atoms counted within each."""

    first_atom: Tensor  # (n_pairs_total,) int64
    second_atom: Tensor  # (n_pairs_total,) int64
    shifts: Tensor  # (n_pairs_total, 3), whole numbers of lattice vectors added to the second atom, as floats
    n_pairs: tuple[int, ...]  # per structure, on the host
    n_atoms: tuple[int, ...]  # likewise

    @staticmethod
    def join(parts: Sequence[Pairs], n_atoms: tuple[int, ...]) -> BatchPairs:
        """The pairs of each structure, and how many atoms it has."""
        return BatchPairs(
            first_atom=_joined([part.first_atom for part in parts]),
            second_atom=_joined([part.second_atom for part in parts]),
            shifts=_joined([part.shifts for part in parts]),
            n_pairs=tuple(len(part.first_atom) for part in parts),
            n_atoms=n_atoms,
        )

    def vectors(self, positions: Tensor, cells: Tensor) -> Tensor:
        """From the first atom to the second, (n_pairs_total, 3) A; differentiable.

        Args:
            positions: (n_atoms_total, 3) A.
            cells: (n_structures, 3, 3) A, rows.
        """
        first, second = self.first_atom, self.second_atom
        shifts = self.shifts.to(cells.dtype)
        if len(self.n_pairs) == 1:
            laps = shifts @ cells[0]
        else:
            begin = self._for_each_pair([0, *accumulate(self.n_atoms[:-1])])
            first, second = first + begin, second + begin
            structure = self._for_each_pair(range(len(self.n_pairs)))
            laps = (shifts[:, :, None] * cells.index_select(0, structure)).sum(dim=1)
        return positions.index_select(0, second) - positions.index_select(0, first) + laps

    def select(self, inside: Tensor) -> BatchPairs:
        """Those for which `inside` (n_pairs_total,) is true."""
        index = inside.nonzero().squeeze(1)
        n_pairs: tuple[int, ...] = (len(index),)
        if len(self.n_pairs) > 1:
            ends = torch.tensor([*accumulate(self.n_pairs)], device=index.device)
            n_pairs = tuple(b - a for a, b in pairwise([0, *torch.searchsorted(index, ends).tolist()]))
        return replace(
            self,
            first_atom=self.first_atom[index],
            second_atom=self.second_atom[index],
            shifts=self.shifts[index],
            n_pairs=n_pairs,
        )

    def with_mirrored(self) -> BatchPairs:
        """A half list seen from both ends: of each structure first the one half and then the other."""
        return replace(
            self,
            first_atom=self._in_turns(self.first_atom, self.second_atom),
            second_atom=self._in_turns(self.second_atom, self.first_atom),
            shifts=self._in_turns(self.shifts, -self.shifts),
            n_pairs=tuple(2 * n for n in self.n_pairs),
        )

    def _for_each_pair(self, of_structures: Sequence[int]) -> Tensor:
        """A number of its structure for each pair, (n_pairs_total,)."""
        numbers, repeats = torch.tensor([of_structures, self.n_pairs]).to(self.first_atom.device)
        return torch.repeat_interleave(numbers, repeats, output_size=sum(self.n_pairs))

    def _in_turns(self, one: Tensor, other: Tensor) -> Tensor:
        parts = zip(one.split(self.n_pairs), other.split(self.n_pairs), strict=True)
        return torch.cat([half for halves in parts for half in halves])


@dataclass(frozen=True)
class NeighborStatistics:
    """What the lists have cost so far, for the log."""

    builds: int = 0
    reuses: int = 0
    seconds: float = 0.0  # of all threads together

    def __add__(self, other: NeighborStatistics) -> NeighborStatistics:
        return NeighborStatistics(
            self.builds + other.builds, self.reuses + other.reuses, self.seconds + other.seconds
        )


@dataclass(frozen=True)
class _Kind:
    """Only structures of one kind can share a reference."""

    n_atoms: int
    pbc: tuple[bool, bool, bool]


@dataclass(frozen=True, eq=False)
class _Group:
    """The structures of one kind in a batch, so that all are matched at once; all but their positions."""

    kind: _Kind
    members: tuple[int, ...]  # places in the batch
    frames: FloatArray  # (n_members, 3, 3) A: cells, with unit vectors along directions that are not periodic
    inverse_frames: FloatArray  # (n_members, 3, 3) 1/A
    frames_there: Tensor  # both on the device
    inverse_frames_there: Tensor
    periodic: Tensor  # (3,) bool, there too

    def stack(self, positions: Tensor, n_atoms: tuple[int, ...]) -> Tensor:
        """The positions of the members, (n_members, n_atoms, 3) A, out of those of the batch."""
        if len(self.members) == len(n_atoms):
            return positions.reshape(len(n_atoms), -1, 3)
        parts = positions.split(n_atoms)
        return torch.stack([parts[place] for place in self.members])


@dataclass(frozen=True, eq=False)
class _Reference:
    """The pairs within cutoff + skin of one geometry."""

    kind: _Kind
    frame: FloatArray  # (3, 3) A
    fractional: Tensor  # (n_atoms, 3), in units of `frame`
    fingerprint: Tensor  # (n_fingerprint_atoms, 3), some rows of `fractional`
    pairs: Pairs  # each once


@dataclass(eq=False)
class _Kept:
    """A reference, and how it has been used, counted in structures served."""

    reference: _Reference
    last_used: int
    longest_pause: int = 0  # between two uses

    def note_use(self, now: int) -> None:
        self.longest_pause = max(self.longest_pause, now - self.last_used)
        self.last_used = now


class NeighborLists:
    """The pairs that a model requests, for batch after batch.

    They are the pairs of lists made afresh: a kept list is filtered by the true distances before it leaves. What
    is kept holds each pair once; the other end is added to what remains, so that only half of it is filtered. Their
    order is always the same too, whichever geometry they were listed for.

    A replica that has moved too far gets a new list, and leaves its old one behind: lists that rest for much longer than any
    list ever did between two uses are dropped.

    Several threads may ask at the same time.
    """

    def __init__(
        self, requests: Sequence[PairRequest], *, skin: float = DEFAULT_SKIN, max_replicas: int = 256
    ) -> None:
        """
        Args:
            requests: one per list; all are cut out of one list with the largest cutoff.
            skin: A, by how much a kept list reaches beyond the cutoff; 0 builds afresh each time, keeps nothing.
            max_replicas: how many lists are kept, 40 bytes per pair each; the least recently used go first.
        """
        if skin < 0.0 or max_replicas < 1:
            raise ValueError(f"wanted skin >= 0 and max_replicas >= 1, got {skin} and {max_replicas}")
        self._requests = tuple(requests)
        self._skin = skin
        self._max_replicas = max_replicas
        self._cutoff = max((request.cutoff for request in self._requests), default=0.0)
        self._kept: OrderedDict[int, _Kept] = OrderedDict()  # least recently used first
        self._served = 0  # structures
        self._groups: dict[tuple[bytes, bytes, tuple[int, ...]], Sequence[_Group]] = {}
        self._builds = 0
        self._reuses = 0
        self._seconds = 0.0
        self._lock = threading.Lock()  # of all that changes

    @property
    def statistics(self) -> NeighborStatistics:
        return NeighborStatistics(self._builds, self._reuses, self._seconds)

    @property
    def n_kept(self) -> int:
        return len(self._kept)

    def find(self, batch: Batch) -> tuple[BatchPairs, ...]:
        """The pairs of a batch, for each request.

        Raises:
            UsageError: the cell of a periodic structure has no volume.
            ModelError: a position or a cell vector is not finite.
        """
        if not self._requests:
            return ()
        start = time.perf_counter()
        # Kept lists outlive this call, and tensors born under inference_mode could not enter a later graph.
        with torch.inference_mode(False), torch.no_grad():
            found = self._find(batch)
        seconds = time.perf_counter() - start
        with self._lock:
            self._seconds += seconds
        return found

    def _find(self, batch: Batch) -> tuple[BatchPairs, ...]:
        # float64 whatever the model computes in: whether a pair is inside must not depend on how it was found.
        precision = torch.float32 if batch.positions.device.type == "mps" else torch.float64
        positions, cells = batch.positions.to(precision), batch.cells.to(precision)
        candidates: dict[int, Pairs] = {}
        for group in self._group(batch, cells):
            members = group.stack(positions, batch.n_atoms)
            with self._lock:
                self._served += len(members)
                for row, kept in enumerate(self._reuse(group, members)):
                    candidates[group.members[row]] = (
                        self._build(group, members, row) if kept is None else kept
                    )
                    self._reuses += kept is not None
        joined = BatchPairs.join([candidates[place] for place in range(batch.n_structures)], batch.n_atoms)
        distances = torch.linalg.vector_norm(joined.vectors(positions, cells), dim=1)
        selected = []
        for request in self._requests:
            inside = joined.select(distances <= request.cutoff)
            selected.append(inside.with_mirrored() if request.full else inside)
        return tuple(selected)

    def _group(self, batch: Batch, cells: Tensor) -> Sequence[_Group]:
        """A batch by kind of structure. Its cells, which seldom change, come to the host; its positions stay."""
        host_cells = cells.cpu().numpy().astype(np.float64)
        host_pbc = batch.pbc.cpu().numpy()
        key = (host_cells.tobytes(), host_pbc.tobytes(), batch.n_atoms)
        groups = self._groups.get(key)
        if groups is None:
            groups = _sort_by_kind(host_cells, host_pbc, batch.n_atoms, cells)
            with self._lock:
                if len(self._groups) >= MOST_GROUPINGS:
                    self._groups.clear()
                self._groups[key] = groups
        return groups

    def _reuse(self, group: _Group, positions: Tensor) -> list[Pairs | None]:
        """For each member of a group: the nearest reference, if it is proven to hold all pairs, else None."""
        alike = [
            (key, kept.reference) for key, kept in self._kept.items() if kept.reference.kind == group.kind
        ]
        if not alike:
            return [None] * len(group.members)
        fractional = positions @ group.inverse_frames_there
        nearest = alike * len(positions)
        if len(alike) > 1:
            kept_fingerprints = torch.stack([kept.fingerprint for _, kept in alike])
            moved, _ = _remove_laps(_fingerprint(fractional)[:, None] - kept_fingerprints, group.periodic)
            closeness = (moved @ group.frames_there[:, None]).square().sum(dim=(2, 3))
            nearest = [alike[choice] for choice in closeness.argmin(dim=1).tolist()]

        moved, laps = _remove_laps(
            fractional - torch.stack([kept.fractional for _, kept in nearest]), group.periodic
        )
        largest_moves = torch.linalg.vector_norm(moved @ group.frames_there, dim=2).amax(dim=1)
        n_laps = laps.abs().sum(dim=(1, 2))
        matches: list[Pairs | None] = []
        for row, (largest_move, n_lap) in enumerate(torch.stack([largest_moves, n_laps], dim=1).tolist()):
            key, kept = nearest[row]
            stretch = np.linalg.norm(group.inverse_frames[row] @ kept.frame, ord=2)
            # False for positions that are not finite: they go on to `_build`, which says so.
            if stretch * (self._cutoff + 2.0 * largest_move) < self._cutoff + self._skin:
                self._kept[key].note_use(self._served)
                self._kept.move_to_end(key)
                matches.append(_follow_laps(kept.pairs, laps[row]) if n_lap else kept.pairs)
            else:
                matches.append(None)
        return matches

    def _build(self, group: _Group, positions_there: Tensor, row: int) -> Pairs:
        """List all pairs of one member on the host, and keep them on the device while there is room."""
        self._builds += 1
        frame = group.frames[row]
        positions = positions_there[row].cpu().numpy().astype(np.float64)
        if not (np.isfinite(positions).all() and np.isfinite(frame).all()):
            raise ModelError(
                "no neighbour list: a position or a cell vector is not finite. The simulation has probably blown "
                "up. Remedy: look at its last steps, and at the time step"
            )
        builder = NeighborList(cutoff=self._cutoff + self._skin, full_list=False)
        atoms, shifts = builder.compute(
            points=positions, box=frame, periodic=group.kind.pbc, quantities="PS", copy=False
        )
        # In an order of their own: what becomes of a structure then depends, to the last bit, on it alone.
        order = np.lexsort((*shifts.T, atoms[:, 1], atoms[:, 0]))
        atoms, shifts = atoms[order], shifts[order]
        device = positions_there.device
        fractional = torch.as_tensor(positions @ group.inverse_frames[row]).to(positions_there)
        reference = _Reference(
            kind=group.kind,
            frame=frame,
            fractional=fractional,
            fingerprint=_fingerprint(fractional),
            pairs=Pairs(
                first_atom=torch.as_tensor(atoms[:, 0].astype(np.int64)).to(device),
                second_atom=torch.as_tensor(atoms[:, 1].astype(np.int64)).to(device),
                shifts=torch.as_tensor(shifts.astype(np.float64)).to(positions_there),
            ),
        )
        if self._skin > 0.0:
            self._forget_abandoned()
            self._kept[self._builds] = _Kept(reference, self._served)
            if len(self._kept) > self._max_replicas:
                self._kept.popitem(last=False)
        return reference.pairs

    def _forget_abandoned(self) -> None:
        """Drop lists whose replicas have moved on to others, the longest unused first.

        At the start, when no list has been used twice, all that there are may still be wanted one after the other.
        """
        longest = max((kept.longest_pause for kept in self._kept.values()), default=0)
        patience = max(PAUSES * longest, 2 * len(self._kept))
        while self._kept:
            key, kept = next(iter(self._kept.items()))
            if self._served - kept.last_used <= patience:
                break
            del self._kept[key]


def _sort_by_kind(
    cells: FloatArray, pbc: BoolArray, n_atoms: tuple[int, ...], cells_there: Tensor
) -> Sequence[_Group]:
    members: dict[_Kind, list[int]] = {}
    for place, (n, (a, b, c)) in enumerate(zip(n_atoms, pbc.tolist(), strict=True)):
        members.setdefault(_Kind(n, (a, b, c)), []).append(place)
    groups = []
    for kind, places in members.items():
        frames = np.stack([_complete_frame(cells[place], pbc[place]) for place in places])
        inverse_frames = np.asarray(np.linalg.inv(frames), dtype=np.float64)
        groups.append(
            _Group(
                kind=kind,
                members=tuple(places),
                frames=frames,
                inverse_frames=inverse_frames,
                frames_there=torch.as_tensor(frames).to(cells_there),
                inverse_frames_there=torch.as_tensor(inverse_frames).to(cells_there),
                periodic=torch.tensor(kind.pbc, device=cells_there.device),
            )
        )
    return groups


def _complete_frame(cell: FloatArray, pbc: BoolArray) -> FloatArray:
    """The cell, with unit vectors normal to the periodic directions in place of those that are not."""
    frame = cell
    if not pbc.all() and np.isfinite(cell).all():
        _, _, axes = np.linalg.svd(cell[pbc], full_matrices=True)
        frame = cell.copy()
        frame[~pbc] = axes[int(pbc.sum()) :]
    if np.linalg.det(frame) == 0.0:
        axes_names = ", ".join(name for name, periodic in zip("abc", pbc, strict=True) if periodic)
        raise UsageError(
            f"the structure is periodic along {axes_names}, but its cell {cell.tolist()} does not span these "
            "directions. Remedy: give independent cell vectors, or make the structure non-periodic"
        )
    return frame


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _fingerprint(fractional: Tensor) -> Tensor:
    """Some atoms, spread over a structure: (..., n_atoms, 3) to (..., n_fingerprint_atoms, 3)."""
    # Uneven steps: a fixed one could meet the same atom of every molecule.
    n_atoms = fractional.shape[-2]
    places = np.linspace(0, n_atoms - 1, min(n_atoms, N_FINGERPRINT_ATOMS)).astype(np.int64)
    return fractional[..., torch.as_tensor(places, device=fractional.device), :]


def _remove_laps(moved: Tensor, periodic: Tensor) -> tuple[Tensor, Tensor]:
    """Split fractional displacements (..., 3) into a part within half a cell and whole lattice vectors."""
    laps = torch.round(moved) * periodic
    return moved - laps, laps


def _follow_laps(pairs: Pairs, laps: Tensor) -> Pairs:
    """The same pairs after each atom has moved by whole lattice vectors, `laps` (n_atoms, 3)."""
    # x_i = x0_i + laps_i h, so the same pair now needs shift0 + laps_i - laps_j.
    shifts = pairs.shifts + laps.index_select(0, pairs.first_atom) - laps.index_select(0, pairs.second_atom)
    return Pairs(pairs.first_atom, pairs.second_atom, shifts)
