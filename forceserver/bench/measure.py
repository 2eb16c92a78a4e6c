"""All contenders of a case in turn, again and again: each runs some steps while the others are at rest. Times in s.

All of them stay in memory, which a large batch can be too much for. So before each start it is seen whether there is room for
another as large as the largest; who finds none waits for the next round, in which the first contender takes part once more, so
that everybody has been compared with it in the same repeats.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forceserver.bench.cases import Case
from forceserver.bench.contenders import Contender, Plan, Setting, Unsuitable
from forceserver.bench.entrant import Entrant, Interrupted
from forceserver.bench.memory import available_megabytes, used_gpu_megabytes
from forceserver.bench.results import IPI, MODEL, CaseResult, Entry
from forceserver.bench.statistics import seconds_per_step
from forceserver.errors import ForceServerError
from forceserver.signals import StopRequest
from forceserver.structures import CONSERVATIVE, DIRECT, ForceKind

log = logging.getLogger(__name__)

IDLE_PHASES = ("waiting", "ended")
N_DISSECTED = 5  # steps of the bare model with clocks in between
SPARE_MB = 1000.0  # of memory, for everybody else

Watcher = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    repeats: int = 5
    steps: int | None = None  # that count, of each repeat; None: what `seconds` hold, at least one
    seconds: float = 2.0


@dataclass(frozen=True)
class Place:
    """Where a case is run.

    Attributes:
        structure: the extended xyz to start from.
        folder: of this case; each contender gets its own in it.
        sockets: prefix of unix sockets that nobody else uses.
    """

    structure: Path
    n_atoms: int
    folder: Path
    sockets: str


@dataclass
class _Runner:
    """An entry while its processes run."""

    entry: Entry
    entrant: Entrant
    n_steps: int = 0  # of one repeat, the uncounted one included
    n_run: int = 0  # since the first report, of all simulations
    wall: float = 0.0  # s, in which those were made
    first_report: Mapping[str, Any] | None = None


class CaseBench:
    """Measures one case.

    Args:
        able: the kinds of forces that the model has.
        stop: a signal that ends it.
        watch: told what is being done.
    """

    def __init__(
        self, case: Case, setting: Setting, able: frozenset[ForceKind], options: Options, place: Place,
        stop: StopRequest, watch: Watcher,
    ) -> None:  # fmt: skip
        self.result = CaseResult(case, place.n_atoms, [])  # filled while it is measured
        self._case = case
        self._setting = setting
        self._able = able
        self._options = options
        self._place = place
        self._stop = stop
        self._watch = watch
        self._n_repeats = 0  # of all rounds so far
        self._n_started = 0

    def measure(self, contenders: Sequence[Contender]) -> CaseResult:
        """Who cannot take part or breaks down is told in the result, and the others go on.

        Raises:
            Interrupted: a signal came; all processes are ended.
        """
        self.result.entries += (self._enter(contender) for contender in contenders)
        waiting = [entry for entry in self.result.entries if entry.plan is not None]
        n_rounds = 0
        while waiting:
            n_rounds += 1
            known = [] if n_rounds == 1 else self.result.measured[:1]
            n_taken = self._run_round(known, waiting, f"r{n_rounds}-" if n_rounds > 1 else "")
            waiting = waiting[n_taken:]
            if waiting:
                self._watch(f"{self._case.name}: memory is short, so there is another round for the rest")
        return self.result

    def _enter(self, contender: Contender) -> Entry:
        lacking = [kind for kind in self._case.kinds if kind not in self._able]
        if lacking:
            return Entry(contender, left_out=f"the model has no {' and '.join(lacking)} forces")
        try:
            return Entry(contender, contender.plan(self._case, self._setting, self._place.sockets))
        except Unsuitable as reason:
            return Entry(contender, left_out=str(reason))

    def _run_round(self, known: Sequence[Entry], waiting: Sequence[Entry], prefix: str) -> int:
        """The known ones and as many of those who wait as memory holds, at least one. How many of them that were."""
        runners: list[_Runner] = []
        try:
            for place, entry in enumerate((*known, *waiting)):
                if place > len(known) and not _has_room_for(runners):
                    break
                runners.append(self._start(entry, prefix))
            self._take_turns(runners)
            for runner in runners:
                self._tell(f"weighing {runner.entry.contender.name}")
                _attempt(runner, self._weigh)
        finally:
            for runner in runners:
                runner.entrant.ask_to_end()
            for runner in runners:
                runner.entrant.end()
        return len(runners) - len(known)

    def _start(self, entry: Entry, prefix: str) -> _Runner:
        assert entry.plan is not None
        self._n_started += 1
        sockets = f"{self._place.sockets}{self._n_started}-"
        plan = entry.contender.plan(self._case, self._setting, sockets)  # its commands name the sockets
        entry.plan = plan
        folder = self._place.folder / f"{prefix}{entry.contender.name}"
        entrant = Entrant(self._case, plan, self._setting, self._place.structure, folder, sockets, self._stop)
        runner = _Runner(entry, entrant)
        self._tell(f"starting {entry.contender.name}")
        try:
            _attempt(runner, self._make_ready)
        except BaseException:
            entrant.end()
            raise
        return runner

    def _make_ready(self, runner: _Runner) -> None:
        entry, entrant = runner.entry, runner.entrant
        gpu_before = used_gpu_megabytes()
        entrant.start()
        entry.answer = entrant.look()
        warming = entrant.warm_up(self._case.n_steps_of_warm_up)
        seconds = max(
            (moments[-1] - moments[-3]) / 2 for moments in warming
        )  # for one step of each simulation
        runner.n_steps = self._options.steps or max(1, round(self._options.seconds / seconds))
        runner.n_steps += runner.n_steps > 1  # the first does not count
        entry.n_steps = runner.n_steps
        entry.memory = entrant.memory()
        gpu_after = used_gpu_megabytes()
        if gpu_before is not None and gpu_after is not None:
            entry.gpu_MB = gpu_after - gpu_before
        runner.first_report = entrant.report()
        entrant.freeze()

    def _take_turns(self, runners: Sequence[_Runner]) -> None:
        for repeat in range(self._options.repeats):
            for runner in runners if repeat % 2 == 0 else runners[::-1]:
                self._tell(f"repeat {repeat + 1} of {self._options.repeats}, {runner.entry.contender.name}")
                _attempt(runner, self._take_turn)
            self._n_repeats += 1

    def _take_turn(self, runner: _Runner) -> None:
        used_before = runner.entrant.processor_seconds()
        runner.entrant.thaw()
        ended = runner.entrant.run(runner.n_steps)
        runner.entrant.freeze()
        used = runner.entrant.processor_seconds()
        # One step of the bare model is a step of each simulation.
        n_together = self._case.n_simulations if runner.entrant.plan.is_bare else 1
        n_made = runner.n_steps * len(ended) * n_together
        runner.n_run += n_made
        if used is not None and used_before is not None:
            runner.entry.processor.append((used - used_before) / n_made)
        runner.wall += max(moments[-1] for moments in ended) - min(moments[0] for moments in ended)
        runner.entry.note_time(self._n_repeats, seconds_per_step(ended) / n_together)

    def _weigh(self, runner: _Runner) -> None:
        entry, entrant = runner.entry, runner.entrant
        entry.memory = entrant.memory()
        entrant.thaw()
        last_report = entrant.report()
        if runner.first_report is not None and last_report is not None:
            entry.phases = phases_per_step(runner.first_report, last_report, runner.n_run, runner.wall)
        if entrant.plan.is_bare:
            entrant.dissect(1)  # batches made afresh for the first time
            seconds = entrant.dissect(min(N_DISSECTED, runner.n_steps))
            entry.dissection = {phase: value / self._case.n_simulations for phase, value in seconds.items()}

    def _tell(self, words: str) -> None:
        self._watch(f"{self._case.name}: {words}")


def _attempt(runner: _Runner, do: Callable[[_Runner], None]) -> None:
    """Do something with a contender that has not failed; if it fails in this, it has."""
    if runner.entry.failure:
        return
    try:
        do(runner)
    except Interrupted:
        raise
    except (ForceServerError, ValueError, OSError) as error:
        runner.entry.failure = str(error)
        log.warning("%s failed: %s", runner.entry.contender.name, error)
        runner.entrant.end()


def _has_room_for(runners: Sequence[_Runner]) -> bool:
    """Whether memory holds another contender as large as the largest of these."""
    available = available_megabytes()
    peaks = [runner.entry.memory.peak_MB for runner in runners if runner.entry.memory is not None]
    return available is None or available > max(peaks, default=0.0) + SPARE_MB


def describe_model(setting: Setting, structure: Path, folder: Path, stop: StopRequest) -> Mapping[str, Any]:
    """Load the model once, in a process of its own: its name, elements and kinds of forces.

    Raises:
        UsageError: there is no such model, or it cannot be loaded.
    """
    plan = Plan(threads=setting.threads, passes=[(1, frozenset({CONSERVATIVE}))])
    entrant = Entrant(Case("model", "", ()), plan, setting, structure, folder, "", stop)
    try:
        entrant.start()
        return entrant.introduction
    finally:
        entrant.end()


def kinds_of(model: Mapping[str, Any]) -> frozenset[ForceKind]:
    """From what the model says of itself."""
    kinds: dict[ForceKind, bool] = {CONSERVATIVE: model["conservative"], DIRECT: model["direct"]}
    return frozenset(kind for kind, has in kinds.items() if has)


def phases_per_step(
    first: Mapping[str, Any], last: Mapping[str, Any], n_steps: int, wall: float
) -> Mapping[str, float]:
    """Where the time of our server went between two of its reports, in seconds per step.

    Args:
        n_steps: of all simulations, between the reports.
        wall: seconds in which they were made. What the server does not account for is i-PI's, and the way to it and back; its own
            waiting is longer, since it is at rest between its turns.
    """
    seconds = {
        phase: value - first["seconds"].get(phase, 0.0)
        for phase, value in last["seconds"].items()
        if phase not in IDLE_PHASES
    }
    lists = sum(each["seconds"] for each in last["neighbor_lists"])
    lists -= sum(each["seconds"] for each in first["neighbor_lists"])
    seconds["neighbour lists"] = lists
    seconds[MODEL] = seconds.get(MODEL, 0.0) - lists
    seconds = {IPI: wall - sum(seconds.values()), **seconds}
    return {phase: value / n_steps for phase, value in seconds.items()}
