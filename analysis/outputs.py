"""i-PI's properties files: columns by name, in base units, without torn, broken or duplicated rows.

Units come from the header (`potential{electronvolt}`; none means atomic units), never from habit. Restarted runs append
to their files, so that steps occur twice: the later row is the one that the run went on from.
"""

from __future__ import annotations

import itertools
import mmap
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from analysis.errors import MissingOutput, UnreadableRun
from analysis.series import FloatArray, Series
from analysis.units import base_unit, property_dimensions, to_base

HEADER = re.compile(r"#\s*(?:column|cols\.)\s+(\d+)(?:\s*-\s*(\d+))?\s+-->\s+(\S.*?)(?:\s+:\s.*)?$")
COMMENT = re.compile(rb"\n(#[^\n]*)")
SPECIFICATION = re.compile(r"^(\w+)\s*(?:\(([^)]*)\))?\s*(?:\{([^}]*)\})?$")
FIRST_ARGUMENT = {  # i-PI's positional argument, by property; temperature(O) means temperature(atom=O)
    "temperature": "atom", "kinetic_md": "atom", "kinetic_cv": "atom", "kinetic_td": "atom", "kinetic_tens": "atom",
    "kinetic_ij": "atom", "r_gyration": "atom", "vcom": "atom", "potential": "bead", "pot_component": "index",
    "pot_component_raw": "index", "vir_component": "index", "vir_component_raw": "index", "forces_component": "index",
    "forces_component_raw": "index",
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """What a column or a trajectory holds: i-PI's name and its arguments, without the unit."""

    name: str
    arguments: tuple[tuple[str, str], ...] = ()  # sorted pairs

    @staticmethod
    def parse(text: str) -> tuple[Key, str]:
        """Key and unit of `temperature(atom=O;nm=0){kelvin}`.

        Raises:
            UnreadableRun: not of this form.
        """
        match = SPECIFICATION.match(text.strip())
        if match is None:
            raise UnreadableRun(
                f"'{text}' is no output specification of i-PI, such as temperature(O){{kelvin}}"
            )
        name, arguments, unit = match.groups()
        pairs = []
        for argument in filter(None, (part.strip() for part in (arguments or "").split(";"))):
            key, equals, value = argument.partition("=")
            pairs.append(
                (key.strip(), value.strip()) if equals else (FIRST_ARGUMENT.get(name, ""), key.strip())
            )
        return Key(name, tuple(sorted(pairs))), (unit or "").strip()

    def __str__(self) -> str:
        inner = ";".join(f"{name}={value}" if name else value for name, value in self.arguments)
        return f"{self.name}({inner})" if inner else self.name


def key(name: str, **arguments: object) -> Key:
    """`key("temperature", atom="O")`."""
    return Key(name, tuple(sorted((argument, str(value)) for argument, value in arguments.items())))


CLOCKS = (key("step"), key("time"))


@dataclass(frozen=True, eq=False)
class PropertyTable:
    """The columns of one properties file, in base units."""

    columns: Mapping[Key, FloatArray]  # (n_rows,) or, for vectors, (n_rows, n_components)
    units: Mapping[Key, str]  # as printed: eV, K, ...
    n_dropped: int = 0  # torn, unreadable or not finite rows
    n_not_finite: int = 0  # of these, rows in which i-PI wrote nan or inf
    rewinds: tuple[int, ...] = ()  # rows at which a restart took over: the first row of each later part

    @property
    def n_rows(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    @cached_property
    def names(self) -> str:
        return ", ".join(str(column) for column in self.columns)

    @property
    def clock(self) -> FloatArray | None:
        """Steps, else times of the rows; None where the file has neither."""
        return next((self.columns[name] for name in CLOCKS if name in self.columns), None)


def read_properties(path: Path) -> PropertyTable:
    """Read an i-PI properties file.

    Rows that are torn, unreadable or not finite are left out and counted. Of steps that occur twice, as after a
    restart, the later row is kept.

    Raises:
        UnreadableRun: no i-PI header, two different headers, or hardly a readable row.
    """
    specifications = _read_header(path)
    _require_one_header(path, len(specifications))
    widths = [width for _, width in specifications]
    rows, n_broken = _read_rows(path, sum(widths))
    finite = np.isfinite(rows).all(axis=1)
    n_not_finite = int(np.count_nonzero(~finite))
    rows = rows[finite]
    columns: dict[Key, FloatArray] = {}
    units: dict[Key, str] = {}
    start = 0
    for specification, width in specifications:
        name, unit = Key.parse(specification)
        dimension = property_dimensions().get(name.name, ("undefined", 1))[0]
        block = rows[:, start : start + width] * to_base(dimension, unit)
        columns[name] = block[:, 0] if width == 1 else block
        units[name] = base_unit(dimension)
        start += width
    keep, rewinds = _unique_rows(columns, len(rows))
    return PropertyTable(
        columns={name: column[keep] for name, column in columns.items()},
        units=units,
        n_dropped=n_broken + n_not_finite,
        n_not_finite=n_not_finite,
        rewinds=rewinds,
    )


def _read_header(path: Path) -> list[tuple[str, int]]:
    """Specification and number of columns, in order."""
    found: list[tuple[str, int]] = []
    with path.open("rb") as lines:
        for raw in lines:
            if not raw.startswith(b"#"):
                break
            match = _header_match(raw)
            if match:
                first, last, specification = match.groups()
                found.append((specification, int(last or first) - int(first) + 1))
    if not found:
        raise UnreadableRun(
            f"{path}: wanted an i-PI properties file ('# column 1 --> ...'), got no such header"
        )
    return found


def _header_match(line: bytes) -> re.Match[str] | None:
    return HEADER.match(line.decode("utf-8", "replace").strip())


def _require_one_header(path: Path, n_specifications: int) -> None:
    """Refuse a file in which another header follows; the same one again is what `cat` of two parts leaves.

    Only lines that start with '#' are looked at: 0.1 s for 100 MB.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        lines = [data.readline(), *(line.group(1) for line in COMMENT.finditer(data))]
    found = [match.groups() for match in map(_header_match, lines) if match]
    if found != found[:n_specifications] * (len(found) // n_specifications):
        raise UnreadableRun(f"{path}: holds two different headers: outputs of different runs in one file")


def _read_rows(path: Path, width: int) -> tuple[FloatArray, int]:
    """All readable rows (n_rows, width) and the number of lines that were not."""
    with path.open("rb") as file:
        file.seek(-1, 2)
        whole = file.read(1) == b"\n"
    if whole:  # else the last number may be cut and still look like one
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a run that has just started has no rows yet
                rows = np.loadtxt(path, ndmin=2)
            if rows.shape[1] == width:
                return rows, 0
        except (ValueError, UnicodeDecodeError, IndexError):
            pass
    return _read_rows_one_by_one(path, width)


def _read_rows_one_by_one(path: Path, width: int) -> tuple[FloatArray, int]:
    rows, n_broken = [], 0
    with path.open("rb") as lines:
        for line in lines:
            if line.startswith(b"#"):
                continue
            fields = line.split()
            try:
                if len(fields) != width or not line.endswith(b"\n"):
                    raise ValueError
                rows.append(np.array(fields, dtype=float))
            except ValueError:
                n_broken += 1
    if n_broken > max(len(rows), 1):
        raise UnreadableRun(
            f"{path}: wanted rows of {width} numbers, got {n_broken} lines that are not and {len(rows)} that are"
        )
    return np.array(rows).reshape(-1, width), n_broken


def _unique_rows(columns: Mapping[Key, FloatArray], n_rows: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Rows to keep so that steps increase, the later of duplicates winning, and where later parts begin."""
    clock = next((columns[name] for name in CLOCKS if name in columns), None)
    if clock is None or n_rows == 0:
        return np.arange(n_rows), ()
    later = np.minimum.accumulate(clock[::-1])[::-1]  # smallest step from here to the end
    keep = np.flatnonzero(np.append(clock[:-1] < later[1:], True))
    backwards = np.flatnonzero(np.diff(clock) <= 0) + 1
    rewinds = np.unique(np.searchsorted(keep, backwards))
    return keep, tuple(int(row) for row in rewinds if 0 < row < len(keep))


def stitched(tables: Sequence[PropertyTable]) -> PropertyTable:
    """Parts of one run, in order, as one table; only the columns that all parts have.

    Raises:
        UnreadableRun: the parts have no column that tells the step or the time in common, or count steps from 0 again.
    """
    if len(tables) == 1:
        return tables[0]
    shared = [name for name in tables[0].columns if all(name in table.columns for table in tables)]
    clock = next((name for name in CLOCKS if name in shared), None)
    if clock is None and any(table.clock is not None for table in tables):
        raise UnreadableRun(
            "cannot stitch: wanted a 'step' or 'time' column in every part; add one to <properties>"
        )
    firsts = [table.columns[clock][0] for table in tables if clock is not None and table.n_rows]
    if any(later <= earlier for earlier, later in itertools.pairwise(firsts)):
        raise UnreadableRun(
            "cannot stitch: the parts count steps from 0 again, or are not in order of time; analyse parts that started "
            "afresh one by one"
        )
    columns = {name: np.concatenate([table.columns[name] for table in tables]) for name in shared}
    n_rows = sum(table.n_rows for table in tables)
    keep, _ = _unique_rows(columns, n_rows)
    starts = np.cumsum([table.n_rows for table in tables])[:-1]
    inner = [row + start for table, start in zip(tables, [0, *starts], strict=True) for row in table.rewinds]
    seams = sorted({int(np.searchsorted(keep, row)) for row in [*starts, *inner]})
    return PropertyTable(
        columns={name: column[keep] for name, column in columns.items()},
        units={name: tables[0].units[name] for name in shared},
        n_dropped=sum(table.n_dropped for table in tables),
        n_not_finite=sum(table.n_not_finite for table in tables),
        rewinds=tuple(row for row in seams if 0 < row < len(keep)),
    )


def series_of(table: PropertyTable, wanted: Key, time_ps: FloatArray) -> Series:
    """A scalar column as a series.

    Raises:
        MissingOutput: the run did not write it; the message says what to add.
    """
    if wanted not in table.columns:
        raise MissingOutput(
            f"the run has no column '{wanted}'; add {wanted}{_unit_hint(wanted)} to its <properties>. "
            f"It has: {table.names}"
        )
    return Series(time_ps, table.columns[wanted], table.units[wanted], str(wanted))


def _unit_hint(wanted: Key) -> str:
    from analysis.units import BASE_UNITS

    dimension = property_dimensions().get(wanted.name, ("undefined", 1))[0]
    return f"{{{BASE_UNITS[dimension][0]}}}" if dimension in BASE_UNITS else ""
