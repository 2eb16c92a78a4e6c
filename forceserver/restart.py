"""Where a run stands and how it goes on: i-PI's RESTART and checkpoint files, and the input that they came from.

A folder holds one run. `.forceserver.json` in it remembers what the run was started with: i-PI would go on from RESTART without a
word, with the old input where that was changed, with another model, with the old atoms where their file was replaced.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forceserver.errors import UsageError
from forceserver.inputfile import parse_input, parse_nodes, systems_of
from forceserver.models import BUNDLED
from forceserver.potentials import LOADERS
from forceserver.potentials.specification import POSITIONAL, parse

log = logging.getLogger(__name__)

RECORD = ".forceserver.json"
CONTINUATION = "CONTINUE.xml"
STEP = re.compile(r"<step>\s*(\d+)\s*</step>")
ROOT = re.compile(r"<simulation\b[^>]*>")
TOTAL_STEPS = re.compile(r"(<total_steps>)\s*(\d+)\s*(</total_steps>)")


@dataclass(frozen=True)
class Start:
    """The file from which i-PI starts, and the step at which."""

    path: Path
    step: int


@dataclass(frozen=True)
class RunFiles:
    """The files that tell how far a run is."""

    input_path: Path
    total_steps: int
    is_exact: bool  # whether numbers are written with all their digits
    properties: tuple[Path, ...]  # those with a column for the step first
    checkpoints: tuple[tuple[Path, re.Pattern[str]], ...]  # folders, and the names that are written there

    def states(self) -> list[Path]:
        """All checkpoints that are there now: RESTART, those of the input, and where the last continuation began."""
        return [
            path
            for folder, name in self.checkpoints
            for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
            if name.fullmatch(path.name)
        ]

    def furthest_state(self) -> Start:
        """The readable checkpoint of the latest step; the input where there is none."""
        found = [(step, path) for path in self.states() if (step := step_of(path)) is not None]
        step, path = max(found, default=(0, self.input_path))
        return Start(path, step)


def read_run_files(input_path: Path) -> RunFiles:
    """The outputs that an i-PI input declares.

    Raises:
        UsageError: not an i-PI input.
    """
    simulation = parse_input(input_path)
    prefix = simulation.output.prefix.fetch()
    systems = [system.prefix.fetch() for system in systems_of(simulation, input_path)]
    with_step: list[Path] = []
    without_step: list[Path] = []
    checkpoints = [(input_path.parent, re.compile(f"RESTART|{re.escape(CONTINUATION)}"))]
    for tag, output in simulation.output.extra:
        name = f"{prefix}.{output.filename.fetch()}" if prefix else output.filename.fetch()
        path = input_path.parent / name
        if tag == "properties":  # a file for each system
            paths = [input_path.parent / (f"{system}_{name}" if system else name) for system in systems]
            (with_step if "step" in output.fetch().outlist else without_step).extend(paths)
        elif tag == "checkpoint":
            checkpoints.append((path.parent, re.compile(rf"{re.escape(path.name)}(_\d+)?")))
    total_steps, third = simulation.total_steps.fetch(), 1.0 / 3.0
    is_exact = float(simulation.floatformat.fetch() % third) == third
    return RunFiles(input_path, total_steps, is_exact, (*with_step, *without_step), tuple(checkpoints))


def choose_start(input_path: Path) -> Start:
    """The input itself, or the continuation of the run that stands furthest.

    The number of steps is always that of the input, so that a finished run is extended by raising it there.

    Raises:
        UsageError: the folder holds a run of another input, or of this one before it was changed; the input is itself a state
            of the run.
    """
    files = read_run_files(input_path)
    if input_path in files.states():
        raise UsageError(
            f"{input_path} is written anew by i-PI as the run goes on; start from a copy: cp {input_path} "
            f"{input_path.with_name('input.xml')}"
        )
    state = files.furthest_state()
    if state.path == input_path:
        _remember(input_path)
        return state
    _check_same_input(input_path, state.path)
    continuation = input_path.with_name(CONTINUATION)
    _replace(continuation, _with_total_steps(state.path.read_text(), files.total_steps))
    return Start(continuation, state.step)


def _replace(path: Path, text: str) -> None:
    """Write a file in one go: what it held may be all that is left, and stays where there is no room for the new."""
    fresh = path.with_name(f".{path.name.removeprefix('.')}.new")
    try:
        fresh.write_text(text)
        fresh.replace(path)
    except OSError:  # a full disk
        fresh.unlink(missing_ok=True)
        raise


def _with_total_steps(checkpoint: str, n_steps: int) -> str:
    """i-PI leaves out of its checkpoints what has its default value; a run of 1000 steps has no word of them."""
    text, n_found = TOTAL_STEPS.subn(rf"\g<1>{n_steps}\g<3>", checkpoint, count=1)
    if not n_found:
        text = ROOT.sub(rf"\g<0>\n   <total_steps>{n_steps}</total_steps>", checkpoint, count=1)
    return text


def step_of(checkpoint: Path) -> int | None:
    """The step at which a checkpoint stands; None where there is none, or the first half of one, or no text."""
    try:
        text = checkpoint.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    match = STEP.search(text)
    return int(match[1]) if match and text.rstrip().endswith("</simulation>") else None


def forget_run(input_path: Path) -> None:
    """Put the states of an old run aside (`NAME.old`), so that the input starts afresh; i-PI keeps the old outputs itself."""
    for path in read_run_files(input_path).states():
        if path != input_path:
            path.rename(_free_name(path))
    (input_path.parent / RECORD).unlink(missing_ok=True)


def _free_name(path: Path) -> Path:
    """`NAME.old`, or `NAME.old2` and so on where that is taken."""
    names = (path.with_name(f"{path.name}.old{number}") for number in itertools.count(2))
    return next(
        each for each in itertools.chain([path.with_name(f"{path.name}.old")], names) if not each.exists()
    )


def finished_before(input_path: Path) -> str:
    """Why i-PI has ended the run that `choose_start` continues for good, before its last step; empty where it has not."""
    return str(read_record(input_path.parent / RECORD).get("finished", ""))


def note_finished(input_path: Path, why: str) -> None:
    """i-PI has ended this run for good: see `finished_before`."""
    _write_record(input_path, read_record(input_path.parent / RECORD) | {"finished": why})


def note_origins(input_path: Path, model: str) -> None:
    """Remember the model and the structure files of the run that `choose_start` begins or continues.

    Where they are not those that it had before, which may be meant, it is logged once.

    Args:
        model: MODEL of the servers, its paths absolute.
    """
    record = read_record(input_path.parent / RECORD)
    sha256, structures = fingerprint_of_model(model), dict(_structures(input_path))
    if record.get("model_sha256", sha256) != sha256:
        what = (
            f"{model} in place of {record['model']}" if model != record["model"] else f"{model} was changed"
        )
        log.warning("the run goes on with another model: %s. `conserved` jumps there", what)
    known = record.get("structures", {})
    for name in structures:
        if known.get(name, structures[name]) != structures[name]:
            log.warning(
                "%s was changed since this run began: it goes on from its own last state, --fresh starts from the file", name
            )  # fmt: skip
    origins = {"model": model, "model_sha256": sha256, "structures": known | structures}
    _write_record(input_path, record | origins)


def _fingerprint(input_path: Path) -> str:
    """Of what an input says, whatever its number of steps, its comments and its layout."""
    return hashlib.sha256(repr(_meaning(parse_nodes(input_path))).encode()).hexdigest()


def _meaning(node: Any) -> tuple[Any, ...]:
    fields = [
        (name, " ".join(field.split()) if isinstance(field, str) else _meaning(field))
        for name, field in node.fields
        if name != "total_steps"
    ]
    return node.name, sorted(node.attribs.items()), [each for each in fields if each[1]]


def _remember(input_path: Path) -> None:
    _write_record(input_path, {"input": input_path.name, "sha256": _fingerprint(input_path)})


def fingerprint_of_model(model: str) -> str:
    """Of what its file holds, wherever that lies, and of its options; the code behind an `ase:` model is not looked at."""
    scheme, options = parse(model, schemes=LOADERS, bundled=BUNDLED)
    name = options.pop(POSITIONAL, "")
    content = _sha256(Path(name)) if Path(name).is_file() else name
    return hashlib.sha256(repr((scheme, content, sorted(options.items()))).encode()).hexdigest()


def _structures(input_path: Path) -> Iterator[tuple[str, str]]:
    """(name in the input, sha256) of every file that an `<initialize>` reads and that is there."""
    for system in systems_of(parse_input(input_path), input_path):
        for _, entry in system.initialize.extra if system.initialize._explicit else ():
            if entry.mode.fetch() not in ("manual", "thermal"):
                path = input_path.parent / entry.getval()
                if path.is_file():
                    yield entry.getval(), _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(path: Path) -> dict[str, Any]:
    """A JSON file that we keep beside a run; empty where there is none, or half of one."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record


def _write_record(input_path: Path, record: dict[str, Any]) -> None:
    _replace(input_path.parent / RECORD, json.dumps(record, indent=1) + "\n")


def _check_same_input(input_path: Path, checkpoint: Path) -> None:
    remedy = "Start afresh with --fresh, continue by hand (`i-pi -S /tmp/ipi_ RESTART`), or give each run a folder of its own"
    record = read_record(input_path.parent / RECORD)
    if not record:
        raise UsageError(
            f"{checkpoint} is of a run that was not started with `launch`, so {input_path.name} may be another one. {remedy}"
        )
    if record.get("input") != input_path.name:
        raise UsageError(f"{checkpoint} belongs to {record.get('input')}, not to {input_path.name}. {remedy}")
    if record.get("sha256") != _fingerprint(input_path):
        raise UsageError(
            f"{input_path} was changed since this run began, and i-PI would continue from {checkpoint.name} without the change. "
            f"{remedy}"
        )
