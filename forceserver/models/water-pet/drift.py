"""Energy drift at constant energy against M, the number of direct steps per conservative correction: a table of the model's card.

    python drift.py model.pt --time 2 -o drift

64 water molecules at 300 K on real i-PI, inner step 0.5 fs unless `--inner-step` says otherwise. M = 1 stands for direct forces
alone, `conservative` for no direct forces at all. Every run has its folder; the same command goes on where it was interrupted,
extends finished runs to a longer `--time`, tries again what broke off, and prints the table of what there is.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from analysis import Run, read_run
from analysis.bonds import broken_bonds
from analysis.drift import energy_drift
from analysis.errors import AnalysisError
from analysis.inputfile import read_facts
from analysis.kinetics import temperature
from forceserver.attempt import ServerCommand
from forceserver.demo.costs import sensible_threads
from forceserver.demo.tour import seconds_per_step
from forceserver.errors import ForceServerError, UsageError
from forceserver.launch import Ending, LaunchOptions, Supervisor
from forceserver.logs import start_logging
from forceserver.openmp import spin_briefly
from forceserver.potentials.specification import anchored
from forceserver.progress import PropertiesTail, show_progress
from forceserver.restart import TOTAL_STEPS, read_record
from forceserver.signals import stop_on_signals
from ipi_inputs import load

INNER_FS = 0.5
CASES = ("conservative", "1", "2", "3", "4", "6", "8", "10")
NOT_FINISHED = 75
OUTCOME = "outcome.json"


@dataclass(frozen=True)
class Case:
    """One run."""

    name: str  # conservative, or M
    folder: Path
    time_ps: float
    inner_fs: float = INNER_FS

    @property
    def n_inner(self) -> int:
        return 1 if self.name == "conservative" else int(self.name)

    @property
    def step_fs(self) -> float:
        """The step that i-PI counts: the outer one."""
        return self.inner_fs * self.n_inner

    @property
    def n_steps(self) -> int:
        return round(1e3 * self.time_ps / self.step_fs)

    @property
    def input_path(self) -> Path:
        return self.folder / "input.xml"

    def write_input(self) -> Path:
        """The input; of a run that is there already, only the length may change.

        Raises:
            UsageError: it has another time step.
        """
        path = self.input_path
        if path.exists():
            step_fs = read_facts(path).timestep_fs
            if not math.isclose(step_fs, self.step_fs, rel_tol=1e-6):
                raise UsageError(
                    f"it has steps of {step_fs:g} fs, not {self.step_fs:g}; name another folder with -o"
                )
            text = TOTAL_STEPS.sub(rf"\g<1> {self.n_steps} \g<3>", path.read_text(), count=1)
            path.write_text(text)
            return path
        if self.name == "conservative":
            file = load("nve")
        else:
            file = load("nve-direct") if self.n_inner == 1 else load("nve-mts").with_(mts=self.n_inner)
        return file.with_(steps=self.n_steps, timestep_fs=self.step_fs).write(path)


def run_case(case: Case, model: str, n_threads: int) -> Ending:
    """Run it, or what is left of it; what it took, and why it ended, is written beside it.

    Raises:
        ForceServerError: it cannot be started, or has another time step.
    """
    path = case.write_input()
    rows: list[tuple[int, float]] = []
    servers = ServerCommand(model, options=("--threads", str(n_threads)))
    with stop_on_signals() as stop, show_progress(f"{case.name}", case.n_steps) as show:

        def watch(step: int, tail: PropertiesTail) -> None:
            rows.append((step, time.monotonic()))
            show(step, tail)

        supervisor = Supervisor(path, LaunchOptions(servers, retries=1), stop, watch)
        ending = supervisor.run()
    known = read_record(case.folder / OUTCOME)
    seconds = seconds_per_step(rows) / case.n_inner
    if seconds == seconds:  # not nan: enough rows were seen
        known["ms"] = 1e3 * seconds
    known["failure"] = supervisor.reason if ending is Ending.FAILED else ""
    (case.folder / OUTCOME).write_text(json.dumps(known) + "\n")
    return ending


def describe(case: Case) -> str | None:
    """The row of the table; None where nothing has run."""
    if not case.input_path.exists():
        return None
    known = read_record(case.folder / OUTCOME)
    milliseconds = f"{known['ms']:.0f}" if "ms" in known else "-"
    row = [case.name, f"{read_facts(case.input_path).timestep_fs:g}"]
    try:
        run = read_run(case.folder)
        drift, kinetic = energy_drift(run), temperature(run)
        row += [f"{run.duration_ps:.3g}", drift.number, kinetic.number, milliseconds, _intact(run)]
    except AnalysisError:
        row += ["-", "-", "-", milliseconds, "-"]
    return f"| {' | '.join(row)} |" + (f" broke off: {known['failure']}" if known.get("failure") else "")


def _intact(run: Run) -> str:
    """Molecules whose O-H bonds hold in the last frame; the library's water is O H H in turn."""
    broken = {bond.atoms[0] // 3 for bond in broken_bonds(run) or []}
    n_molecules = run.atoms.n_atoms // 3
    return f"{n_molecules - len(broken)} of {n_molecules}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="as for `forceserver run`")
    parser.add_argument("--time", type=float, default=2.0, help="ps of each run")
    parser.add_argument("--inner-step", type=float, default=INNER_FS, help="fs; of a new folder only")
    parser.add_argument("-o", "--output", type=Path, default=Path("drift"), help="folder of the runs")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, metavar="M")
    parser.add_argument("--threads", type=int, default=sensible_threads(), help="of the server")
    parser.add_argument("--table", action="store_true", help="only print the table of what has run")
    arguments = parser.parse_args()
    spin_briefly()
    start_logging()
    cases = [
        Case(name, arguments.output / f"M-{name}", arguments.time, arguments.inner_step)
        for name in arguments.cases
    ]
    endings = []
    for case in [] if arguments.table else cases:
        try:
            endings.append(run_case(case, anchored(arguments.model), arguments.threads))
        except ForceServerError as error:
            print(f"drift.py: {case.folder}: {error}", file=sys.stderr)
            return error.exit_code
        if endings[-1] is Ending.INTERRUPTED:
            print("interrupted; the same command goes on", file=sys.stderr)
            break
    print("| M | step, fs | ps | drift, meV/ps/atom | T, K | ms per inner step | molecules intact |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in filter(None, map(describe, cases)):
        print(row)
    if Ending.INTERRUPTED in endings:
        return NOT_FINISHED
    return int(Ending.FAILED in endings)


if __name__ == "__main__":
    sys.exit(main())
