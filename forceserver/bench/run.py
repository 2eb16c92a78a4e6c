"""The bench from its options to its output: check, measure case by case, show and keep what there is, whatever ends it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from forceserver.bench.cases import Case, scaling_cases
from forceserver.bench.contenders import CONTENDERS, Contender, Setting
from forceserver.bench.measure import SPARE_MB, CaseBench, Options, Place, Watcher, describe_model, kinds_of
from forceserver.bench.memory import available_megabytes
from forceserver.bench.plot import draw
from forceserver.bench.record import openmp_environment, write_record
from forceserver.bench.results import CaseResult
from forceserver.bench.scaling import AXES, SCALING_CONTENDERS, Axis, ScalingResult
from forceserver.bench.table import print_case, print_scaling, print_summary
from forceserver.errors import UsageError
from forceserver.own_folder import claim, remove
from forceserver.processes import n_cores
from forceserver.signals import StopRequest, stop_on_signals
from forceserver.structure_files import read_structure, write_structure
from forceserver.structures import ForceKind

if TYPE_CHECKING:
    from ase import Atoms

MARKER = "forceserver-bench"  # a file that lists what a bench has made in its folder, and so the next one may replace
RECORD, FIGURE = "bench.json", "bench.png"
LONGEST_TMPDIR = (
    45  # the path of a unix socket has at most 107 characters, and ours ends in a case and a number
)
SCALING_SECONDS = 0.5  # of a repeat, at most


@dataclass(frozen=True)
class _Hall:
    """What all cases need."""

    atoms: Atoms
    folder: Path
    sockets: str
    setting: Setting
    able: frozenset[ForceKind]
    stop: StopRequest
    watch: Watcher

    def case_bench(self, case: Case, options: Options, name: str = "") -> CaseBench:
        """In a folder and with sockets of its own."""
        folder = self.folder / case.name / name
        folder.mkdir(parents=True)
        atoms = self.atoms.repeat(case.repeats_of_cell)
        write_structure(atoms, folder / "structure.xyz")
        place = Place(folder / "structure.xyz", len(atoms), folder, f"{self.sockets}{case.name}-{name}-")
        return CaseBench(case, self.setting, self.able, options, place, self.stop, self.watch)


@dataclass
class Bench:
    """What is wanted, and what has come of it so far.

    Args:
        structure: the file that the user named.
        folder: for everything that is written, in place of what an earlier bench has left there.
        console: for the tables.
    """

    setting: Setting
    options: Options
    structure: Path
    folder: Path
    console: Console
    results: list[CaseResult] = field(default_factory=list)
    scaling: ScalingResult = field(default_factory=ScalingResult)
    model: Mapping[str, Any] = field(default_factory=dict)

    def run(
        self, cases: Sequence[Case], contenders: Sequence[Contender], scaling_to: tuple[int, int] | None
    ) -> None:
        """Measure; print each case when it is done, and at the end write `bench.json` and `bench.png`.

        Args:
            cases: may be none.
            contenders: of the cases.
            scaling_to: most atoms and most beads of the scaling, if it is wanted.

        Raises:
            UsageError: the model, the structure or the folder cannot be used.
            Interrupted: a signal came; what was measured until then is written.
        """
        atoms = read_structure(self.structure)
        axes = scaling_cases(len(atoms), *scaling_to) if scaling_to is not None else ()
        names = [RECORD, FIGURE, *(case.name for group in (cases, *axes) for case in group)]
        _check_folder(self.folder, names)
        with stop_on_signals() as stop, _socket_folder() as sockets, _status() as watch:
            watch("loading the model")
            place = Path(sockets)  # until nothing can be refused any more
            write_structure(atoms, place / "structure.xyz")
            self.model = describe_model(self.setting, place / "structure.xyz", place / "model", stop)
            _check_elements(atoms, self.model)
            _take_folder(self.folder, names)
            self._introduce(len(atoms))
            hall = _Hall(atoms, self.folder, sockets, self.setting, kinds_of(self.model), stop, watch)
            try:
                for case in cases:
                    self._measure_case(case, contenders, hall)
                if axes:
                    self._measure_scaling(axes, hall)
            finally:
                self._keep()

    def _measure_case(self, case: Case, contenders: Sequence[Contender], hall: _Hall) -> None:
        bench = hall.case_bench(case, self.options)
        try:
            bench.measure(contenders)
        finally:
            if bench.result.measured or not hall.stop.reason:
                self.results.append(bench.result)
                print_case(self.console, bench.result)

    def _measure_scaling(self, cases_of_axes: Sequence[Sequence[Case]], hall: _Hall) -> None:
        options = replace(self.options, seconds=min(self.options.seconds, SCALING_SECONDS))
        try:
            for axis, cases in zip(AXES, cases_of_axes, strict=True):
                for name in SCALING_CONTENDERS:
                    self._measure_axis(axis, cases, name, options, hall)
        finally:
            print_scaling(self.console, self.scaling)

    def _measure_axis(
        self, axis: Axis, cases: Sequence[Case], name: str, options: Options, hall: _Hall
    ) -> None:
        """One contender alone, size after size, as far as memory goes: twice the size is taken to need twice as much."""
        needed_MB = 0.0
        for case in cases:
            available = available_megabytes()
            if available is not None and needed_MB + SPARE_MB > available:
                self.scaling.notes.append(
                    f"{axis}: {name} stops before {case.name}, which would take about {needed_MB:.0f} MB of memory; "
                    f"{available:.0f} MB are free"
                )
                return
            bench = hall.case_bench(case, options, name)
            bench.measure([CONTENDERS[name]])
            self.scaling.add(axis, bench.result)
            peaks = [entry.memory.peak_MB for entry in bench.result.measured if entry.memory]
            needed_MB = 2.0 * max(peaks, default=0.0)

    def _introduce(self, n_atoms: int) -> None:
        setting, where = self.setting, self.model["device"]
        waiting = "".join(f"; {name}={value}" for name, value in openmp_environment().items())
        self.console.print(
            f"{self.model['name']} on {where}; {n_atoms} atoms of {self.structure.name}\n"
            f"threads: {setting.threads} cores for the forces of each contender, divided among its processes that compute at the "
            f"same time (OMP_NUM_THREADS); i-PI has one thread; this process may use {n_cores()} cores{waiting}\n"
            f"{self.options.repeats} repeats, in turns; [..] is the interval of the median\n",
            highlight=False,
            markup=False,
        )
        if self.model["synthetic_direct"]:
            self.console.print(
                "the direct forces are SYNTHETIC: made up for tests, and dearer than the true ones\n"
            )

    def _keep(self) -> None:
        print_summary(self.console, self.results)
        path = self.folder / RECORD
        write_record(path, self.results, self.scaling, self.setting, self.options, self.model, self.structure)
        written = [str(path)]
        if draw(self.folder / FIGURE, self.results, self.scaling):
            written.append(str(self.folder / FIGURE))
        self.console.print(f"written: {', '.join(written)}; inputs and logs beside them", highlight=False)


def _check_folder(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder in which a bench cannot make these files and folders without somebody else's being lost."""
    claim(folder, MARKER)
    others = {entry.name for entry in folder.iterdir()} - _made_before(folder)
    if taken := [name for name in names if name in others]:
        raise UsageError(
            f"{folder} holds {', '.join(taken)}, not known to be of an earlier bench; name another with -o, or move it away"
        )


def _take_folder(folder: Path, names: Sequence[str]) -> None:
    """Remove what an earlier bench has made, and nothing else."""
    made = _made_before(folder)
    for entry in list(folder.iterdir()):
        if entry.name in made:
            remove(entry)
    (folder / MARKER).write_text("".join(f"{name}\n" for name in names))


def _made_before(folder: Path) -> set[str]:
    marker = folder / MARKER
    return set(marker.read_text().split()) if marker.exists() else set()


def _check_elements(atoms: Atoms, model: Mapping[str, Any]) -> None:
    from ase.data import chemical_symbols

    known = model["elements"]
    unknown = sorted(set(atoms.numbers.tolist()) - set(known)) if known is not None else []
    if unknown:
        names, knows = (", ".join(chemical_symbols[z] for z in numbers) for numbers in (unknown, known))
        raise UsageError(
            f"{model['name']} knows {knows}, but the structure holds {names}; give another model or structure"
        )


@contextmanager
def _socket_folder() -> Iterator[str]:
    """A prefix for unix sockets in a place of their own."""
    where = None if len(tempfile.gettempdir()) <= LONGEST_TMPDIR else "/tmp"
    with tempfile.TemporaryDirectory(prefix="fs-", dir=where) as folder:
        yield f"{folder}/"


@contextmanager
def _status() -> Iterator[Watcher]:
    """What is being done: a line that changes on a terminal, a line each on anything else."""
    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield lambda words: screen.print(words, highlight=False, markup=False)
        return
    with screen.status("") as status:
        yield lambda words: status.update(words)
