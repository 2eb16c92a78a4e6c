"""i-PI's trajectories, mapped into memory and parsed in blocks: memory does not grow with their length.

Values come in base units, converted from the header of each file (`velocities{atomic_unit} cell{angstrom}`); cells have
lattice vectors as rows, in angstrom. Formats: i-PI's xyz, and extxyz as i-PI writes it for format='ase'.

i-PI's xyz has lines of fixed width (`%8s %12.5e %12.5e %12.5e`), so that whole blocks of frames are parsed as integers,
eight characters at a time, without a Python object per number. Lines of any other width take a slower way.
"""

from __future__ import annotations

import itertools
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.errors import UnreadableRun
from analysis.series import FloatArray, IntArray
from analysis.units import base_unit, to_base, trajectory_dimensions

LINE, FIRST, NUMBER = 48, 9, 13  # bytes per atom line, offset of the first number, from number to number
BLOCK_BYTES = 200_000  # parsed at once: large enough to amortise numpy, small enough to stay in cache
CHECKED_FRAMES = 1000  # at once, when a file is opened
U8, U4 = np.uint64, np.uint32
CELL = re.compile(rb"CELL[\(\[\{]abcABC[\)\]\}]:((?:\s+[-+0-9.eE]+){6})")
STEP = re.compile(rb"Step:\s*(\d+)")
BEAD = re.compile(rb"Bead:\s*(\d+)")
QUANTITY = re.compile(rb"(\w+)\{([^}]*)\}\s+cell\{([^}]*)\}")
LATTICE = re.compile(rb'Lattice="([^"]*)"')
PROPERTIES = re.compile(rb"Properties=(\S+)")


def _scales() -> FloatArray:
    """What to multiply six digits with, by a word of bits: 0-3 tens and 8-11 ones of the exponent, 4 and 5 the signs.

    Bit 4 is that which tells '-' from '+', bit 5 that which tells '-' from a space.
    """
    word = np.arange(0x0F40)
    tens, ones = word & 0xF, (word >> 8) & 0xF
    exponent = np.where(word & 0x10, -1, 1) * (10 * tens + ones)
    return np.where(word & 0x20, -1.0, 1.0) * 10.0 ** (exponent - 5.0)


SCALES = _scales()


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive chosen frames."""

    steps: IntArray  # (n_frames,)
    values: FloatArray  # (n_frames, n_atoms, 3) in base units
    cells: FloatArray  # (n_frames, 3, 3) A, lattice vectors as rows


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One trajectory file of i-PI, read where and when it is asked for."""

    path: Path
    quantity: str  # positions, velocities, forces, x_centroid, ...
    bead: int
    labels: tuple[str, ...]  # (n_atoms,)
    unit: str  # of the values handed out
    factor: float  # from the file's unit to `unit`
    cell_factor: float
    offsets: IntArray  # (n_frames,) byte at which each frame starts
    frame_bytes: int  # length of a frame where all have the same, else 0
    columns: slice | None = None  # of an extxyz line; None: i-PI's xyz
    n_torn: int = 0  # frames that were left out, an unfinished last one aside

    @property
    def n_atoms(self) -> int:
        return len(self.labels)

    @property
    def n_frames(self) -> int:
        return len(self.offsets)

    @cached_property
    def bytes_(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def step(self, frame: int) -> int:
        """i-PI's step of a frame."""
        match = STEP.search(self._header(frame))
        return int(match.group(1)) if match else frame

    def cell(self, frame: int) -> FloatArray:
        """Lattice vectors as rows, (3, 3) A."""
        return _cell(self._header(frame)) * self.cell_factor

    def frames(self, start: int = 0, stop: int | None = None, stride: int = 1) -> Block:
        """The chosen frames at once; `blocks` for more than fit into memory."""
        chosen = np.arange(start, self.n_frames if stop is None else min(stop, self.n_frames), stride)
        return self._parse(chosen)

    def blocks(self, start: int = 0, stop: int | None = None, stride: int = 1) -> Iterator[Block]:
        """The chosen frames, a few megabytes at a time."""
        chosen = np.arange(start, self.n_frames if stop is None else min(stop, self.n_frames), stride)
        size = max(1, BLOCK_BYTES // (LINE * self.n_atoms))
        for first in range(0, len(chosen), size):
            part = chosen[first : first + size]
            yield self._parse(part)
            self._release(part)

    def _release(self, frames: IntArray) -> None:
        """Hand the pages of frames that were read back to the system: the map must not grow to the size of the file."""
        start = int(self.offsets[frames[0]]) // mmap.PAGESIZE * mmap.PAGESIZE
        self.bytes_.madvise(mmap.MADV_DONTNEED, start, int(self.offsets[frames[-1]]) - start)

    def windows(self, n_windows: int, length: int) -> Iterator[Block]:
        """`n_windows` stretches of `length` consecutive frames, spread evenly over the trajectory, none overlapping."""
        n_windows = min(n_windows, self.n_frames // length)
        for start in np.linspace(0, self.n_frames - length, n_windows).astype(int) if n_windows else ():
            yield self.frames(int(start), int(start) + length)

    def _header(self, frame: int) -> bytes:
        offset = int(self.offsets[frame])
        comment = self.bytes_.find(b"\n", offset) + 1
        return self.bytes_[comment : self.bytes_.find(b"\n", comment)]

    def _parse(self, frames: IntArray) -> Block:
        headers = [self._header(int(frame)) for frame in frames]
        steps = [STEP.search(header) for header in headers]
        values = np.empty((len(frames), self.n_atoms, 3))
        if not self._parse_fixed_width(frames, values):
            for row, frame in enumerate(frames):
                values[row] = self._parse_lines(int(frame))
        values *= self.factor
        return Block(
            steps=np.array([int(m.group(1)) if m else int(f) for m, f in zip(steps, frames, strict=True)]),
            values=values,
            cells=_cells(headers) * self.cell_factor,
        )

    def _parse_fixed_width(self, frames: IntArray, values: FloatArray) -> bool:
        """Fill `values`, unless a frame is not of i-PI's fixed width (then False)."""
        body = self.frame_bytes - LINE * self.n_atoms  # bytes of the two header lines
        if self.columns is not None or body <= 0 or len(frames) == 0:
            return False
        steps = np.unique(np.diff(self.offsets[frames]))
        if len(steps) > 1:  # across the seam of a restart
            return False
        strides = (int(steps[0]) if len(steps) else self.frame_bytes, LINE, NUMBER)
        offset = int(self.offsets[frames[0]]) + body + FIRST
        mantissas = np.ndarray(values.shape, "<u8", self.bytes_, offset, strides)
        exponents = np.ndarray(values.shape, "<u4", self.bytes_, offset + 8, strides)
        return _decode(np.ascontiguousarray(mantissas), np.ascontiguousarray(exponents), values)

    def _parse_lines(self, frame: int) -> FloatArray:
        """A frame of any width."""
        first = self.bytes_.find(b"\n", self.bytes_.find(b"\n", int(self.offsets[frame])) + 1) + 1
        last = int(self.offsets[frame + 1]) if frame + 1 < self.n_frames else len(self.bytes_)
        wanted = self.columns or slice(1, 4)
        rows = [line.split()[wanted] for line in self.bytes_[first:last].splitlines()[: self.n_atoms]]
        try:
            return np.array(rows, dtype=float).reshape(self.n_atoms, 3)
        except ValueError as error:
            raise UnreadableRun(f"{self.path}: frame {frame} is not made of lines 'label x y z'") from error


def _decode(mantissas: NDArray[np.uint64], exponents: NDArray[np.uint32], values: FloatArray) -> bool:
    """Numbers such as `-1.23456e-02`: eight bytes `-1.23456`, four bytes `e-02`. False where one is not like that."""
    if not (
        ((mantissas & U8(0xF0F0F0F0F0FFF000)) == U8(0x30303030302E3000)).all()  # digit, point, five digits
        and ((exponents & U4(0xF0F0F9FF)) == U4(0x30302965)).all()  # e, + or -, two digits
    ):
        return False
    # Digits 1-5 stay, digit 0 moves next to them over the decimal point: 0 0 d0 d1 d2 d3 d4 d5, most significant first.
    digits = mantissas & U8(0x0F0F0F0F0F000000)
    digits |= (mantissas & U8(0x0F00)) << U8(8)
    for shift, factor, mask in (
        (8, 10, 0x00FF00FF00FF00FF),
        (16, 100, 0x0000FFFF0000FFFF),
        (32, 10000, 0xFFFFFFFF),
    ):
        upper = digits >> U8(shift)
        digits *= U8(factor)
        digits += upper
        digits &= U8(mask)
    scale = (exponents >> U4(16)) & U4(0x0F0F)
    scale |= (exponents >> U4(6)) & U4(0x10)
    scale |= ((mantissas & U8(1)) << U8(5)).astype(np.uint32)
    np.multiply(digits, np.take(SCALES, scale), out=values)
    return True


def _cells(headers: list[bytes]) -> FloatArray:
    """Cells of many headers; equal ones, as in constant volume, are worked out once."""
    known: dict[bytes, FloatArray] = {}
    found = []
    for header in headers:
        match = CELL.search(header) or LATTICE.search(header)
        text = match.group(1) if match else b""
        if text not in known:
            known[text] = _cell(header)
        found.append(known[text])
    return np.array(found).reshape(-1, 3, 3)


def _cell(header: bytes) -> FloatArray:
    """Lattice vectors as rows, in the unit of the file; zeros where the header has none, or -1, i-PI's word for none."""
    lattice = LATTICE.search(header)
    if lattice:
        return np.array(lattice.group(1).split(), dtype=float).reshape(3, 3)
    match = CELL.search(header)
    if match is None:
        return np.zeros((3, 3))
    a, b, c, alpha, beta, gamma = (float(number) for number in match.group(1).split())
    if a < 0.0:
        return np.zeros((3, 3))
    cosines = np.cos(np.radians([alpha, beta, gamma]))
    cosines[np.abs(cosines) < 1e-12] = 0.0
    sine = np.sqrt(1.0 - cosines[2] ** 2)
    third = (cosines[0] - cosines[1] * cosines[2]) / sine
    return np.array(
        [
            [a, 0.0, 0.0],
            [b * cosines[2], b * sine, 0.0],
            [c * cosines[1], c * third, c * np.sqrt(1.0 - cosines[1] ** 2 - third**2)],
        ]
    )


def open_trajectory(path: Path) -> Trajectory | None:
    """A trajectory that i-PI wrote, or None where the file is none.

    Frames that are not complete are left out, the last one and those that a crash tore.

    Raises:
        UnreadableRun: it starts like one of i-PI's and then is not.
    """
    with path.open("rb") as file:
        head = file.read(1_000_000)
    lines = head.split(b"\n", 2)
    if len(lines) < 3 or not lines[0].strip().isdigit():
        return None
    match = QUANTITY.search(lines[1])
    if match is None or STEP.search(lines[1]) is None:
        return None
    n_atoms = int(lines[0])
    quantity, unit, cell_unit = (group.decode() for group in match.groups())
    dimension = trajectory_dimensions().get(quantity, "undefined")
    bead = BEAD.search(lines[1])
    columns = _extxyz_columns(lines[1], quantity)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        offsets, n_torn = _frame_offsets(data, lines[0] + b"\n", n_atoms)
        if len(offsets) == 0:
            return None
        first = data.find(b"\n", data.find(b"\n", int(offsets[0])) + 1) + 1
        labels = _labels(data[first : first + 400 * n_atoms], n_atoms)
    steps = np.unique(np.diff(offsets))
    found = Trajectory(
        path=path,
        quantity=quantity,
        bead=int(bead.group(1)) if bead else 0,
        labels=labels,
        unit=base_unit(dimension),
        factor=to_base(dimension, unit),
        cell_factor=to_base("length", cell_unit),
        offsets=offsets,
        frame_bytes=int(steps[0]) if len(steps) == 1 else 0,
        columns=columns,
        n_torn=n_torn,
    )
    return _without_repeats(found)


def _without_repeats(trajectory: Trajectory) -> Trajectory:
    """Of steps that occur twice, as after a restart, only the later frame."""
    n_frames = trajectory.n_frames
    if n_frames < 3:
        return trajectory
    first, second, last = (trajectory.step(frame) for frame in (0, 1, n_frames - 1))
    if last - first == (second - first) * (n_frames - 1) and second > first:
        return trajectory
    steps = np.array([trajectory.step(frame) for frame in range(n_frames)])
    later = np.minimum.accumulate(steps[::-1])[::-1]
    keep = np.append(steps[:-1] < later[1:], True)
    return replace(trajectory, offsets=trajectory.offsets[keep])


def _labels(body: bytes, n_atoms: int) -> tuple[str, ...]:
    return tuple(line.split()[0].decode() for line in body.splitlines()[:n_atoms])


def _extxyz_columns(comment: bytes, quantity: str) -> slice | None:
    """Where the quantity stands in an extxyz line: i-PI writes zeros as positions beside every other quantity."""
    match = PROPERTIES.search(comment)
    if match is None:
        return None
    fields = match.group(1).decode().split(":")
    start, fallback = 0, slice(1, 4)
    for name, width in zip(fields[0::3], fields[2::3], strict=False):
        if name == quantity:
            return slice(start, start + int(width))
        start += int(width)
    return fallback


def _frame_offsets(data: mmap.mmap, count_line: bytes, n_atoms: int) -> tuple[IntArray, int]:
    """Byte at which every complete frame starts, and the number of torn ones before the last.

    By arithmetic where all frames are equally long, else by search.
    """
    second = data.find(b"\n" + count_line, len(count_line))
    frame_bytes = second + 1 if second >= 0 else len(data)
    n_frames = len(data) // frame_bytes
    if second >= 0 and all(
        _is_regular(data, count_line, frame_bytes, first, min(CHECKED_FRAMES, n_frames - first))
        for first in range(0, n_frames, CHECKED_FRAMES)
    ):
        return np.arange(n_frames, dtype=np.int64) * frame_bytes, 0
    return _search_offsets(data, count_line, n_atoms)


def _is_regular(data: mmap.mmap, count_line: bytes, frame_bytes: int, first: int, n_frames: int) -> bool:
    """Whether each of some frames starts with the number of atoms and ends with a line break."""
    start = first * frame_bytes
    begins = np.ndarray((n_frames, len(count_line)), np.uint8, data, start, (frame_bytes, 1))
    ends = np.ndarray((n_frames,), np.uint8, data, start + frame_bytes - 1, (frame_bytes,))
    regular = bool((begins == np.frombuffer(count_line, np.uint8)).all() and (ends == ord("\n")).all())
    page = start // mmap.PAGESIZE * mmap.PAGESIZE
    data.madvise(mmap.MADV_DONTNEED, page, start + n_frames * frame_bytes - page)
    return regular


def _search_offsets(data: mmap.mmap, count_line: bytes, n_atoms: int) -> tuple[IntArray, int]:
    """Byte at which every complete frame starts, and the number of torn ones: those end where the next one starts."""
    begin = count_line + data[len(count_line) : len(count_line) + len(b"# CELL")]
    found, position = [], 0
    while position >= 0:
        found.append(position)
        position = data.find(begin, position + len(begin))
    frames = itertools.pairwise([*found, len(data)])
    complete = [start for start, end in frames if data[start:end].count(b"\n") >= n_atoms + 2]
    n_torn = len(found) - len(complete) - (found[-1] not in complete[-1:])
    return np.array(complete, dtype=np.int64), n_torn
