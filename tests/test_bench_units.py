"""The parts of `forceserver bench` that run nothing: cases, plans, inputs, statistics, table."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from forceserver.bench.cases import QUICK, USUAL, parse_case, parse_cases, scaling_cases, sizes_of_cell
from forceserver.bench.contenders import (
    CONTENDERS,
    PeerModel,
    Setting,
    Unsuitable,
    choose_contenders,
    read_peer_model,
)
from forceserver.bench.inputs import ForceField, input_text
from forceserver.bench.measure import Options, phases_per_step
from forceserver.bench.memory import Memory
from forceserver.bench.record import case_record, write_record
from forceserver.bench.results import IPI, CaseResult, Entry
from forceserver.bench.scaling import ScalingResult
from forceserver.bench.statistics import fit_exponent, median_interval, paired_ratio, seconds_per_step
from forceserver.bench.table import case_notes, print_case, print_scaling, print_summary
from forceserver.errors import UsageError
from forceserver.inputfile import read_input
from forceserver.structure_files import read_structure, write_structure
from forceserver.structures import CONSERVATIVE, DIRECT
from real_ipi import WATER64

PEER = PeerModel("metatomic", {"model": "/models/model.pt"})
BOTH = frozenset({CONSERVATIVE, DIRECT})


# Cases


def test_the_usual_cases_and_the_quick_ones_are_cases() -> None:
    assert [case.name for case in parse_cases("")] == list(USUAL)
    assert set(QUICK) <= set(USUAL)


@pytest.mark.parametrize(
    ("name", "n_beads", "m", "passes"),
    [
        ("conservative", 1, 1, [(1, {CONSERVATIVE})]),
        ("direct", 1, 1, [(1, {DIRECT})]),
        ("pimd-8", 8, 1, [(8, {CONSERVATIVE})]),
        ("simulations-4", 1, 1, [(4, {CONSERVATIVE})]),
        ("mts-3", 1, 3, [(1, {DIRECT}), (1, {DIRECT}), (1, BOTH)]),
        ("pimd-8-mts-2", 8, 2, [(8, {DIRECT}), (8, BOTH)]),
        ("rpc-16-4-mts-2", 16, 2, [(16, {DIRECT}), (16, {DIRECT}), (4, BOTH)]),
    ],
)
def test_a_case_knows_the_fewest_model_calls_of_a_step(
    name: str, n_beads: int, m: int, passes: list[tuple[int, set[str]]]
) -> None:
    """Of M geometries in an outer step one needs both forces, unless they are those of another ring polymer."""
    case = parse_case(name)
    assert (case.n_beads, case.n_inner_steps) == (n_beads, m)
    assert case.passes() == passes


@pytest.mark.parametrize(
    "name",
    [
        "pimd",
        "pimd-1",
        "mts-1",
        "mts",
        "rpc-4-4-mts-2",
        "rpc-4-8-mts-2",
        "simulations-1",
        "mts-4-pimd-8",
        "x",
    ],
)
def test_what_is_no_case_is_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        parse_cases(f"conservative,{name}")


def test_cells_are_doubled_along_their_shortest_side() -> None:
    sizes = sizes_of_cell(192, 12288)
    assert [192 * a * b * c for a, b, c in sizes] == [192, 384, 768, 1536, 3072, 6144, 12288]
    assert sizes[-1] == (4, 4, 4)
    assert sizes_of_cell(192, 191) == [(1, 1, 1)]
    cells, polymers = scaling_cases(192, 800, 8)
    assert [case.name for case in cells] == ["atoms-192", "atoms-384", "atoms-768"]
    assert [case.n_beads for case in polymers] == [1, 2, 4, 8]


# Inputs: i-PI's own classes read them, and say what each socket is going to be asked for.


@pytest.mark.parametrize("name", USUAL)
def test_i_pi_reads_the_input_of_every_usual_case(name: str, tmp_path: Path) -> None:
    case = parse_case(name)
    write_structure(read_structure(WATER64), tmp_path / "structure.xyz")
    path = tmp_path / "input.xml"
    path.write_text(input_text(case, ForceField(in_batches=True), "/tmp/x-", 1))
    sockets = read_input(path).sockets
    assert {socket.name: socket.n_requests for socket in sockets} == {
        kind: case.most_at_once(kind) for kind in case.kinds
    }
    assert all(socket.batch_size == case.most_at_once(socket.name) for socket in sockets)  # type: ignore[arg-type]
    assert all(socket.parameters == {"forces": socket.name} for socket in sockets)
    assert all(len(socket.template.atomic_numbers) == 192 for socket in sockets)


def test_ffdirect_gets_a_thread_only_where_its_batches_do_not_fill() -> None:
    """Without one, i-PI would wait for ever for the contracted beads; with one, each request waits for a poll."""
    field = ForceField("ffdirect", in_batches=True, pes="metatomic")
    assert 'name="direct" pbc="false" threaded="True"' in input_text(
        parse_case("rpc-16-4-mts-4"), field, "x", 1
    )
    assert 'threaded="True"' not in input_text(parse_case("pimd-8-mts-4"), field, "x", 1)


def test_i_pi_s_xyz_and_extended_xyz_are_the_same_structure(tmp_path: Path) -> None:
    atoms = read_structure(WATER64)
    write_structure(atoms.repeat((2, 1, 1)), tmp_path / "twice.xyz")
    twice = read_structure(tmp_path / "twice.xyz")
    np.testing.assert_allclose(twice.positions[:192], atoms.positions, atol=1e-7)
    assert len(twice) == 384
    assert twice.get_volume() == pytest.approx(2 * atoms.get_volume())
    assert atoms.cell.lengths() == pytest.approx([12.42966124] * 3, rel=1e-7)


def test_a_structure_without_a_cell_is_refused(tmp_path: Path) -> None:
    (tmp_path / "atom.xyz").write_text("1\n\nO 0 0 0\n")
    with pytest.raises(UsageError, match="no cell"):
        read_structure(tmp_path / "atom.xyz")
    with pytest.raises(UsageError, match="cannot read"):
        read_structure(tmp_path / "missing.xyz")


# Contenders


def plan(name: str, case: str, **setting: object):  # type: ignore[no-untyped-def]
    words = {"model": "/models/model.pt", "peer_model": PEER, "threads": 4} | setting
    return CONTENDERS[name].plan(parse_case(case), Setting(**words), "/tmp/x-")  # type: ignore[arg-type]


def test_everybody_has_the_same_cores_and_divides_them_among_those_who_compute_at_once() -> None:
    assert plan("ours", "pimd-8").threads == 4
    assert plan("driver", "mts-4").threads == 4  # the two work in turns
    assert (plan("drivers", "pimd-8").threads, len(plan("drivers", "pimd-8").commands)) == (1, 4)
    assert (
        plan("drivers", "pimd-8", clients=2).threads,
        plan("ours-shared", "pimd-8", clients=2).threads,
    ) == (
        2,
        2,
    )
    assert plan("driver", "simulations-8").threads == 1
    assert plan("ffdirect", "simulations-2").threads == 2
    assert plan("limit", "pimd-8").threads == 4


def test_drivers_are_told_which_forces_and_where() -> None:
    commands = [" ".join(command) for _, command in plan("driver", "mts-4", device="cuda").commands]
    assert len(commands) == 2
    assert (
        "-a conservative -m metatomic -o template=structure.xyz,model=/models/model.pt,device=cuda"
        in commands[0]
    )
    assert "non_conservative" not in commands[0]  # any word is true to i-PI, "False" as well
    assert commands[1].endswith("device=cuda,non_conservative=True")
    assert "-a direct" in commands[1]
    assert all("--shm" in command for _, command in plan("driver-shm", "pimd-8").commands)
    assert [sim for sim, _ in plan("driver", "simulations-3").commands] == [1, 2, 3]


def test_our_server_serves_all_simulations_at_once_and_writes_a_report() -> None:
    ((sim, command),) = plan("ours", "simulations-3").commands
    assert sim == 0
    assert [word for word in command if word.endswith(".xml")] == [f"{n}/input.xml" for n in (1, 2, 3)]
    assert "--report" in command
    assert "--report" not in plan("ours-shared", "pimd-8").commands[0][1]  # all would write into one file


@pytest.mark.parametrize(
    ("name", "case", "setting", "reason"),
    [
        ("drivers", "mts-4", {}, "nothing to share"),
        ("drivers", "pimd-8", {"threads": 1}, "--clients 2"),
        ("driver-batch", "conservative", {}, "nothing to batch"),
        ("ours-batch", "direct", {}, "nothing to batch"),
        ("ours-no-fusion", "pimd-8", {}, "nothing to fuse"),
        ("limit-single", "mts-4", {}, "one structure at a time"),
        ("driver", "pimd-8", {"peer_model": "serves no such thing"}, "serves no such thing"),
    ],
)
def test_who_cannot_take_part_says_why(name: str, case: str, setting: dict[str, object], reason: str) -> None:
    with pytest.raises(Unsuitable, match=reason):
        plan(name, case, **setting)


def test_models_in_the_words_of_i_pi_s_drivers(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    assert read_peer_model(f"{path},variant=pbe") == PeerModel(
        "metatomic", {"model": str(path), "energy_variant": "pbe"}
    )
    assert read_peer_model("noop") == PeerModel("dummy")
    assert "qtip4pf" in str(read_peer_model("qtip4pf"))
    assert "check" in str(read_peer_model(f"{path},check=true"))
    with pytest.raises(UsageError, match="drivers"):
        choose_contenders("ours,driverz")


# Statistics


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40))
def test_a_median_lies_in_its_interval_and_the_interval_in_the_data(values: list[float]) -> None:
    interval = median_interval(values)
    assert min(values) <= interval.low <= interval.median <= interval.high <= max(values)
    assert interval.coverage >= 0.95 or (interval.low, interval.high) == (min(values), max(values))


@pytest.mark.parametrize("n", [5, 9, 20])
def test_the_interval_encloses_the_true_median_as_often_as_it_says(n: int) -> None:
    """Skewed noise, as that of a busy machine: exponential, whose median is log 2."""
    generator = random.Random(3)
    n_trials, hits, coverage = 4000, 0, 0.0
    for _ in range(n_trials):
        interval = median_interval([generator.expovariate(1.0) for _ in range(n)])
        hits += interval.low <= math.log(2) <= interval.high
        coverage = interval.coverage
    assert hits / n_trials == pytest.approx(coverage, abs=0.015)
    assert coverage == pytest.approx(0.9375) if n == 5 else coverage >= 0.95


def test_ratios_in_pairs_do_not_see_what_slows_both() -> None:
    """The machine is three times as slow in one repeat and twice in another: the ratio is 1.5 in each."""
    ours = [1.0, 3.0, 2.0, 1.0, 1.1]
    ratio = paired_ratio([1.5 * time for time in ours], ours)
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((1.5, 1.5, 1.5))


def test_an_exponent_is_found_with_its_error() -> None:
    sizes = [1, 2, 4, 8, 16]
    fitted = fit_exponent(sizes, [0.3 * size**1.7 for size in sizes])
    assert fitted.value == pytest.approx(1.7)
    assert fitted.error == pytest.approx(0.0, abs=1e-9)
    generator = np.random.default_rng(0)
    fits = [
        fit_exponent(sizes, [size * math.exp(0.1 * generator.normal()) for size in sizes]) for _ in range(500)
    ]
    scatter = float(np.std([fit.value for fit in fits]))
    assert float(np.sqrt(np.mean([fit.error**2 for fit in fits]))) == pytest.approx(scatter, rel=0.1)
    with pytest.raises(ValueError, match="two sizes"):
        fit_exponent([2, 2], [1, 1])


def test_time_per_step_leaves_out_the_first_step_of_a_turn() -> None:
    assert seconds_per_step([[0.0, 9.0, 10.0, 11.0]]) == pytest.approx(1.0)
    assert seconds_per_step([[0.0, 9.0]]) == pytest.approx(9.0)  # the only one


def test_time_per_step_of_several_simulations_counts_while_all_run() -> None:
    """Two that make a step a second each, one of which starts late: while both run, a step ends every half second."""
    early = [float(t) for t in range(11)]
    late = [5.25 + t for t in range(11)]
    assert seconds_per_step([early, late]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at the same time"):
        seconds_per_step([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]])
    with pytest.raises(ValueError, match="no step"):
        seconds_per_step([[0.0, 1.0], [0.0]])


def test_phases_of_our_server_are_what_lies_between_two_reports() -> None:
    first = {"seconds": {"waiting": 5.0, "model": 1.0, "packing": 0.1}, "neighbor_lists": [{"seconds": 0.2}]}
    last = {"seconds": {"waiting": 9.0, "model": 3.0, "packing": 0.5}, "neighbor_lists": [{"seconds": 0.6}]}
    phases = phases_per_step(first, last, 4, 3.0)
    wanted = {"model": 0.4, "packing": 0.1, "neighbour lists": 0.1, "i-PI and the way to it": 0.15}
    assert phases == pytest.approx(wanted)


# Results


def entry(name: str, seconds: list[float], **changes: object) -> Entry:
    answer = {"potential_eV": -5.0, "force": 3.0}
    made = Entry(
        CONTENDERS[name], plan(name, "mts-4"), seconds=seconds, answer=answer, memory=Memory(900.0, 500.0)
    )
    for key, value in changes.items():
        setattr(made, key, value)
    return made


@pytest.fixture
def result() -> CaseResult:
    entries = [
        entry("ours", [0.1, 0.2, 0.1], phases={IPI: 0.01, "model": 0.09, "packing": 0.01, "unpacking": 0.01}),
        Entry(CONTENDERS["ours-shared"], left_out="nothing to share"),
        entry("driver", [0.15, 0.3, 0.15]),
        entry("driver-shm", [0.12, 0.24, 0.12]),
        entry("ffdirect", [], failure="it said: out of memory"),
        entry("limit", [0.05, 0.1, 0.05], answer={"potential_eV": -5.0, "force": None}),
    ]
    return CaseResult(parse_case("mts-4"), 192, entries)


def printed(show: Callable[[Console], None]) -> str:
    console = Console(file=io.StringIO(), width=120)
    show(console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_table_has_all_who_were_measured_and_says_what_became_of_the_rest(result: CaseResult) -> None:
    text = printed(lambda console: print_case(console, result))
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert list(rows)[:4] == ["limit", "ours", "driver-shm", "driver"]  # the fastest first
    assert "100.0 [100.0, 200.0]" in rows["ours"]
    assert "2.00" in rows["ours"]  # x the limit
    assert "1.500 [1.500, 1.500]" in rows["driver"]
    assert "900 (500)" in rows["driver"]
    assert "failed" in rows["ffdirect"]
    assert "without ours-shared: nothing to share" in text
    assert "ffdirect failed: it said: out of memory" in text
    assert "our share (neither model nor i-PI) 16.7 %" in text  # 20 of 120 ms
    assert "WARNING" not in text


def test_the_summary_names_the_best_of_i_pi_s_own_ways(result: CaseResult) -> None:
    text = printed(lambda console: print_summary(console, [result]))
    (row,) = (line for line in text.splitlines() if "mts-4" in line)
    assert [cell.strip() for cell in row.split("│")[1:7]] == [
        "mts-4", "100.0", "0.500 [0.500, 0.500]", "1.200 [1.200, 1.200]", "driver-shm", "1.500 [1.500, 1.500]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"potential_eV": -5.3, "force": 3.0}, "energies of -5 and -5.3 eV"),
        ({"potential_eV": -5.0, "force": 3.2}, "forces of modulus 3 and 3.2"),
    ],
)
def test_who_computes_something_else_is_told(
    result: CaseResult, answer: dict[str, float], words: str
) -> None:
    result.entries[2].answer = answer
    (note,) = (line for line in case_notes(result) if "WARNING" in line)
    assert "driver computes something else than ours" in note
    assert words in note


def test_the_record_has_all_samples_and_every_reason(result: CaseResult) -> None:
    by_name = {each["name"]: each for each in case_record(result)["contenders"]}
    assert by_name["ours"]["seconds_per_step"] == [0.1, 0.2, 0.1]
    assert by_name["driver"]["ours_is_faster_by"]["median"] == pytest.approx(1.5)
    assert by_name["driver"]["over_the_limit"]["median"] == pytest.approx(3.0)
    assert by_name["ours-shared"]["left_out"] == "nothing to share"
    assert by_name["ffdirect"]["failed"] == "it said: out of memory"
    assert by_name["ours"]["own_share"] == pytest.approx(1 / 6)


def test_the_scaling_table_has_exponents_and_memory() -> None:
    cells, _ = scaling_cases(192, 1536, 1)
    results = [
        CaseResult(case, 192 * 2**k, [entry("ours", [0.01 * 2.0 ** (1.5 * k)])])
        for k, case in enumerate(cells)
    ]
    scaling = ScalingResult(atoms=results)
    text = printed(lambda console: print_scaling(console, scaling))
    assert "time ~ atoms^1.50 (error 0.00)" in text
    assert "1536" in text
    assert "error nan" not in printed(
        lambda console: print_scaling(console, ScalingResult(atoms=results[:2]))
    )
    assert "900" in text


def test_the_record_is_json_that_everybody_reads(result: CaseResult, tmp_path: Path) -> None:
    """No nan in it: two sizes have no error of the exponent, and two contenders that never met no interval."""
    result.entries[2].seconds = [math.nan, math.nan, math.nan, 0.15]
    setting = Setting("noop", PEER)
    scaling = ScalingResult(atoms=[result, CaseResult(result.case, 384, [entry("ours", [0.3])])])
    write_record(tmp_path / "bench.json", [result], scaling, setting, Options(), {"name": "x"}, WATER64)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    record = json.loads((tmp_path / "bench.json").read_text(), parse_constant=refuse)
    (driver,) = (each for each in record["cases"][0]["contenders"] if each["name"] == "driver")
    assert driver["seconds_per_step"] == [None, None, None, 0.15]
    assert driver["ours_is_faster_by"] == {
        "median": pytest.approx(1.5),
        "low": None,
        "high": None,
        "coverage": 0.0,
    }
    assert record["scaling"]["atoms"]["exponents"]["ours"]["all_sizes"]["error"] is None
