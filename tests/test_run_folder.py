"""The folder of a run, without any process: which state is continued, what is kept, what is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from forceserver.errors import UsageError
from forceserver.restart import choose_start, forget_run, note_origins, read_run_files, step_of
from launched import STEPS, write_run, write_state
from real_ipi import Workplace, workplace


@pytest.fixture
def place() -> Iterator[Workplace]:
    with workplace() as place:
        yield place


def rewritten_as_json(path: Path) -> Path:
    """The same input in i-PI's other format."""
    from ipi.utils.io.inputs.io_json import xmlnode_to_json
    from ipi.utils.io.inputs.io_xml import xml_parse_string

    as_json = path.with_suffix(".json")
    as_json.write_text(json.dumps(xmlnode_to_json(xml_parse_string(path.read_text())), indent=1))
    path.unlink()
    return as_json


def test_the_state_that_stands_furthest_is_continued_with_the_steps_of_the_input(place: Workplace) -> None:
    path = write_run(place, steps=STEPS, checkpoint=True)
    assert choose_start(path).path == path
    write_state(place, "RESTART", 20)
    write_state(place, "simulation.chk", 35)
    path.write_text(path.read_text().replace(f"<total_steps>{STEPS}<", "<total_steps>500<"))
    start = choose_start(path)
    assert (start.path.name, start.step) == ("CONTINUE.xml", 35)
    assert "<total_steps>500</total_steps>" in start.path.read_text()
    assert read_run_files(path).total_steps == 500


@pytest.mark.parametrize("form", ["xml", "json"])
def test_comments_and_layout_are_no_change_of_an_input(place: Workplace, form: str) -> None:
    path = write_run(place, steps=STEPS)
    if form == "json":
        path = rewritten_as_json(path)
    choose_start(path)
    write_state(place, "RESTART", STEPS)
    text = path.read_text()
    if form == "json":
        path.write_text(text.replace(f'"total_steps": "{STEPS}"', '"total_steps":    "500"'))
    else:
        path.write_text(
            text.replace(f"<total_steps>{STEPS}", "<!-- more -->\n<total_steps> 500 <!-- of 0.5 fs -->")
        )
    assert path.read_text() != text
    assert choose_start(path).step == STEPS
    assert "<total_steps>500</total_steps>" in place.read("CONTINUE.xml")


def test_a_state_is_no_input(place: Workplace) -> None:
    path = write_run(place, steps=STEPS)
    path.rename(place.path / "RESTART")
    with pytest.raises(UsageError, match="is written anew by i-PI as the run goes on; start from a copy: cp"):
        choose_start(place.path / "RESTART")


def test_fresh_keeps_the_states_of_all_earlier_runs(place: Workplace) -> None:
    path = write_run(place, steps=STEPS)
    for step in (10, 20, 30):
        choose_start(path)
        write_state(place, "RESTART", step)
        forget_run(path)
    kept = [place.path / f"RESTART.old{number}" for number in ("", "2", "3")]
    assert [step_of(each) for each in kept] == [10, 20, 30]


def test_half_a_checkpoint_is_no_state_and_the_last_continuation_stands_in(place: Workplace) -> None:
    path = write_run(place, steps=STEPS)
    choose_start(path)
    restart = write_state(place, "RESTART", 20)
    choose_start(path)
    restart.write_text(restart.read_text()[:40])  # i-PI was killed while it wrote
    assert step_of(restart) is None
    assert choose_start(path).step == 20


def test_a_checkpoint_with_bytes_that_are_no_text_is_no_state(place: Workplace) -> None:
    path = write_run(place, steps=STEPS)
    choose_start(path)
    write_state(place, "RESTART", 20)
    choose_start(path)
    restart = place.path / "RESTART"
    restart.write_bytes(restart.read_bytes().replace(b"<total", b"\xff\xfe\x80<total"))
    assert step_of(restart) is None
    assert choose_start(path).step == 20


def test_a_changed_input_is_refused_and_fresh_puts_the_old_states_aside(place: Workplace) -> None:
    path = write_run(place, steps=STEPS, checkpoint=True)
    choose_start(path)
    for name in ("RESTART", "simulation.chk"):
        write_state(place, name, 20)
    path.write_text(path.read_text().replace("0.5 </timestep>", "0.25 </timestep>"))
    with pytest.raises(UsageError, match="was changed since this run began"):
        choose_start(path)
    forget_run(path)
    assert choose_start(path).step == 0
    assert (place.path / "RESTART.old").exists()


def test_another_model_and_another_structure_are_said_once(
    place: Workplace, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("forceserver"), "propagate", True)
    path, file = write_run(place, steps=STEPS, checkpoint=True), place.path / "model.pt"
    file.write_text("weights")

    def said(model: str) -> str:
        caplog.clear()
        choose_start(path)
        note_origins(path, model)
        return caplog.text

    assert not said(f"{file},variant=a")
    write_state(place, "RESTART", 20)
    file = file.rename(place.path / "moved.pt")
    assert not said(f"{file},variant=a"), "the same file, elsewhere"
    assert f"another model: {file},variant=b in place of {file},variant=a." in said(f"{file},variant=b")
    file.write_text("other weights")
    assert f"another model: {file},variant=b was changed. `conserved` jumps" in said(f"{file},variant=b")
    structure = place.path / "structure.xyz"
    structure.write_text(structure.read_text().replace("0.3\n", "0.4\n"))
    assert "structure.xyz was changed since this run began" in said(f"{file},variant=b")
    assert not said(f"{file},variant=b")
    structure.unlink()
    assert not said(f"{file},variant=b")
    record = json.loads(place.read(".forceserver.json"))
    (place.path / ".forceserver.json").write_text(
        json.dumps({each: record[each] for each in ("input", "sha256")})
    )
    assert not said("harmonic:k=2.0"), "a record of an older version"
    assert "another model: noop in place of harmonic:k=2.0" in said("noop")


def test_a_restart_of_a_run_that_launch_did_not_start_is_refused(place: Workplace) -> None:
    path = write_run(place, steps=STEPS)
    write_state(place, "RESTART", 20)
    with pytest.raises(UsageError, match="not started with `launch`"):
        choose_start(path)
