"""`forceserver bench` with real i-PI, real servers and real drivers: what it measures, and that nothing outlives it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from forceserver.bench.cases import parse_case
from forceserver.bench.contenders import CONTENDERS, Contender, PeerModel, Plan, Setting
from forceserver.bench.measure import CaseBench, Options, Place
from forceserver.bench.results import CaseResult
from forceserver.bench.run import _check_folder, _take_folder
from forceserver.errors import UsageError
from forceserver.signals import StopRequest
from forceserver.structure_files import read_structure, write_structure
from forceserver.structures import CONSERVATIVE
from real_ipi import BIN, WATER64
from systems import to_ase, water_box

if TYPE_CHECKING:
    from forceserver.bench.cases import Case
    from model_factory import Recipe

pytestmark = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for processes in /proc")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """For the output of a bench; no process may be at home in it when the test is over."""
    yield tmp_path / "bench"
    check_nobody_left(tmp_path / "bench")


def processes_in(folder: Path) -> list[int]:
    """That run in a folder or below it, zombies not counted."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cwd").resolve(strict=True).is_relative_to(folder):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def check_nobody_left(folder: Path) -> None:
    """Python's tracker of shared memory ends a moment after the process that it watches."""
    end = time.monotonic() + 5.0
    while (left := processes_in(folder)) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def bench_command(*words: str | Path) -> list[str]:
    return [str(BIN / "forceserver"), "bench", *(str(word) for word in words)]


def run_bench(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(bench_command(*words), capture_output=True, text=True, timeout=120, check=False)


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.05)


def test_a_small_model_by_multiple_time_stepping(
    pair_model: Callable[[Recipe], Path], tmp_path: Path, folder: Path
) -> None:
    """Ours, i-PI's driver and the limit: the same forces, all times, who did what, and why one is missing."""
    from model_factory import Recipe

    write_structure(to_ase(water_box(8)), tmp_path / "small.xyz")
    done = run_bench(
        pair_model(Recipe()), tmp_path / "small.xyz", "-o", folder, "--cases", "mts-2", "--repeats", "2",
        "--steps", "4", "--threads", "1", "--contenders", "ours,driver,driver-batch,limit",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "bench.json").read_text())
    (case,) = record["cases"]
    by_name = {each["name"]: each for each in case["contenders"]}
    assert case["disagreements"] == []
    assert by_name["ours"]["first_geometry"]["force"] > 0.1  # so that to agree means something
    for name in ("ours", "driver", "limit"):
        assert len(by_name[name]["seconds_per_step"]) == 2
        assert 0 < by_name[name]["median"]["low"] <= by_name[name]["median"]["high"] < 5
        assert 0 < sum(by_name[name]["processor_seconds_per_step"]) < 10
        assert by_name[name]["memory"]["peak_MB"] > by_name[name]["memory"]["own_MB"] > 50
    assert "nothing to batch" in by_name["driver-batch"]["left_out"]
    assert by_name["ours"]["steps_in_a_repeat"] == 5  # the first of a turn does not count
    # What our server says it did fits into what i-PI says a step took, and the model is most of it.
    phases = by_name["ours"]["seconds_by_phase"]
    assert all(seconds > 0 for seconds in phases.values())
    assert phases["model"] > 0.2 * sum(phases.values())
    assert {"forward", "backward", "neighbour lists"} <= set(by_name["limit"]["seconds_of_the_model"])
    # The server wrote an account before the turns, after them, and at its end: in between, two turns of four steps and one that
    # does not count, each step of two direct evaluations and a conservative one.
    lines = (folder / "mts-2" / "ours" / "report.jsonl").read_text().splitlines()
    first, second, last = (json.loads(line) for line in lines)
    assert second["n_requests"] == first["n_requests"] + 2 * 5 * 3
    assert last["n_requests"] == second["n_requests"]
    assert {each["role"] for each in last["requests"]} == {"conservative", "direct"}
    assert 0 < second["evaluation"]["n_forward_passes"] <= second["n_requests"]
    assert "ours is faster by a factor of" in done.stdout
    assert (folder / "bench.png").stat().st_size > 1000


def small_bench(
    case: Case, contenders: Sequence[Contender], folder: Path, *, clients: int | None = None, steps: int = 3
) -> CaseResult:
    """In this process, with forces that cost nothing."""
    folder.mkdir()
    structure = folder / "structure.xyz"
    write_structure(read_structure(WATER64), structure)
    setting = Setting("noop", PeerModel("dummy"), clients=clients)
    stop, said = StopRequest(), list[str]()
    place = Place(structure, 192, folder, f"{folder}/s")
    options = Options(repeats=2, steps=steps)
    bench = CaseBench(case, setting, frozenset({CONSERVATIVE}), options, place, stop, said.append)
    try:
        return bench.measure(contenders)
    finally:
        stop.close()


@pytest.fixture
def short_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A unix socket has a path of at most 107 characters."""
    return tmp_path_factory.mktemp("b") / "bench"


def test_who_breaks_down_is_told_with_its_last_words_and_the_others_go_on(short_folder: Path) -> None:
    def plan_nonsense(case: Case, setting: Setting, sockets: str) -> Plan:
        plan = CONTENDERS["driver"].plan(case, setting, sockets)
        return replace(
            plan, commands=tuple((sim, (*command, "--nonsense")) for sim, command in plan.commands)
        )

    broken = Contender("driver", "a driver that dies", plan_nonsense, is_peer=True)
    shm = CONTENDERS["driver-shm"]
    result = small_bench(parse_case("conservative"), [broken, shm], short_folder)
    assert "ended with code 2" in result.entries[0].failure
    assert "unrecognized arguments: --nonsense" in result.entries[0].failure
    assert len(result.entries[1].seconds) == 2
    check_nobody_left(short_folder)


def test_all_clients_have_joined_before_anything_is_measured(short_folder: Path) -> None:
    """Two simulations at once, two drivers on each: i-PI starts with the first that comes."""
    case = replace(parse_case("pimd-4"), n_simulations=2)
    result = small_bench(case, [CONTENDERS["drivers"]], short_folder, clients=2, steps=100)
    assert result.entries[0].failure == ""
    assert len(result.entries[0].seconds) == 2
    assert result.entries[0].plan is not None
    assert len(result.entries[0].plan.commands) == 4
    for sim in ("1", "2"):
        log = (short_folder / "drivers" / sim / "i-pi.log").read_text()
        assert log.count("Handshaking was successful") == 2
    check_nobody_left(short_folder)


def test_who_finds_no_room_in_memory_waits_for_the_next_round(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for two, three take two rounds, and the first is in both: so each has repeats in common with it."""
    from forceserver.bench import measure

    monkeypatch.setattr(measure, "_has_room_for", lambda runners: len(runners) < 2)
    contenders = [CONTENDERS[name] for name in ("driver", "driver-shm", "ffdirect")]
    result = small_bench(parse_case("conservative"), contenders, short_folder)
    has_turn = [[not math.isnan(each) for each in entry.seconds] for entry in result.entries]
    assert has_turn == [[True] * 4, [True] * 2, [False] * 2 + [True] * 2]
    first, second, third = result.entries
    assert second.slower_than(first).low > 0
    assert third.slower_than(first).low > 0
    assert math.isnan(third.slower_than(second).low)  # never in turns
    check_nobody_left(short_folder)


def start_endless(folder: Path) -> subprocess.Popen[str]:
    """A bench that would run for hours, and has begun to measure: one contender runs, the other is frozen."""
    command = bench_command(
        "noop", WATER64, "-o", folder, "--cases", "conservative", "--contenders", "driver,driver-shm", "--repeats", "1000",
        "--steps", "20",
    )  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "repeat 2 of" in line:
            break
    assert len(processes_in(folder)) >= 4
    return process


def test_ctrl_c_ends_all_and_keeps_what_there_is(folder: Path) -> None:
    process = start_endless(folder)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "SIGINT: the bench was stopped" in errors
    assert "Traceback" not in errors
    (case,) = json.loads((folder / "bench.json").read_text())["cases"]
    assert all(len(each["seconds_per_step"]) >= 1 for each in case["contenders"])
    assert "written:" in out


def test_a_bench_that_is_killed_leaves_no_frozen_i_pi(folder: Path) -> None:
    process = start_endless(folder)
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not processes_in(folder), 20.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("noop", WATER64, "--cases", "mts-x"), "there is no case 'mts-x' (did you mean 'mts-"),
        (("noop", WATER64, "--contenders", "our"), "there is no 'our' (did you mean 'ours'?)"),
        (("nonsense", WATER64), "unknown model 'nonsense'"),
        (("missing.pt", WATER64, "--contenders", "ours"), "no model file"),
        (("noop", "missing.xyz"), "cannot read a structure from missing.xyz"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    words: tuple[str | Path, ...], message: str, folder: Path
) -> None:
    done = run_bench(*words, "-o", folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refused_bench_loses_nothing(folder: Path, tmp_path: Path) -> None:
    run_in = ("-o", folder, "--cases", "conservative", "--contenders", "driver")
    few = ("--repeats", "1", "--steps", "2")
    done = run_bench("noop", WATER64, *run_in, *few)
    assert done.returncode == 0, done.stderr
    (folder / "notes.txt").write_text("my own")
    before = contents(folder)
    for model in ("missing.pt", "lj:epsilon=nonsense"):
        done = run_bench(model, WATER64, *run_in)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
        assert contents(folder) == before
    (tmp_path / "link").symlink_to(folder)
    done = run_bench(
        "noop", WATER64, "-o", tmp_path / "link", "--cases", "simulations-2", *few, "--contenders", "driver"
    )
    assert done.returncode == 0, done.stderr
    assert {path.parts[0] for path in contents(folder)} == {
        "forceserver-bench", "notes.txt", "bench.json", "bench.png", "simulations-2"
    }  # fmt: skip
    assert (folder / "notes.txt").read_text() == "my own"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["mine", "link", "."])
def test_a_folder_with_other_files_is_not_touched(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("dear reader")
    (tmp_path / "link").symlink_to(mine)
    monkeypatch.chdir(mine if name == "." else tmp_path)
    with pytest.raises(UsageError, match="holds other files"):
        _check_folder(Path(name), [])
    assert contents(mine) == {Path("thesis.tex"): b"dear reader"}


@pytest.mark.parametrize("name", ["notes.txt", "notes.txt/bench", "dangling"])
def test_what_can_be_no_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "else")
    done = run_bench("noop", WATER64, "-o", tmp_path / name)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "is no folder and cannot be made one" in done.stderr
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["link", "."])
def test_only_what_a_bench_has_made_is_replaced(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    monkeypatch.chdir(real if place == "." else tmp_path)
    first = ["bench.json", "mts-4"]
    _check_folder(Path(place), first)
    _take_folder(Path(place), first)
    for name in ("mts-4", "pimd-8"):
        (real / name).mkdir()
        (real / name / "structure.xyz").touch()
    with pytest.raises(UsageError, match="holds pimd-8, not known to be of an earlier bench"):
        _check_folder(Path(place), ["pimd-8"])
    _check_folder(Path(place), ["mts-4"])
    _take_folder(Path(place), ["mts-4"])
    assert {entry.name for entry in real.iterdir()} == {"forceserver-bench", "pimd-8"}
    assert (tmp_path / "link").is_symlink()
