"""How far a run is: rows as they come, what is shown of them, and when silence is too long."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from forceserver.launch import Pulse
from forceserver.progress import PropertiesTail, _Facts, show_progress


def test_progress_is_read_from_new_complete_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "out"
    head = "# column   1     --> step : The current step.\n# column   2     --> temperature{kelvin} : T.\n"
    path.write_text(f"{head} 7 300.0\n")
    tail = PropertiesTail(path)
    assert not tail.refresh()  # of the run before
    with path.open("a") as file:
        file.write(" 8 310.0\n 9 32")
    assert tail.refresh()
    assert (tail.step, tail.row["temperature{kelvin}"]) == (8, 310.0)


def test_progress_has_speed_temperature_and_drift_and_in_a_narrow_terminal_the_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    now = [100.0]
    monkeypatch.setattr("forceserver.progress.time.monotonic", lambda: now[0])
    facts = _Facts()
    row = {"temperature{kelvin}": 300.4, "conserved{electronvolt}": 1.0}
    assert facts.describe(10, dict(row)) == "300 K, conserved +0.0 meV"
    now[0] += 5.0
    row["conserved{electronvolt}"] = 1.0012
    assert facts.describe(20, row) == "2.0 steps/s, 300 K, conserved +1.2 meV"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "24")
    # Those of other tests hold closed streams.
    monkeypatch.setattr(logging.getLogger("forceserver"), "handlers", [])
    with show_progress("input.xml", 3000) as watch:
        watch(430, PropertiesTail(tmp_path / "out"))
    assert "430/3000 steps" in capsys.readouterr().err


def test_a_run_that_was_given_a_new_server_may_be_silent_for_a_while_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("forceserver.launch.time.monotonic", lambda: now[0])
    pulse = Pulse(None)
    for now[0] in (40.0, 41.0, 42.0):  # 40 s to load the model, then a row each second
        pulse.beat()
    now[0] = 1e6
    assert not pulse.has_stopped()  # without --stall nobody knows how long a step may take
    pulse.expect_a_beat()
    now[0] += 119.0
    assert not pulse.has_stopped()
    now[0] += 2.0
    assert pulse.has_stopped()
    pulse.beat()
    now[0] += 1e6
    assert not pulse.has_stopped()


def test_how_long_rows_take_is_known_after_two_of_one_attempt_and_never_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("forceserver.launch.time.monotonic", lambda: now[0])
    pulse = Pulse(None)

    def is_given_up_after(seconds: float) -> bool:
        pulse.expect_a_beat()
        now[0] += seconds
        return pulse.has_stopped()

    assert not is_given_up_after(1e6)  # the model loads
    pulse.start()
    now[0] += 5.0
    pulse.beat()  # step 0
    assert not is_given_up_after(1e6)  # the first steps are done, nobody knows how fast
    for _ in range(2):
        pulse.start()
        now[0] += 5.0
        pulse.beat()
    now[0] += 95.0
    assert not is_given_up_after(5.0)
    pulse.beat()  # 100 s after the row before, whatever happened in between
    assert not is_given_up_after(299.0)
    assert is_given_up_after(301.0)
    pulse.start()
    assert not is_given_up_after(299.0)
    assert is_given_up_after(301.0)
