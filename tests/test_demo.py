"""The tour: real runs on real i-PI, its table and report, what it does when it is interrupted, and what it never deletes."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from forceserver.commands.demo import by_hand, demo
from forceserver.demo import costs, findings, stops, tour
from forceserver.demo.costs import sensible_threads
from forceserver.demo.findings import Finding, rows_of, show_page
from forceserver.demo.stops import STOPS, Stop, duration_text, expected_seconds
from forceserver.demo.tour import LONG_PS, MARKER, Outcome, Tour, finish, run_tour, seconds_per_step
from forceserver.errors import ForceServerError, UsageError
from forceserver.models import BundledModel
from forceserver.run_folder import LOCK, locked
from forceserver.structure_files import read_structure, to_structure
from ipi_inputs import lint
from launched import wait_for
from real_ipi import BIN, WATER64

MODEL = "qtip4pf:direct=0.05"
BY_TITLE = {stop.title: stop for stop in STOPS}


def take(monkeypatch: pytest.MonkeyPatch, *titles: str) -> None:
    """Only these stops."""
    chosen = tuple(BY_TITLE[title] for title in titles)
    for module in (stops, tour):
        monkeypatch.setattr(module, "STOPS", chosen)


@pytest.mark.parametrize("stop", STOPS, ids=[stop.title for stop in STOPS])
def test_every_stop_is_an_input_that_the_linter_knows(stop: Stop, tmp_path: Path) -> None:
    """Nothing is wrong with it but what it is there to show."""
    path = stop.input_file(0.1).write(tmp_path / "input.xml")
    system = stop.input_file(0.1).facts.systems[0]
    assert system.timestep_fs == pytest.approx(stop.timestep_fs)
    assert system.inner_timestep_fs == pytest.approx(0.5)
    wrong = {finding.rule for finding in lint(path) if finding.level == "error"}
    assert wrong <= {"direct-global-thermostat", "direct-unthermostatted"}


def test_the_tour_shows_every_way_to_use_forces() -> None:
    runs = [stop.input_file(0.1).facts for stop in STOPS]
    assert [run.systems[0].n_beads for run in runs] == [1, 1, 1, 1, 1, 1, 8]
    roles = [{socket.forces for socket in run.sockets} for run in runs]
    assert roles[0] == {"conservative"}
    assert roles[4] == {"direct"}
    assert "blended" in roles[2]
    assert all(roles[index] == {"conservative", "direct"} for index in (3, 5, 6))


def test_a_short_tour_runs_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take(monkeypatch, "NVE direct", "NVE MTS 4")
    folder = tmp_path / "tour"
    outcomes = run_tour(Tour(MODEL, 0.01), folder)
    found = findings.judge(outcomes)
    page = findings.write_findings(found, folder)
    findings.print_findings(found, MODEL)
    out = capsys.readouterr().out
    assert "NVE direct" in out
    direct, mts = rows_of(found)
    assert direct[:3] == ("NVE direct", "300", "0.15"), "fifteen times its share"
    assert mts[:3] == ("NVE MTS 4", "16", "0.03")
    assert all(re.fullmatch(r"-?[\d.]+\([\d.]+\)", row[4]) for row in (direct, mts))
    assert float(direct[4].partition("(")[0]) > 20.0 > abs(float(mts[4].partition("(")[0]))
    lines = (folder / "table.md").read_text().splitlines()
    assert lines[2] == f"| {' | '.join(direct)} |"
    assert "1-nve-direct" in page.read_text()
    assert (folder / "demo.png").stat().st_size > 5000


def test_the_widest_table_fits_an_old_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows as wide as those of the full tour in the README."""
    row = ("NVE conservative", "20000", "10.00", "0.24", "-0.0021(17)", "295.0(1.7)", "300.8(7)", "too short")
    monkeypatch.setattr(findings, "rows_of", lambda found: [row])
    monkeypatch.setenv("COLUMNS", "80")
    findings.print_findings([Finding(Outcome(STOPS[0], Path(), 1, math.nan), None)], "water-pet")
    assert " ".join(row) in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_an_interrupted_tour_is_continued_by_the_same_command(tmp_path: Path) -> None:
    command = [str(BIN / "forceserver"), "demo", "--model", MODEL, "--length", "0.05", "--no-browser"]
    folder = tmp_path / "demo-output"
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    properties = folder / "2-nve-direct" / "demo.properties"
    wait_for(lambda: properties.exists() and len(properties.read_text().splitlines()) > 14, 120.0)
    wait_for((folder / "1-nve-conservative" / "ended.json").exists, 120.0)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 75, said
    assert "the same command continues it" in said
    assert "Traceback" not in said
    done = (folder / "1-nve-conservative" / "ended.json").stat().st_mtime
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert (folder / "1-nve-conservative" / "ended.json").stat().st_mtime == done
    assert (folder / "2-nve-direct" / "CONTINUE.xml").exists()
    table = (folder / "table.md").read_text().splitlines()[2 : 2 + len(STOPS)]
    assert [row.split("|")[1].strip() for row in table] == [stop.title for stop in STOPS]
    assert (folder / MARKER).read_text() == ""


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> str:
    """A slow model whose forces are not finite; where `,when=FILE` follows, from the moment that the file is there."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    return "ase:faulty_model:FaultyCalculator,fault=nan,pause=0.05"


def test_a_run_that_breaks_off_is_a_row_and_not_the_end(
    faulty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(monkeypatch, "NVE MTS 4", "NVE conservative")
    done, broken = tmp_path / "tour" / "1-nve-mts-4", tmp_path / "tour" / "2-nve-conservative"
    asked = Tour(f"{faulty},when={tmp_path}/now", 0.05)
    done.parent.mkdir()
    tour._take_folder(asked, tmp_path / "tour")
    done.mkdir()
    (done / "ended.json").write_text(json.dumps({"seconds_per_fs": 0.1}))

    def spoil() -> None:
        properties = broken / "demo.properties"
        wait_for(lambda: properties.exists() and properties.read_text().count("\n") > 12, 120.0)
        (tmp_path / "now").touch()

    thread = threading.Thread(target=spoil)
    thread.start()
    outcomes = run_tour(asked, tmp_path / "tour")
    thread.join()
    assert outcomes[0].failure == ""
    assert "server 1 ended with code 1" in outcomes[1].failure
    row = rows_of([Finding(outcomes[1], None)])[0]
    assert row[-1] == "broke off"
    assert 0 < int(row[1]) < BY_TITLE["NVE conservative"].n_steps(0.05), "the steps that it has made"
    (tmp_path / "now").unlink()
    again = run_tour(asked, tmp_path / "tour")[1]
    assert again.failure == "", "what killed it is gone: the same command goes on"
    assert (broken / "CONTINUE.xml").exists()
    assert rows_of([Finding(again, None)])[0][1] == "100"


def test_what_fails_at_the_first_stop_ends_the_tour(
    faulty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(monkeypatch, "NVE conservative")
    with pytest.raises(ForceServerError, match=r"NVE conservative: server 1 ended with code 1"):
        run_tour(Tour(faulty, 0.02), tmp_path / "tour")


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="holds other files"):
        run_tour(Tour(MODEL, 0.02), tmp_path)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["notes.txt", "notes.txt/tour", "dangling"])
def test_what_can_be_no_folder_is_a_usage_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "else")
    with pytest.raises(UsageError, match="is no folder and cannot be made one"):
        run_tour(Tour(MODEL, 0.02), tmp_path / name)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["link", "."])
def test_a_folder_that_is_a_link_or_where_we_are_is_emptied_and_stays(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis.tex").touch()
    monkeypatch.chdir(real if place == "." else tmp_path)
    asked = Tour(MODEL, 0.02)
    tour._take_folder(asked, Path(place))
    (real / "1-nve").mkdir()
    (real / "1-nve" / "RESTART").touch()
    (real / "linked").symlink_to(tmp_path / "elsewhere")
    (real / LOCK).touch()
    finish(asked, Path(place))
    tour._take_folder(asked, Path(place))
    assert {file.name for file in real.iterdir()} == {MARKER, LOCK}
    assert (real / MARKER).read_text() == asked.identity()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [("qtip5", "unknown model 'qtip5'"), ("missing.pt", "missing.pt"), ("qtip4pf", "wants direct forces")],
)
def test_a_model_that_cannot_be_costs_no_folder_and_no_earlier_tour(
    model: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        run_tour(Tour(model, 0.02), tmp_path / "tour")
    assert not (tmp_path / "tour").exists()
    finished = Tour(MODEL, 0.02)
    (tmp_path / "tour").mkdir()
    tour._take_folder(finished, tmp_path / "tour")
    state = leave_state(tmp_path / "tour", 100)
    finish(finished, tmp_path / "tour")
    with pytest.raises(UsageError, match=message):
        run_tour(Tour(model, 0.02), tmp_path / "tour")
    assert state.exists()


def leave_state(folder: Path, step: int) -> Path:
    """What an interrupted run leaves."""
    state = folder / "1-nve-conservative" / "RESTART"
    state.parent.mkdir(exist_ok=True)
    state.write_text(f"<simulation><step>{step}</step></simulation>")
    return state


@pytest.mark.parametrize("other", [Tour(MODEL, 0.03), Tour("water-pet", 0.02), Tour(MODEL, 10.0)])
@pytest.mark.parametrize("first", [Tour(MODEL, 0.02), Tour(MODEL, LONG_PS)])
def test_neither_an_unfinished_tour_nor_a_long_one_is_thrown_away(
    first: Tour, other: Tour, tmp_path: Path
) -> None:
    tour._take_folder(first, tmp_path)
    state = leave_state(tmp_path, 100)
    if first.is_long:
        finish(first, tmp_path)
    with pytest.raises(UsageError, match="holds another tour"):
        tour._take_folder(other, tmp_path)
    tour._take_folder(first, tmp_path)
    assert state.exists()


def test_a_tour_that_has_made_no_step_is_no_loss(tmp_path: Path) -> None:
    tour._take_folder(Tour(MODEL, 0.02), tmp_path)
    state = leave_state(tmp_path, 0)
    tour._take_folder(Tour(MODEL, 0.03), tmp_path)
    assert not state.exists()


def test_a_finished_short_tour_is_made_afresh(tmp_path: Path) -> None:
    asked = Tour(MODEL, 0.02)
    tour._take_folder(asked, tmp_path)
    (tmp_path / "old").touch()
    tour._take_folder(asked, tmp_path)
    assert (tmp_path / "old").exists(), "an unfinished one is continued"
    finish(asked, tmp_path)
    tour._take_folder(asked, tmp_path)
    assert not (tmp_path / "old").exists()


def test_other_weights_make_another_tour_and_another_device_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.pt"
    model.write_bytes(b"weights")
    monkeypatch.setattr(BundledModel, "folder", tmp_path)
    for name in ("water-pet", f"{model},check=False"):
        model.write_bytes(b"weights")
        before = Tour(name, 0.02).identity()
        os.utime(model, (1.0, 1.0))
        assert Tour(name, 0.02, device="cuda").identity() == before
        model.write_bytes(b"others!")
        assert Tour(name, 0.02).identity() != before


def test_what_is_left_of_a_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take(monkeypatch, "NVE conservative", "NVE direct")
    asked = Tour(MODEL, 10.0)
    whole = [(stop, 20000) for stop in (BY_TITLE["NVE conservative"], BY_TITLE["NVE direct"])]
    assert asked.steps_left(tmp_path / "none") == whole
    tour._take_folder(asked, tmp_path)
    leave_state(tmp_path, 5000)
    assert asked.steps_left(tmp_path) == [(whole[0][0], 15000), whole[1]]
    assert Tour(MODEL, 10.5).steps_left(tmp_path)[0][1] == 21000, "of another tour nothing is done here"
    for run in asked.runs(tmp_path):
        run.folder.mkdir(exist_ok=True)
        (run.folder / "ended.json").write_text('{"seconds_per_fs": null}')
    assert asked.steps_left(tmp_path) == []


def test_two_tours_do_not_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / MARKER).touch()
    with locked(tmp_path), pytest.raises(UsageError, match="in use by another launch"):
        run_tour(Tour(MODEL, 0.02), tmp_path)


def test_a_tour_that_cannot_be_written_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full shows where the results are written, hours after the first file was."""
    take(monkeypatch, "NVE MTS 4")
    folder = tmp_path / "tour"
    asked = Tour("harmonic:direct=0.02", 0.02)
    folder.mkdir()
    (folder / MARKER).write_text(asked.identity())
    done = folder / "1-nve-mts-4"
    done.mkdir()
    (done / "ended.json").write_text('{"seconds_per_fs": 0.1}')
    (folder / "table.md").mkdir()
    said = CliRunner().invoke(demo, ["--model", asked.model, "--length", "0.02", "-o", str(folder)])
    assert isinstance(said.exception, ForceServerError), said.output
    assert str(said.exception).startswith(f"cannot go on in {folder}: Is a directory")
    assert (done / "ended.json").exists()


@pytest.mark.parametrize("where", ["expected_seconds", "run_tour"])
def test_ctrl_c_is_an_interruption_wherever_it_comes(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stops if where == "expected_seconds" else tour, where, interrupt)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    said = CliRunner().invoke(demo, ["--model", MODEL, "--full", "-o", str(tmp_path / "tour")])
    assert isinstance(said.exception, tour.Interrupted)
    assert said.exception.exit_code == 75


def test_the_run_by_hand_is_not_in_the_folder_of_the_tour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(BIN))
    write, start, serve = by_hand("pimd-mts", "lj:epsilon=(1)")
    assert write == "forceserver inputs write pimd-mts -o by-hand/input.xml"
    assert start == "cd by-hand && i-pi input.xml"
    assert serve.startswith("forceserver run 'lj:epsilon=(1)' -i input.xml ")
    monkeypatch.setenv("PATH", "/nowhere")
    assert by_hand("pimd-mts", MODEL)[1] == f"cd by-hand && {BIN}/i-pi input.xml"


def test_wall_time_leaves_out_the_start() -> None:
    rows = [(0, 10.0), (4, 18.0), (8, 18.4), (12, 18.8), (16, 19.2)]
    assert seconds_per_step(rows) == pytest.approx(0.1)
    assert math.isnan(seconds_per_step(rows[:1]))
    assert math.isnan(seconds_per_step([]))


def expected(time_ps: float, *titles: str) -> float:
    """Of these stops alone."""
    left = [(BY_TITLE[title], BY_TITLE[title].n_steps(time_ps)) for title in titles]
    return expected_seconds(left, time_ps, "any")


def test_the_expected_time_counts_a_shared_forward_pass_once(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"conservative": 1.0, "direct": 0.1, "both": 1.05}
    monkeypatch.setattr(stops, "_measure_costs", lambda model, device, n_threads: known)
    monkeypatch.setattr(stops, "runs_at_once", lambda device: (1, 1))
    n_steps = BY_TITLE["NVE MTS 4"].n_steps(0.2)
    assert expected(0.2, "NVE MTS 4") == pytest.approx(stops.START_SECONDS + n_steps * (3 * 0.1 + 1.05))
    assert expected(0.2, "NVE conservative") == pytest.approx(stops.START_SECONDS + 400 * 1.0)


def test_the_expected_time_is_that_of_the_longer_of_two_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"conservative": 1.0, "direct": 0.5, "both": 1.0}
    monkeypatch.setattr(stops, "_measure_costs", lambda model, device, n_threads: known)
    monkeypatch.setattr(stops, "runs_at_once", lambda device: (2, 1))
    one = stops.START_SECONDS + 200.0
    assert expected(0.1, *["NVE conservative"] * 3) == pytest.approx(2.0 * one)
    alone = expected(0.1, "NVE direct")
    assert alone > 2.0 * one
    assert expected(0.1, "NVE conservative", "NVE direct", "NVE conservative") == pytest.approx(alone)


@pytest.mark.parametrize(("time_ps", "expected_ps"), [(0.02, 0.3), (0.1, 1.5), (0.5, 1.5), (10.0, 10.0)])
def test_a_stop_is_stretched_for_its_verdict_where_its_share_is_short(
    time_ps: float, expected_ps: float
) -> None:
    assert 5e-4 * BY_TITLE["NVE direct"].n_steps(time_ps) == pytest.approx(expected_ps)
    assert 5e-4 * BY_TITLE["NVE conservative"].n_steps(time_ps) == pytest.approx(time_ps)


def test_costs_are_measured_on_the_model() -> None:
    measured = stops._measure_costs("harmonic:direct=0.02", "cpu", 1)
    assert set(measured) == {"conservative", "direct", "both"}
    assert all(0.0 < seconds < 1.0 for seconds in measured.values())


@pytest.mark.parametrize(("seconds", "text"), [(20.0, "1 min"), (150.0, "2 min"), (7200.0, "2.0 h")])
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_the_box_of_the_library_is_read_with_its_cell() -> None:
    structure = to_structure(read_structure(WATER64))
    assert structure.n_atoms == 192
    assert structure.cell[0, 0] == pytest.approx(12.42966124)
    np.testing.assert_allclose(structure.cell, structure.cell[0, 0] * np.eye(3), atol=1e-9)


def test_threads_are_what_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert sensible_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= sensible_threads() <= 4


@pytest.mark.parametrize(
    ("n_cores", "told", "expected"),
    [(1, "", (1, 1)), (2, "", (2, 1)), (4, "", (2, 2)), (64, "", (2, 4)), (4, "4", (1, 4)), (8, "4", (2, 4))],
)
def test_two_runs_go_on_side_by_side_where_there_are_cores_for_both(
    n_cores: int, told: str, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "n_cores", lambda: n_cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert costs.runs_at_once() == expected
    assert costs.runs_at_once("cuda")[0] == 1


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pages that a browser was asked for, at a terminal with a display."""
    pages: list[str] = []

    def pretend(url: str) -> bool:
        pages.append(url)
        return True

    monkeypatch.setattr("webbrowser.open", pretend)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    return pages


def test_the_report_opens_where_there_is_a_display(opened: list[str], tmp_path: Path) -> None:
    assert show_page(tmp_path / "report.html")
    assert opened == [f"file://{tmp_path}/report.html"]


@pytest.mark.parametrize("what", ["no display", "CI", "no terminal"])
def test_no_browser_where_nobody_would_see_it(
    what: str, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Callable[[], None]] = {
        "no display": lambda: monkeypatch.delenv("DISPLAY"),
        "CI": lambda: monkeypatch.setenv("CI", "true"),
        "no terminal": lambda: monkeypatch.setattr("sys.stdout.isatty", lambda: False),
    }
    changes[what]()
    assert not show_page(tmp_path / "report.html")
    assert opened == []


def test_make_opens_no_browser() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    assert re.search(r"forceserver demo --no-browser\n", makefile)


def test_what_a_stop_took_is_remembered(tmp_path: Path) -> None:
    stop = STOPS[0]
    (tmp_path / "ended.json").write_text(json.dumps({"seconds_per_fs": None}))
    run = tour._Run(stop, 0.1, tmp_path, may_fail=True)
    known = run.recall()
    assert known is not None
    assert math.isnan(known.seconds_per_fs)
    assert known.n_steps == stop.n_steps(0.1)
    (tmp_path / "ended.json").write_text("{")
    assert run.recall() is None
