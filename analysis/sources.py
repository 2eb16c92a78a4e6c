"""Which input, and which of its systems, wrote the outputs that are asked for.

i-PI names what it writes `{system prefix}_{output prefix}.{filename}`; either prefix may be empty, and the output prefix may
hold a folder. All up to the file name is called the start of an output: "simulation.", "outer-3.0fs_resonance-scan.".
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analysis.errors import UnreadableRun

SNIFFED_BYTES = 4096
STATES = ("RESTART", "CONTINUE.xml")  # written as a run goes on, by i-PI and by `forceserver launch`


@contextlib.contextmanager
def refusals_named(path: Path) -> Iterator[None]:
    """Whatever i-PI raises while it reads an input becomes `UnreadableRun`; what it prints is kept off stdout."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        NameError,
        IndexError,
        AttributeError,
        ImportError,
    ) as error:
        raise UnreadableRun(f"{path}: not an i-PI input that i-PI can read: {error}") from error


def parse_input(path: Path) -> Any:
    """i-PI's `InputSimulation` of an input or a RESTART file, XML or JSON; call it within `refusals_named`."""
    from ipi.inputs.simulation import InputSimulation
    from ipi.utils.io.inputs.io_json import json_parse_string
    from ipi.utils.io.inputs.io_xml import xml_parse_string

    text = path.read_text()
    parse = json_parse_string if text.lstrip().startswith("{") else xml_parse_string
    simulation = InputSimulation()
    simulation.parse(parse(text).fields[0][1])
    return simulation


def systems_of(simulation: Any) -> Iterator[tuple[str, Any]]:
    """Every `<system>` with the start of its outputs, those made from a `<system_template>` included."""
    prefix = str(simulation.output.prefix.fetch())
    for tag, node in simulation.extra:
        for system in [node] if tag == "system" else _instances(node) if tag == "system_template" else ():
            own = str(system.prefix.fetch())
            yield (f"{own}_" if own else "") + (f"{prefix}." if prefix else ""), system


def _instances(template: Any) -> Iterator[Any]:
    from ipi.inputs.system import InputSystem
    from ipi.utils.io.inputs.io_xml import xml_parse_string

    labels = [str(label) for label in template.labels.fetch()]
    for _, instance in template.extra:
        text = template.template.fetch()
        # as i-PI does: the label that sorts last goes first
        for label, value in sorted(zip(labels, instance.fetch(), strict=True), reverse=True):
            text = text.replace(label, str(value))
        system = InputSystem()
        system.parse(xml_parse_string(text).fields[0][1])
        yield system


def choose_system(simulation: Any, path: Path, prefix: str | None) -> tuple[str, Any]:
    """The system whose outputs have this prefix, or the only one, and the start of its outputs.

    Raises:
        UnreadableRun: none, or several.
    """
    systems = list(systems_of(simulation))
    chosen = [(start, system) for start, system in systems if prefix in (None, start[:-1])]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(str(path.parent / start[:-1]) for start, _ in systems)
    raise UnreadableRun(
        f"{path}: wanted one <system>, got {len(chosen)}"
        + (f"; name the outputs of one: {names}" if names else "")
    )


def find_input(directory: Path, prefix: str | None) -> Path | None:
    """The input of a directory: input.xml, else the only one there (or the only one that gives this prefix of outputs).

    Where there is none, a state that the run left, which says the same.

    Raises:
        UnreadableRun: several.
    """
    for candidates in _inputs_and_states(directory):
        found = [file for file in candidates if prefix is None or prefix in _prefixes(file)]
        preferred = [file for file in found if file.name in ("input.xml", "input.json")]
        if len(found) > 1 and not preferred:
            names = ", ".join(file.name for file in found)
            raise UnreadableRun(f"{directory}: several inputs ({names}); name the one to analyse")
        if found:
            return (preferred or found)[0]
    return None


def prefixes_in(directory: Path) -> list[str]:
    """The prefixes of outputs that the inputs of a directory give."""
    found = (file for candidates in _inputs_and_states(directory) for file in candidates)
    return sorted({prefix for file in found for prefix in _prefixes(file) if prefix})


def is_input(path: Path) -> bool:
    """Whether a file looks like an input of i-PI."""
    with path.open("rb") as file:
        head = file.read(SNIFFED_BYTES)
    return b"<simulation" in head or (path.suffix == ".json" and b"simulation" in head)


def _inputs_and_states(directory: Path) -> tuple[list[Path], list[Path]]:
    """Inputs; and of the states of a run, which are alike, one."""
    names = sorted({*directory.glob("*.xml"), *directory.glob("*.json")})
    # What is hidden is no input: `launch` keeps its record so.
    shown = [file for file in names if not file.name.startswith(".")]
    inputs = [file for file in shown if file.name not in STATES and file.is_file() and is_input(file)]
    states = [file for name in STATES if (file := directory / name).is_file() and is_input(file)]
    return inputs, states[:1]


def _prefixes(path: Path) -> list[str]:
    with refusals_named(path):
        return [start[:-1] for start, _ in systems_of(parse_input(path))]
