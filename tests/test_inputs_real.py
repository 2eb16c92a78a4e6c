"""Every input of the library, run by a real i-PI with a real force server, on a small box of water."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from ase.data import chemical_symbols

from ipi_inputs.cost import cost_of
from ipi_inputs.facts import InputFacts
from ipi_inputs.judge import judge
from ipi_inputs.library import load, names
from systems import water_box

BIN = Path(sys.executable).parent
STEPS = 5
LINE_SEARCH = "geometry-optimization-lbfgs"  # takes as many evaluations as it needs
KINDS_OF = {  # of the sockets of the library, by name
    "conservative": ("conservative",),
    "direct": ("direct",),
    "blended": ("conservative", "direct"),
    "fast": ("conservative of model fast",),
}
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Runs:
    """All inputs, run for a few steps, and what the server said about it."""

    folder: Path
    facts: dict[str, InputFacts]
    exit_codes: dict[str, int]
    server_exit_code: int
    server_log: str


def write_small_water(path: Path) -> Path:
    box = water_box(8)
    edge = box.cell[0, 0]
    rows = [
        f"{chemical_symbols[number]} {x:.8f} {y:.8f} {z:.8f}"
        for number, (x, y, z) in zip(box.atomic_numbers, box.positions, strict=True)
    ]
    header = (
        f"# CELL(abcABC): {edge:.8f} {edge:.8f} {edge:.8f} 90 90 90 positions{{angstrom}} cell{{angstrom}}"
    )
    path.write_text("\n".join([str(box.n_atoms), header, *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("inputs")
    water = write_small_water(folder / "water.xyz")
    facts = {}
    for name in names():
        source = load(name).with_(steps=STEPS, structure=water, address=f"t{os.getpid()}-{name}")
        source.write(folder / name / "input.xml")
        facts[name] = source.facts

    def run(name: str) -> int:
        with (folder / name / "i-pi.log").open("w") as log:
            command = [BIN / "i-pi", "input.xml"]
            return subprocess.run(
                command, cwd=folder / name, stdout=log, stderr=log, timeout=200, env=ONE_THREAD
            ).returncode

    everything = [word for name in facts for word in ("-i", str(folder / name / "input.xml"))]
    command = [BIN / "forceserver", "run", "qtip4pf:direct=0.02", "--also", "fast=qtip4pf", *everything]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=ONE_THREAD)
        try:
            with ThreadPoolExecutor(6) as pool:
                exit_codes = dict(zip(facts, pool.map(run, facts), strict=True))
            server_exit_code = server.wait(30)
        finally:
            server.kill()
            server.wait()
    return Runs(folder, facts, exit_codes, server_exit_code, (folder / "server.log").read_text())


def test_one_server_serves_all_inputs_to_their_ends(runs: Runs) -> None:
    assert set(runs.exit_codes.values()) == {0}
    assert runs.server_exit_code == 0, runs.server_log


@pytest.mark.parametrize("name", names())
def test_an_input_runs_and_writes_its_columns(runs: Runs, name: str) -> None:
    log = (runs.folder / name / "i-pi.log").read_text()
    assert runs.exit_codes[name] == 0, log
    for system in runs.facts[name].systems:
        for output in runs.facts[name].outputs_of("properties"):
            stem = f"{system.prefix}_" if system.prefix else ""
            path = runs.folder / name / f"{stem}{runs.facts[name].prefix}.{output.filename}"
            header = re.findall(r"# +(?:column|cols\.) +[\d-]+ +--> (\S+)", path.read_text())
            assert header == list(output.items)
            table = np.loadtxt(path, ndmin=2)
            assert len(table) == STEPS // output.stride + 1
            assert np.isfinite(table).all()


@pytest.mark.parametrize("name", names())
def test_an_input_writes_its_trajectories(runs: Runs, name: str) -> None:
    for system in runs.facts[name].systems:
        for output in runs.facts[name].outputs_of("trajectory"):
            stem = f"{system.prefix}_" if system.prefix else ""
            pattern = f"{stem}{runs.facts[name].prefix}.{output.filename}*.xyz"
            files = sorted((runs.folder / name).glob(pattern))
            assert len(files) in (1, system.n_beads), pattern
            for file in files:
                unit = output.items[0].partition("{")[2].rstrip("}")
                assert f"{{{unit}}}" in file.read_text().splitlines()[1]


def test_costs_are_what_the_server_counts(runs: Runs) -> None:
    """Requests by kind of forces: the first point, and the steps times what `cost_of` says."""
    expected: Counter[str] = Counter()
    for name, facts in runs.facts.items():
        if name == LINE_SEARCH:
            continue
        first: Counter[str] = Counter()
        for system in facts.systems:
            for component in system.components:
                for kind in KINDS_OF[component.forcefield]:
                    first[kind] += component.n_beads or system.n_beads
        for kind, per_step in cost_of(facts).per_outer_step.items():
            expected[kind] += int(
                first[kind] + STEPS * per_step
            )  # a monitor is written at the first point only

    counted: Counter[str] = Counter()
    summary = next(line for line in runs.server_log.splitlines() if "force requests: " in line)
    for count, socket in re.findall(r"(\d+) [^']+ on '(\w+)'", summary.partition("requests: ")[2]):
        for kind in KINDS_OF[socket]:
            counted[kind] += int(count)

    line_search = counted["conservative"] - expected["conservative"]
    assert STEPS < line_search <= 3 * (STEPS + 1)
    for kind in ("direct", "conservative of model fast"):
        assert counted[kind] == expected[kind]


def test_ring_polymer_dynamics_can_start_from_the_restart_of_a_thermostatted_one(runs: Runs) -> None:
    source = load("rpmd").with_(structure=runs.folder / "pimd-pile-l" / "RESTART")
    assert judge(source.text, source.folder).n_atoms == 24
    assert '<file mode="chk">' in source.text
