"""A run: what i-PI was asked to do and what it wrote, found on disk and read when needed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from analysis.errors import MissingOutput, UnreadableRun
from analysis.inputfile import Atoms, RunFacts, read_facts
from analysis.outputs import (
    HEADER,
    Key,
    PropertyTable,
    key,
    read_properties,
    series_of,
    stitched,
)
from analysis.series import FloatArray, Series
from analysis.sources import SNIFFED_BYTES, find_input, is_input, prefixes_in
from analysis.trajectories import Trajectory, open_trajectory
from analysis.units import to_internal


@dataclass(frozen=True, eq=False)
class Run:
    """One i-PI run. Nothing is read before it is asked for."""

    name: str
    facts: RunFacts | None  # None: no input was found
    property_paths: tuple[
        tuple[Path, ...], ...
    ]  # per properties file of the input, its parts in order of time
    trajectory_paths: tuple[
        tuple[Path, Key | None], ...
    ]  # with the key that the input gives, where there is one

    @cached_property
    def tables(self) -> tuple[PropertyTable, ...]:
        """The properties files, each stitched from its parts."""
        return tuple(stitched([read_properties(path) for path in parts]) for parts in self.property_paths)

    @cached_property
    def trajectories(self) -> dict[tuple[Key, int], Trajectory]:
        """Trajectories by what they hold and bead."""
        found: dict[tuple[Key, int], Trajectory] = {}
        for path, declared in self.trajectory_paths:
            trajectory = open_trajectory(path)
            if trajectory is not None:
                held = (
                    declared
                    if declared and declared.name == trajectory.quantity
                    else key(trajectory.quantity)
                )
                found.setdefault((held, trajectory.bead), trajectory)
        return found

    def series(self, name: str, **arguments: object) -> Series:
        """A column of the properties, for example `run.series("temperature", atom="O")`.

        Raises:
            MissingOutput: the run did not write it; the message says which line to add.
        """
        wanted = key(name, **arguments)
        holding = [table for table in self.tables if wanted in table.columns]
        candidates = holding or sorted(self.tables, key=lambda table: -len(table.columns))
        if not candidates:
            raise MissingOutput(
                f"the run has no properties file, so no column '{wanted}'; add <properties> to it"
            )
        table = next(filter(self._tells_time, candidates), candidates[0])
        return series_of(table, wanted, self._times(table))

    def has(self, name: str, **arguments: object) -> bool:
        """Whether a column was written, with the time of its rows, and holds any."""
        wanted = key(name, **arguments)
        return any(
            wanted in table.columns and table.n_rows and self._tells_time(table) for table in self.tables
        )

    def trajectory(self, name: str, *, bead: int = 0, **arguments: object) -> Trajectory:
        """A trajectory, for example `run.trajectory("velocities")`.

        Raises:
            MissingOutput: the run did not write it; the message says which line to add.
        """
        wanted = (key(name, **arguments), bead)
        if wanted not in self.trajectories:
            have = ", ".join(sorted({str(held) for held, _ in self.trajectories})) or "none"
            raise MissingOutput(
                f"the run has no trajectory '{wanted[0]}' of bead {bead}; add <trajectory filename='{name}' "
                f"stride='4'> {wanted[0]} </trajectory> to its <output>. It has: {have}"
            )
        found = self.trajectories[wanted]
        if found.n_atoms != self.atoms.n_atoms:
            raise UnreadableRun(
                f"{found.path}: wanted {self.atoms.n_atoms} atoms as in the input, got {found.n_atoms}: outputs of "
                "different runs lie together; keep each run in a directory of its own"
            )
        return found

    def frame_times_ps(self, steps: FloatArray | np.ndarray) -> FloatArray:
        """Times of trajectory steps; needs the time step of the input.

        Raises:
            MissingOutput: no input was found.
        """
        return (
            np.asarray(steps, dtype=float)
            * self.require_facts("the time of a trajectory frame").timestep_fs
            / 1e3
        )

    def require_facts(self, purpose: str) -> RunFacts:
        """The facts of the input.

        Raises:
            MissingOutput: no input was found.
        """
        if self.facts is None:
            raise MissingOutput(
                f"{purpose} needs the i-PI input: keep input.xml beside the outputs of {self.name}"
            )
        return self.facts

    @cached_property
    def atoms(self) -> Atoms:
        """Labels and masses, from the input, else labels from a trajectory with i-PI's masses.

        Raises:
            MissingOutput: neither is there.
        """
        if self.facts is not None and self.facts.atoms is not None:
            return self.facts.atoms
        for trajectory in self.trajectories.values():
            return _atoms_of(trajectory)
        raise MissingOutput(
            f"{self.name}: no structure to count atoms in; keep the input and its <initialize> files"
        )

    @property
    def duration_ps(self) -> float:
        """Time from the first to the last row that was written, of the files that tell the time."""
        spans = [self._times(table) for table in self.tables if table.n_rows and self._tells_time(table)]
        return max((float(span[-1] - span[0]) for span in spans), default=0.0)

    @property
    def fixed_atoms(self) -> list[int]:
        """Atoms of which any coordinate is held fixed; none is known without an input."""
        return sorted({own // 3 for own in self.facts.fixed_dof}) if self.facts is not None else []

    @property
    def target_K(self) -> float | None:  # noqa: N802 (units keep their case)
        """Temperature of the ensemble; None at constant energy, where an input's temperature binds nothing."""
        if self.facts is None or self.facts.is_constant_energy:
            return None
        return self.facts.temperature_K

    def _tells_time(self, table: PropertyTable) -> bool:
        """Whether rows have times that differ: the steps of an optimisation take none."""
        try:
            times = self._times(table)
        except MissingOutput:
            return False
        return len(times) < 2 or bool(times[-1] > times[0])

    def _times(self, table: PropertyTable) -> FloatArray:
        if key("time") in table.columns:
            return table.columns[key("time")]
        if key("step") in table.columns:
            facts = self.require_facts("a table without a 'time' column")
            return table.columns[key("step")] * facts.timestep_fs / 1e3
        raise MissingOutput(
            f"the properties file of {table.names} has neither 'time' nor 'step'; add time{{picosecond}} to its <properties>"
        )


def read_run(*paths: str | Path) -> Run:
    """Find a run: its directory, its input, or the prefix of its outputs; several paths are parts of one run.

    Raises:
        UnreadableRun: nothing of i-PI's is there, or several runs are.
    """
    if not paths:
        raise UnreadableRun("wanted the path of a run, got none")
    parts = [_find(Path(path)) for path in paths]
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if len({len(part.property_paths) for part in parts}) != 1:
        raise UnreadableRun("cannot stitch: the parts have different numbers of properties files")
    joined = zip(*(part.property_paths for part in parts), strict=True)
    return replace(
        first,
        name=" + ".join(part.name for part in parts),
        property_paths=tuple(tuple(path for group in groups for path in group) for groups in joined),
        trajectory_paths=parts[-1].trajectory_paths,
    )


def _find(path: Path) -> Run:
    prefix: str | None = None
    if path.is_dir():
        directory, source = path, find_input(path, None)
    elif path.is_file() and is_input(path):
        directory, source = path.parent, path
    elif path.parent.is_dir():
        directory, prefix, source = _of_prefix(path)
    else:
        raise UnreadableRun(f"{path}: no such directory, input or prefix of outputs")
    facts = read_facts(source, prefix) if source is not None else None
    start = facts.outputs_start if facts is not None else f"{prefix}." if prefix else None
    properties, trajectories = _outputs_of(directory, start)
    properties, trajectories = (
        _without_longer_prefixes(files, facts) for files in (properties, trajectories)
    )
    if not properties and not trajectories:
        known = prefixes_in(directory) if prefix and source is None else []
        raise UnreadableRun(
            f"{path}: no i-PI outputs{f' with prefix {start[:-1]!r}' if start else ''}; wanted a directory with input.xml "
            "and what i-PI wrote, got none of it (has the run started?)"
            + (f"; the inputs there name {', '.join(known)}" if known else "")
        )
    declared = _declared(facts)
    return Run(
        name=prefix if prefix and "/" in prefix else path.name or path.resolve().name,
        facts=facts,
        property_paths=tuple((file,) for file in properties),
        trajectory_paths=tuple((file, _match(file, declared)) for file in trajectories),
    )


def _of_prefix(path: Path) -> tuple[Path, str, Path | None]:
    """Directory of a run, prefix and input, for the prefix of its outputs or one of them.

    The directory is a level higher where the input gives a prefix with a folder.
    """
    whole = path.with_suffix("") if path.is_file() else path
    if (source := find_input(path.parent, whole.name)) is not None:
        return path.parent, whole.name, source
    higher, prefix = path.absolute().parent.parent, f"{path.absolute().parent.name}/{whole.name}"
    with contextlib.suppress(UnreadableRun):  # other runs may lie there
        if (source := find_input(higher, prefix)) is not None:
            return higher, prefix, source
    return path.parent, whole.name, None


def _outputs_of(directory: Path, start: str | None) -> tuple[list[Path], list[Path]]:
    """Properties files and trajectories of one run, told by their first bytes; of all there without a `start`."""
    folder, _, begin = (start or "").rpartition("/")
    directory = directory / folder
    properties, trajectories = [], []
    for file in sorted(directory.iterdir()) if directory.is_dir() else ():
        # i-PI renames what it would overwrite to #name#0#
        if not file.is_file() or file.name.startswith("#") or not file.name.startswith(begin):
            continue
        with file.open("rb") as stream:
            head = stream.read(SNIFFED_BYTES)
        if any(HEADER.match(line.decode("utf-8", "replace")) for line in head.splitlines()[:40]):
            properties.append(file)
        elif head.split(b"\n", 1)[0].strip().isdigit() and b"Step:" in head:
            trajectories.append(file)
    prefixes = {file.name.split(".")[0] for file in properties}
    if start is None and len(prefixes) > 1:
        raise UnreadableRun(
            f"{directory}: outputs of several runs ({', '.join(sorted(prefixes))}); name one, for example "
            f"{directory / min(prefixes)}"
        )
    return properties, trajectories


def _without_longer_prefixes(files: Sequence[Path], facts: RunFacts | None) -> list[Path]:
    """Outputs of a run `nvt` without those of a run `nvt.300K` beside it, which begin alike."""
    if facts is None:
        return list(files)
    begin = facts.outputs_start.rpartition("/")[2]
    own = [f".{spec.filename}" for spec in facts.outputs]
    return [file for file in files if not any(name in file.name.removeprefix(begin) for name in own)]


def _declared(facts: RunFacts | None) -> dict[str, Key]:
    """What each trajectory of the input holds, by file name: i-PI's headers leave the arguments out."""
    if facts is None:
        return {}
    stem = facts.outputs_start.rpartition("/")[2]
    return {
        stem + spec.filename: _without_bead(Key.parse(spec.contents[0])[0])
        for spec in facts.outputs
        if spec.kind == "trajectory"
    }


def _without_bead(held: Key) -> Key:
    return Key(held.name, tuple(pair for pair in held.arguments if pair[0] != "bead"))


def _match(file: Path, declared: dict[str, Key]) -> Key | None:
    stem = file.name.rsplit(".", 1)[0]
    return declared.get(stem) or declared.get(stem.rsplit("_", 1)[0])


def _atoms_of(trajectory: Trajectory) -> Atoms:
    from ipi.utils.units import Elements

    masses = np.array([Elements.mass(label) for label in trajectory.labels]) / to_internal("mass", "dalton")
    if np.any(masses <= 0):
        unknown = ", ".join(sorted({label for label in trajectory.labels if Elements.mass(label) <= 0}))
        raise MissingOutput(
            f"{trajectory.path}: i-PI knows no mass for {unknown}; keep the input beside the outputs"
        )
    return Atoms(labels=trajectory.labels, masses=masses)
