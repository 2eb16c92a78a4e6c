"""Checks of what is written: units, names of outputs, structure files, sockets. Each yields where, and what is there.

No quantity is compared here, only whether it says its unit and whether i-PI knows the word.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from ipi_inputs import units
from ipi_inputs.document import Element, children, find, value_of
from ipi_inputs.facts import LONGEST_SOCKET_PATH, InputFacts, Socket
from ipi_inputs.findings import Case, Hit
from ipi_inputs.starting import first_lines, structure_elements

ROLE_PARAMETERS = ("forces", "direct_fraction", "model")
LEAST_LATENCY_SECONDS = 3e-4
NEVER_ATOMIC = ("time", "temperature")
ROLES = ("conservative", "direct", "blended")

_INITIAL = {"positions": "length", "velocities": "velocity", "momenta": "momentum", "masses": "mass"}
_READ_FROM_XYZ: Mapping[str, Mapping[str, str]] = {  # by element: each quantity, and a unit that it may have
    "file": {"positions": "angstrom", "cell": "angstrom"},
    "positions": {"positions": "angstrom"},
    "velocities": {"velocities": "atomic_unit"},
    "momenta": {"momenta": "atomic_unit"},
}
_BARE_BY_CUSTOM = ("A", "s", "p", "eens", "ethermo", "ebaro", "offset", "mts_weights")


def refused(case: Case) -> Iterator[Hit]:
    if case.refusal:
        yield case.facts.document.root, case.refusal


def missing_structure(case: Case) -> Iterator[Hit]:
    for node in _structure_elements(case):
        if not (case.folder / value_of(node)).is_file():
            yield node, f"there is no file {value_of(node)} in {case.folder}"


def xyz_without_units(case: Case) -> Iterator[Hit]:
    for node in _structure_elements(case):
        path = case.folder / value_of(node)
        if node.get("mode") != "xyz" or node.get("units") or not path.is_file():
            continue
        _, comment = first_lines(path)
        for quantity, unit in _READ_FROM_XYZ.get(node.tag, {}).items():
            if not re.search(rf"\b{quantity}\{{\w+\}}", comment):
                yield node, f"{path.name} does not say '{quantity}{{{unit}}}' in its second line"


def missing_units(case: Case) -> Iterator[Hit]:
    """Times and temperatures: nobody means atomic units there."""
    yield from (hit for hit, dimension in _bare(case) if dimension in NEVER_ATOMIC)


def bare_atomic_units(case: Case) -> Iterator[Hit]:
    yield from (hit for hit, dimension in _bare(case) if dimension not in NEVER_ATOMIC)


def unknown_units(case: Case) -> Iterator[Hit]:
    for node, dimension in _quantities(case.facts):
        yield from _unit_hit(node, dimension, node.get("units", ""))
    for output in case.facts.outputs:
        if cell_units := output.element.get("cell_units"):
            yield from _unit_hit(output.element, "length", cell_units)
        table = _output_table(output.kind)
        for item in output.items if table else ():
            name, unit = _split_item(item)
            dimension = table.get(name, {}).get("dimension", "undefined")
            if unit and units.is_known(dimension):
                yield from _unit_hit(output.element, dimension, unit)


def unknown_outputs(case: Case) -> Iterator[Hit]:
    for output in case.facts.outputs:
        table = _output_table(output.kind)
        for key in sorted(output.keys) if table else ():
            if key not in table:
                yield output.element, f"i-PI knows no {output.kind} '{key}'"


def missing_output_folder(case: Case) -> Iterator[Hit]:
    output = find(case.facts.document.root, "output")
    for folder in case.facts.output_folders:
        if output is not None and not (case.folder / folder).is_dir():
            yield output, f"outputs go to the folder {folder}, which is not in {case.folder}"


def socket_collision(case: Case) -> Iterator[Hit]:
    users: defaultdict[str, list[Socket]] = defaultdict(list)
    for socket in case.facts.sockets:
        if socket.mode:
            users[socket.endpoint(case.facts.sockets_prefix)].append(socket)
    for place, sockets in users.items():
        for socket in sockets[1:]:
            yield socket.element, f"sockets '{sockets[0].name}' and '{socket.name}' both listen at {place}"


def socket_path(case: Case) -> Iterator[Hit]:
    for socket in case.facts.sockets:
        path = socket.endpoint(case.facts.sockets_prefix)
        if socket.mode in ("unix", "shm") and len(path.encode()) > LONGEST_SOCKET_PATH:
            yield socket.element, f"the path of the socket has {len(path.encode())} bytes: {_shortened(path)}"


def socket_timeout(case: Case) -> Iterator[Hit]:
    for socket in case.facts.sockets:
        if socket.tag == "ffsocket" and socket.timeout_seconds == 0:
            yield socket.element, f"socket '{socket.name}' waits for ever for an answer"


def socket_polling(case: Case) -> Iterator[Hit]:
    for socket in case.facts.sockets:
        if socket.tag == "ffsocket" and socket.latency_seconds < LEAST_LATENCY_SECONDS:
            yield (
                socket.element,
                f"socket '{socket.name}' is polled every {1e3 * socket.latency_seconds:g} ms",
            )


def unknown_role(case: Case) -> Iterator[Hit]:
    for socket in case.facts.sockets:
        if socket.tag != "ffsocket":
            continue
        for name in socket.parameters:
            if name not in ROLE_PARAMETERS:
                yield socket.element, f"parameter '{name}' of socket '{socket.name}'"
        if socket.forces and socket.forces not in ROLES:
            yield socket.element, f"forces '{socket.forces}' of socket '{socket.name}'"
        if socket.forces == "blended" and "direct_fraction" not in socket.parameters:
            yield socket.element, f"socket '{socket.name}' asks for blended forces without direct_fraction"


def batch_size(case: Case) -> Iterator[Hit]:
    for system in case.facts.systems:
        for component in system.acting:
            n_beads = component.n_beads or system.n_beads
            n_requests = n_beads * len(case.facts.systems)
            socket = component.socket
            if socket and socket.batch_size > 1 and n_requests % socket.batch_size:
                yield (
                    socket.element,
                    f"batch_size {socket.batch_size} of '{socket.name}' for {n_requests} structures at a time",
                )


def _structure_elements(case: Case) -> Iterator[Element]:
    return (node for system in case.facts.systems for node in structure_elements(system.element))


def _bare(case: Case) -> Iterator[tuple[Hit, str]]:
    """Numbers with a dimension and without units, each with its dimension."""
    if case.is_restart:
        return
    for node, dimension in _quantities(case.facts):
        numeric = re.search(r"\d", value_of(node)) and not re.fullmatch(r"[-+]?0*\.?0*", value_of(node))
        if numeric and not node.get("units") and node.tag not in _BARE_BY_CUSTOM:
            yield (node, f"<{node.tag}> {_shortened(value_of(node))} without units ({dimension})"), dimension


def _quantities(facts: InputFacts) -> Iterator[tuple[Element, str]]:
    """Every element that carries a number with a dimension, and the dimension, by i-PI's own tables."""
    from ipi.inputs.simulation import InputSimulation
    from ipi.inputs.system import InputSystem

    yield from _dimensioned(facts.document.root, InputSimulation)
    for system in facts.systems:  # those made of a template are not below the root
        yield from _dimensioned(system.element, InputSystem)
        for node in children(find(system.element, "initialize")):
            if node.get("mode") == "thermal":
                yield node, "temperature"
            elif node.tag in _INITIAL and node.get("mode") == "manual":
                yield node, _INITIAL[node.tag]
            elif node.tag == "cell" and node.get("mode", "manual") in ("manual", "abc", "abcABC"):
                yield node, "length"


def _dimensioned(element: Element, reader: Any) -> Iterator[tuple[Element, str]]:
    table = {**getattr(reader, "fields", {}), **getattr(reader, "dynamic", {})}
    for node in children(element):
        if node.tag not in table or node.tag in ("initialize", "system"):
            continue
        inner, arguments = table[node.tag]
        dimension = arguments.get("dimension", "undefined")
        if isinstance(dimension, list):  # a dictionary of values, each with its own dimension
            by_option = dict(zip(arguments.get("options", ()), dimension, strict=False))
            yield from (
                (sub, by_option[sub.tag])
                for sub in children(node)
                if units.is_known(by_option.get(sub.tag, ""))
            )
        elif units.is_known(dimension):
            yield node, dimension
        yield from _dimensioned(node, inner)


def _output_table(kind: str) -> Mapping[str, Mapping[str, Any]]:
    from ipi.engine.properties import Properties, Trajectories

    tables = {
        "properties": lambda: Properties().property_dict,
        "trajectory": lambda: Trajectories().traj_dict,
    }
    return tables[kind]() if kind in tables else {}


def _split_item(item: str) -> tuple[str, str]:
    """Name and unit of `name(arguments){unit}`."""
    unit = re.search(r"\{([^}]*)\}", item)
    return re.split(r"[({]", item, maxsplit=1)[0].strip(), unit[1] if unit else ""


def _unit_hit(node: Element, dimension: str, unit: str) -> Iterator[Hit]:
    try:
        units.to_atomic(dimension, unit)
    except units.UnitError as error:
        yield node, str(error)


def _shortened(text: str) -> str:
    return text if len(text) < 40 else f"{text[:36]} ..."
