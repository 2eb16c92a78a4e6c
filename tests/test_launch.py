"""`forceserver launch` against everything that ends: servers, i-PI, itself. Real processes and signals, deterministic runs."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import socket as sockets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
import rich_click as click

from forceserver.attempt import ServerCommand
from forceserver.commands.handed_on import handed_on
from forceserver.commands.run import run
from forceserver.errors import ForceServerError, UsageError
from forceserver.launch import Ending, LaunchOptions, Supervisor, check_devices
from forceserver.models import BUNDLED
from forceserver.processes import start_process
from forceserver.restart import (
    choose_start,
    finished_before,
    note_finished,
    read_run_files,
    step_of,
)
from forceserver.signals import StopRequest
from launched import (
    STEPS,
    TRAP,
    assert_same_run,
    children,
    is_running,
    kill_ipi_with_a_whole_checkpoint,
    last_step,
    launch,
    restart_step,
    wait_for,
    wait_for_step,
    write_run,
    write_state,
)
from real_ipi import BIN, Socket, Workplace, free_port, workplace

SLOWLY = f"{TRAP},pause=0.02"  # long enough for a signal to arrive in the middle


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    """With a folder of its own for sockets, which must be empty in the end."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with workplace() as place:
        (place.path / "t").mkdir()
        monkeypatch.setenv("TMPDIR", str(place.path / "t"))
        yield place


@pytest.fixture(scope="module")
def reference() -> Iterator[Workplace]:
    """The same run, which nobody disturbed, served by other code."""
    with workplace() as place:
        write_run(place, steps=STEPS)
        place.run("harmonic:k=2.0")
        yield place


def assert_nothing_is_left(place: Workplace, process_ids: list[int]) -> None:
    assert not [each for each in process_ids if is_running(each)]
    assert not list((place.path / "t").iterdir()), "a socket directory was left behind"


def all_children(process: subprocess.Popen[str]) -> list[int]:
    return children(process, "i-pi") + children(process, "forceserver")


@pytest.mark.parametrize("n_servers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_server_that_is_killed_costs_the_run_nothing(
    place: Workplace, reference: Workplace, n_servers: int
) -> None:
    write_run(place, steps=STEPS)
    process = launch(place, "--servers", str(n_servers), model=SLOWLY)
    wait_for_step(place, 10)
    before = all_children(process)
    os.kill(children(process, "forceserver")[0], signal.SIGKILL)
    assert process.wait(90) == 0, place.read("launch.log")
    assert "server 1 was killed by SIGKILL; going on from the last state" in place.read("launch.log")
    assert "continuing from step" in place.read("launch.log")
    assert f"of {STEPS}, " in place.read(
        "launch.log"
    )  # progress, where there is no terminal to draw a bar on
    assert_same_run(place, reference)
    assert_nothing_is_left(place, before)


@pytest.mark.slow
def test_an_i_pi_that_a_dead_server_had_promised_forces_is_killed_and_the_run_goes_on_from_its_checkpoint(
    place: Workplace, reference: Workplace
) -> None:
    """It hangs beyond its own end (`test_faults`), writing one line into its log as fast as it can."""
    write_run(place, Socket(consolidate=False), checkpoint=True, beads=4, steps=60)
    process = launch(place, model=f"{SLOWLY},fault=death,when=now")
    wait_for_step(place, 6)
    before = all_children(process)
    (place.path / "now").touch()
    wait_for(lambda: "was killed by SIGKILL" in place.read("launch.log"))
    (place.path / "now").unlink()
    assert process.wait(90) == 0, place.read("launch.log")
    assert "continuing from step" in place.read("launch.log")
    assert_nothing_is_left(place, before)
    with workplace() as undisturbed:
        write_run(undisturbed, beads=4, steps=60)
        undisturbed.run("harmonic:k=2.0")
        assert_same_run(place, undisturbed)


def test_a_server_that_stops_in_order_is_replaced_and_i_pi_never_notices(
    place: Workplace, reference: Workplace
) -> None:
    """Each server returns a NaN at its sixtieth force; nothing of it reaches i-PI, and the run goes on without a restart."""
    write_run(place, steps=STEPS)
    process = launch(place, model=f"{TRAP},fault=nan,at=60")
    assert process.wait(90) == 0, place.read("launch.log")
    log = place.read("launch.log")
    assert log.count("forces that are not finite (on 1 of 3 atoms)") == 2
    assert "continuing" not in log
    assert_same_run(place, reference)
    assert_nothing_is_left(place, [])


@pytest.mark.parametrize(
    ("number", "whom"),
    [
        (signal.SIGTERM, "launch"),
        pytest.param(signal.SIGINT, "launch", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "all", marks=pytest.mark.slow),  # as Slurm does
        pytest.param(signal.SIGINT, "all", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_all_with_a_restart_and_the_same_command_finishes(
    place: Workplace, reference: Workplace, number: signal.Signals, whom: str
) -> None:
    write_run(place, steps=STEPS)
    process = launch(place, model=SLOWLY)
    wait_for_step(place, 10)
    before = all_children(process)
    for each in [process.pid, *(before if whom == "all" else [])]:
        os.kill(each, number)
    assert process.wait(30) == 75, place.read("launch.log")
    assert f"{number.name}" in place.read("launch.log")
    assert_nothing_is_left(place, before)
    assert restart_step(place) == last_step(place)
    assert launch(place).wait(90) == 0, place.read("launch.log")
    assert f"continuing from step {restart_step(place)}" not in place.read("launch.log")
    assert_same_run(place, reference)


@pytest.mark.slow
def test_an_impatient_user_loses_nothing(place: Workplace, reference: Workplace) -> None:
    """Ctrl-C, and twice more while all is ending."""
    write_run(place, steps=STEPS)
    process = launch(place, model=SLOWLY)
    wait_for_step(place, 10)
    before = all_children(process)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert process.wait(30) == 75, place.read("launch.log")
    assert "Traceback" not in place.read("launch.log")
    assert "the same command continues the run" in place.read("launch.log").splitlines()[-1]
    wait_for(lambda: not any(is_running(each) for each in before), 30)
    assert_nothing_is_left(place, before)
    assert launch(place).wait(90) == 0, place.read("launch.log")
    assert_same_run(place, reference)


@pytest.mark.slow
def test_a_reader_of_the_log_that_ends_first_changes_nothing(place: Workplace) -> None:
    """`forceserver launch ... 2>&1 | tee log`: Ctrl-C ends tee as well."""
    write_run(place, steps=1_000_000)
    command = [str(BIN / "forceserver"), "launch", "input.xml", "--model", SLOWLY]
    process = subprocess.Popen(
        command, cwd=place.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    place.running.append(process)
    wait_for_step(place, 5)
    assert process.stdout is not None
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 75
    assert restart_step(place) == last_step(place)


def test_each_server_has_its_device_in_turn(place: Workplace) -> None:
    write_run(place, steps=1_000_000)
    process = launch(place, "--servers", "3", "--devices", "cpu,cpu:0", model="harmonic:k=2.0")
    wait_for_step(place, 0)
    devices = [
        Path(f"/proc/{each}/cmdline").read_text().split("--device\0")[1].split("\0")[0]
        for each in children(process, "forceserver")
    ]
    process.terminate()
    assert process.wait(30) == 75, place.read("launch.log")
    assert devices == ["cpu", "cpu:0", "cpu"]
    with pytest.raises(UsageError, match="names 2 devices for 1 servers; add --servers 2"):
        check_devices(["cuda:0", "cuda:1"], 1)


@pytest.mark.slow
def test_a_signal_ends_all_within_the_30_s_of_a_batch_system_even_while_a_server_hangs(
    place: Workplace,
) -> None:
    write_run(place, steps=1_000_000)
    process = launch(place, model=SLOWLY)
    wait_for_step(place, 5)
    before = all_children(process)
    os.kill(children(process, "forceserver")[0], signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75, place.read("launch.log")
    assert restart_step(place) == last_step(place)
    assert_nothing_is_left(place, before)


@pytest.mark.slow
def test_the_time_limit_ends_the_run_with_a_restart(place: Workplace) -> None:
    write_run(place, steps=1_000_000)
    assert launch(place, "--time-limit", "8", model=SLOWLY).wait(60) == 75
    assert "the time limit is reached" in place.read("launch.log")
    assert restart_step(place) == last_step(place) > 0


def is_free(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def test_a_killed_launch_takes_i_pi_and_servers_with_it_and_keeps_the_folder_until_they_are_gone(
    place: Workplace,
) -> None:
    write_run(place, steps=1_000_000)
    process = launch(place, model=SLOWLY)
    wait_for_step(place, 5)
    before = all_children(process)
    assert len(before) == 2
    process.kill()
    process.wait()
    with (place.path / ".forceserver.lock").open() as lock:
        with pytest.raises(BlockingIOError):  # i-PI still writes
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        wait_for(lambda: not any(is_running(each) for each in before), 30)
        # Other threads may close it a moment after the first one has ended.
        wait_for(lambda: is_free(lock), 5)
    assert restart_step(place) == last_step(place)  # i-PI was asked, not killed


@pytest.mark.slow
def test_a_stopped_server_is_a_stall_that_the_run_survives(place: Workplace, reference: Workplace) -> None:
    write_run(place, steps=STEPS)
    process = launch(place, "--stall", "10", model=SLOWLY)
    wait_for_step(place, 10)
    before = all_children(process)
    os.kill(children(process, "forceserver")[0], signal.SIGSTOP)
    assert process.wait(90) == 0, place.read("launch.log")
    assert "no step was written for 10 s" in place.read("launch.log")
    assert_same_run(place, reference)
    assert_nothing_is_left(place, before)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [True, False])
def test_an_i_pi_that_is_killed_goes_on_from_its_checkpoint_or_from_the_start(
    place: Workplace, reference: Workplace, checkpoint: bool
) -> None:
    write_run(place, steps=STEPS, checkpoint=checkpoint)
    process = launch(place, model=SLOWLY)
    wait_for_step(place, 10)
    if checkpoint:
        kill_ipi_with_a_whole_checkpoint(place, children(process, "i-pi")[0])
    else:
        os.kill(children(process, "i-pi")[0], signal.SIGKILL)
    assert process.wait(90) == 0, place.read("launch.log")
    log = place.read("launch.log")
    assert "i-PI was killed by SIGKILL" in log
    assert ("continuing from step" in log) is checkpoint
    assert ("no checkpoint was written: starting again from step 0" in log) is not checkpoint
    assert_same_run(place, reference)


@pytest.mark.slow
def test_a_checkpoint_that_i_pi_was_overwriting_when_it_was_killed_is_told_from_none(
    place: Workplace, reference: Workplace
) -> None:
    write_run(place, steps=STEPS, checkpoint=True)
    process = launch(place, model=SLOWLY)
    wait_for_step(place, 10)
    ipi = children(process, "i-pi")[0]
    kill_ipi_with_a_whole_checkpoint(place, ipi, then=lambda: os.truncate(place.path / "simulation.chk", 100))
    assert process.wait(90) == 0, place.read("launch.log")
    assert "the only checkpoint is cut short" in place.read("launch.log")
    assert_same_run(place, reference)


@pytest.mark.slow
def test_a_model_that_always_fails_is_given_up_after_the_retries(place: Workplace) -> None:
    write_run(place, steps=STEPS)
    assert launch(place, "--retries", "1", model=f"{TRAP},fault=raise").wait(90) == 1
    log = place.read("launch.log")
    assert log.count("starting another") == 1
    assert "the run failed: server 1 ended with code 1: the model failed" in log
    assert "the neighbour list is full" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_an_i_pi_that_ends_by_itself_is_not_started_again(place: Workplace) -> None:
    write_run(place, steps=1_000_000)
    process = launch(place, model=SLOWLY)
    wait_for_step(place, 5)
    (place.path / "EXIT").touch()
    assert process.wait(60) == 75
    assert "i-PI ended by itself at step" in place.read("launch.log")


@pytest.mark.slow
def test_an_i_pi_that_cannot_start_is_reported_in_its_own_words(place: Workplace) -> None:
    path = write_run(place, steps=5)
    path.write_text(path.read_text().replace("[ step,", "[ step, no_such_property,"))
    process = launch(place, model="harmonic:k=2.0")
    assert process.wait(60) in (1, 2)
    log = place.read("launch.log")
    assert "Traceback" not in log
    assert "no_such_property" in log


def supervise(path: Path, **changes: bool) -> Ending:
    """`launch` without a process of its own, for what is refused before anything starts."""
    options = LaunchOptions(ServerCommand("harmonic:k=2.0"), **changes)
    return Supervisor(path, options, StopRequest(), lambda step, tail: None).run()


def test_a_port_in_use_is_refused_before_anything_starts(place: Workplace) -> None:
    with sockets.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        path = write_run(place, Socket(mode="inet", port=taken.getsockname()[1]))
        with pytest.raises(UsageError, match="Address already in use; choose another <port>"):
            supervise(path)
    assert not (place.path / "i-pi.log").exists()


@pytest.mark.slow
def test_an_inet_run_survives_the_loss_of_its_server_on_the_same_port(
    place: Workplace, reference: Workplace
) -> None:
    write_run(place, Socket(mode="inet", port=free_port()), steps=STEPS)
    process = launch(place, model=SLOWLY)
    wait_for_step(place, 10)
    os.kill(children(process, "forceserver")[0], signal.SIGKILL)
    assert process.wait(90) == 0, place.read("launch.log")
    assert_same_run(place, reference)


@pytest.mark.parametrize("address", ["", "a/b", "../elsewhere"])
def test_an_address_that_is_a_path_is_refused_before_anything_starts(place: Workplace, address: str) -> None:
    path = write_run(place)
    path.write_text(path.read_text().replace("<address>forces<", f"<address>{address}<"))
    with pytest.raises(UsageError, match="write a plain name"):
        supervise(path)
    assert not (place.path / "i-pi.log").exists()


def write_on_a_full_disk(path: Path, text: str) -> int:
    path.open("w").close()
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_said_in_one_line_and_leaves_no_half_of_a_state(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(place, steps=STEPS)
    choose_start(path)
    write_state(place, "RESTART", 20)
    monkeypatch.setattr(Path, "write_text", write_on_a_full_disk)
    with pytest.raises(ForceServerError, match=r"cannot go on in .*: No space left on device .* make room"):
        supervise(path)
    assert not list(place.path.glob(".CONTINUE*"))


def test_a_full_disk_does_not_cost_the_record_of_the_input(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(place, steps=STEPS)
    choose_start(path)
    write_state(place, "RESTART", 20)
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", write_on_a_full_disk)
        with pytest.raises(OSError, match="No space left"):
            note_finished(path, "converged")
    assert choose_start(path).step == 20
    note_finished(path, "converged")
    assert finished_before(path) == "converged"
    assert not list(place.path.glob(".*.new"))


@pytest.mark.slow
def test_a_disk_that_is_full_under_i_pi_ends_the_run_in_one_line_and_with_room_it_goes_on(
    place: Workplace, reference: Workplace
) -> None:
    """A limit on the size of files stands in for it: i-PI meets the same error in the same place."""
    write_run(place, steps=STEPS, checkpoint=True)
    limited = [
        "prlimit",
        "--fsize=16384",
        str(BIN / "forceserver"),
        "launch",
        "input.xml",
        "--model",
        TRAP,
        "--retries",
        "1",
    ]
    with (place.path / "launch.log").open("w") as log:
        process = subprocess.Popen(limited, cwd=place.path, stdout=log, stderr=subprocess.STDOUT, text=True)
    place.running.append(process)
    assert process.wait(90) == 1, place.read("launch.log")
    lines = place.read("launch.log").splitlines()
    assert lines[-1].startswith("forceserver: the run failed: i-PI ended with code 1: OSError"), lines
    assert "File too large" in lines[-1]
    assert "Traceback" not in place.read("launch.log")
    assert launch(place).wait(90) == 0, place.read("launch.log")
    assert "continuing from step" in place.read("launch.log")
    assert_same_run(place, reference)


def test_a_model_that_nobody_knows_is_refused_before_anything_starts(place: Workplace) -> None:
    write_run(place)
    assert launch(place, model="harmnic").wait(30) == 2
    assert "did you mean 'harmonic'" in place.read("launch.log")
    assert not (place.path / "i-pi.log").exists()


def test_a_second_launch_in_the_same_folder_is_refused_and_changes_nothing(place: Workplace) -> None:
    path = write_run(place, steps=5)
    restart = write_state(place, "RESTART", 3)
    with (place.path / ".forceserver.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4321")
        lock.flush()
        with pytest.raises(UsageError, match=r"in use by another launch \(process 4321\)"):
            supervise(path, fresh=True)
    assert restart.exists()


def test_a_model_is_found_from_where_the_user_stands_and_not_from_the_folder_of_the_input(
    place: Workplace,
) -> None:
    folder = place.path / "run"
    folder.mkdir()
    path = place.write_input(Socket(), steps=2)
    path.write_text(path.read_text().replace("structure.xyz", str(place.path / "structure.xyz")))
    path.rename(folder / "input.xml")
    shutil.copy(BUNDLED["water-pet"].find(), place.path / "own.pt")
    process = place.start(
        "forceserver", "launch", "run/input.xml", "--model", "own.pt",
        "--", "--direct", "own.pt", "--also", "twin=own.pt", "--report", "report.json", "--log-file=run.log",
        log="launch.log",
    )  # fmt: skip
    assert process.wait(timeout=120) == 0, (place.path / "launch.log").read_text()
    assert (place.path / "report.json").exists()
    assert (place.path / "run.log").exists()
    assert {each.name for each in folder.iterdir()}.isdisjoint({"report.json", "run.log"})


def test_options_of_the_servers_mean_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = (
        "--no-fusion",
        "--also",
        "a=x.pt",
        "--also=b=qtip4pf",
        "-v",
        "--report",
        "../r.json",
        "--linger",
        "0",
    )
    assert set(handed_on("qtip4pf", words)) == {
        "--no-fusion", "--also", f"a={tmp_path}/x.pt", "b=qtip4pf", "--verbose", "--report",
        f"{tmp_path.parent}/r.json", "--linger", "0",
    }  # fmt: skip
    known = {
        each.name for each in run.params if isinstance(each.type, click.Path) or "MODEL" in str(each.metavar)
    }
    assert known == {"inputs", "template", "log_file", "report", "direct_model", "also"}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--device", "cuda"), r"--device after `--` is set by launch: use --devices"),
        (("-i", "other.xml"), r"-i after `--` is set by launch"),
        (("--socket", "fast"), r"--socket after `--` is set by launch: each of its servers serves all sockets"),
        (("--no-such",), r"[Nn]o such option"),
        (("--threads", "many"), r"not a valid integer"),
        (("--also", "x"), r"wanted NAME=MODEL, got 'x'"),
        (("--connections", "some"), r"wanted auto or a number"),
        (("--forces", "blended"), r"needs its fraction"),
        (("stray.pt",), r"unexpected extra argument"),
    ],
)  # fmt: skip
def test_options_that_the_servers_would_refuse_are_refused_before_anything_starts(
    words: tuple[str, ...], error: str
) -> None:
    with pytest.raises((UsageError, click.UsageError), match=error):
        handed_on("qtip4pf", words)


def test_a_relative_pythonpath_means_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "calculators:/elsewhere")
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", "import os; print(os.environ['PYTHONPATH'])"]
    start_process(command, folder=tmp_path / "run", log=tmp_path / "log").wait(30)
    assert (tmp_path / "log").read_text().strip() == f"{tmp_path}/calculators:/elsewhere"


def test_a_run_that_has_all_its_steps_is_finished_without_starting_anything(place: Workplace) -> None:
    path = write_run(place, steps=STEPS)
    choose_start(path)
    write_state(place, "RESTART", STEPS)
    assert supervise(path) is Ending.FINISHED
    assert not (place.path / "i-pi.log").exists()


def test_a_finished_run_of_the_default_length_is_extended(place: Workplace) -> None:
    """i-PI leaves out of its checkpoints what has its default value, such as a length of 1000 steps."""
    path = write_run(place, steps=1000)
    assert supervise(path) is Ending.FINISHED
    assert "total_steps" not in place.read("RESTART")
    path.write_text(path.read_text().replace("<total_steps>1000<", "<total_steps>1010<"))
    assert supervise(path) is Ending.FINISHED
    assert step_of(place.path / "RESTART") == 1010


OPTIMIZER = """<motion mode="minimize"><optimizer mode="lbfgs"><tolerances>
  <energy units="electronvolt"> 1e-4 </energy><force units="ev/ang"> 1e-2 </force>
  <position units="angstrom"> 1e-2 </position>
</tolerances></optimizer></motion>"""


def test_an_optimisation_that_has_converged_is_finished_and_stays_so(place: Workplace) -> None:
    """It has steps to go, but for i-PI it is over; a job that is sent again must find nothing to do."""
    path = write_run(place, steps=200)
    text = path.read_text()
    begin, end = text.index("<motion"), text.index("</motion>") + len("</motion>")
    path.write_text(text[:begin] + OPTIMIZER + text[end:])
    process = launch(place, model="harmonic:k=2.0")
    assert process.wait(60) == 0, place.read("launch.log")
    assert "i-PI has finished at step" in place.read("launch.log")
    assert "Geometry optimization converged" in place.read("launch.log")
    log = place.read("i-pi.log")
    assert launch(place, model="harmonic:k=2.0").wait(60) == 0
    assert place.read("i-pi.log") == log, "nothing was started"


def test_the_outputs_of_a_named_system_are_watched(place: Workplace) -> None:
    """i-PI writes `a_simulation.out` for <system prefix='a'>; a run that is not seen there would count as hung."""
    path = write_run(place, steps=STEPS)
    path.write_text(path.read_text().replace("<system>", '<system prefix="a">'))
    process = launch(place, "--stall", "60", model=SLOWLY)
    assert process.wait(90) == 0, place.read("launch.log")
    assert f"of {STEPS}, " in place.read("launch.log")
    assert read_run_files(path).properties == (place.path / "a_simulation.out",)


def test_rows_without_a_step_are_no_progress_that_pardons_failures(place: Workplace) -> None:
    """No state is saved, so each attempt writes the same rows again: `--retries` must end it."""
    path = write_run(place, steps=STEPS)
    text = path.read_text().replace("[ step, conserved", "[ conserved")
    path.write_text(text.replace("<simulation ", '<simulation safe_stride="1000" '))
    process = launch(place, "--retries", "1", model=SLOWLY)
    output = place.path / "simulation.out"

    def n_killed() -> int:
        return place.read("launch.log").count("server 1 was killed by SIGKILL")

    for number in range(2):
        wait_for(lambda: output.exists() and len(place.properties()) > 10)
        os.kill(children(process, "forceserver")[0], signal.SIGKILL)
        wait_for(lambda number=number: n_killed() > number)  # type: ignore[misc]
        output.unlink()
    assert process.wait(60) == 1, place.read("launch.log")
    assert "the run failed" in place.read("launch.log")


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """A process in between starts `sleep` as launch starts a server, and is killed."""
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        child = start_process(["sleep", "600"], folder=tmp_path, log=tmp_path / "log")
        os.write(writer, str(child.pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(middle, 0)
    child_id = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    wait_for(lambda: not is_running(child_id), 10)


# Faults at random.


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ten_thousand_steps_with_faults_at_random_lose_nothing(place: Workplace) -> None:
    """SIGKILL and SIGTERM on server and i-PI in turn at random steps; the end is that of an undisturbed run."""
    n_steps, n_faults = 10_000, 15
    faults = [("forceserver", signal.SIGKILL), ("forceserver", signal.SIGTERM), ("i-pi", signal.SIGKILL)]
    write_run(place, steps=n_steps, checkpoint=True)
    at = 600 * np.arange(n_faults) + np.random.default_rng(1).integers(100, 400, n_faults)
    process = launch(place, model="harmonic:k=2.0")
    for number, step in enumerate(at):
        program, signal_number = faults[number % len(faults)]
        wait_for_step(place, int(step), seconds=200)
        wait_for(lambda program=program: bool(children(process, program)))
        os.kill(children(process, program)[0], signal_number)
    assert process.wait(300) == 0, place.read("launch.log")
    log = place.read("launch.log")
    assert log.count("going on from the last state") + log.count("starting another") == n_faults, log
    with workplace() as undisturbed:
        write_run(undisturbed, steps=n_steps)
        undisturbed.run("harmonic:k=2.0", seconds=300)
        assert_same_run(place, undisturbed)
