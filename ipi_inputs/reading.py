"""From the tree of an input to the facts.

Reading is lenient, since the linter must be able to talk about broken inputs; i-PI's own classes judge what is legal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ipi_inputs import units
from ipi_inputs.document import Document, Element, InputError, children, find, find_all, parse, value_of
from ipi_inputs.facts import Component, InputFacts, Output, Socket, System, Thermostat

# What i-PI writes where an input has no <output>. None of the columns has an argument, so no edit touches this text.
_DEFAULT_OUTPUT = """
<output>
  <properties filename="md" stride="10"> [ time, step, conserved, temperature, potential, kinetic_cv ] </properties>
  <trajectory filename="pos" stride="100"> positions </trajectory>
  <checkpoint filename="checkpoint" stride="1000" overwrite="True"/>
</output>
""".strip()
_IS_DIRECT = ("true", "on", "forces")


def read_facts(document: Document, *, default_forces: str = "") -> InputFacts:
    """What a parsed input says.

    Args:
        document: the input.
        default_forces: of the sockets that do not say, `--forces` of the force server; "": unknown.

    Raises:
        InputError: the root is not `<simulation>`.
    """
    root = document.root
    if root.tag != "simulation":
        raise InputError(f"not an i-PI input: wanted the root element <simulation>, got <{root.tag}>")
    sockets = tuple(
        _read_socket(node, default_forces) for node in children(root) if node.tag.startswith("ff")
    )
    by_name = {socket.name: socket for socket in sockets}
    output = find(root, "output")
    written = _default_output(root) if output is None else output
    return InputFacts(
        document=document,
        total_steps=_integer(value_of(find(root, "total_steps"))),
        seed=_integer(value_of(find(root, "prng/seed"))),
        prefix=output.get("prefix", "i-pi") if output is not None else "i-pi",
        sockets_prefix=root.get("sockets_prefix", "/tmp/ipi_"),
        sockets=sockets,
        systems=tuple(_read_system(node, by_name) for node in _systems(document)),
        outputs=tuple(_read_output(node) for node in children(written)),
    )


def parse_list(text: str) -> tuple[str, ...]:
    """The items of i-PI's `[ a, b ]`; commas inside brackets and braces do not separate."""
    inner = text.strip().removeprefix("[").removesuffix("]")
    items = re.split(r",(?![^({]*[)}])", inner)
    return tuple(item.strip() for item in items if item.strip())


def numbers(text: str) -> tuple[float, ...]:
    """The numbers of i-PI's `[ 1, 8 ]`; () where one of them is none."""
    values = [_number(item) for item in parse_list(text)]
    return () if None in values else tuple(value for value in values if value is not None)


def quantity(element: Element | None, dimension: str) -> float | None:
    """The value of an element in fs, K, GPa, ...; None where it is missing or not a number in a known unit."""
    number = _number(value_of(element))
    if element is None or number is None:
        return None
    try:
        return units.to_user(dimension, element.get("units", ""), number)
    except units.UnitError:
        return None


def _systems(document: Document) -> Iterator[Element]:
    for node in children(document.root):
        if node.tag == "system":
            yield node
        elif node.tag == "system_template":
            yield from _expand(document, node)


def _expand(document: Document, node: Element) -> Iterator[Element]:
    """The systems that i-PI makes of a template: labels replaced by the values of each instance, the longest label first."""
    template = find(node, "template")
    if template is None:
        return
    labels = parse_list(value_of(find(node, "labels")))
    first_line = document.text[: template.content[0]].count("\n")
    for instance in find_all(node, "instance"):
        text = document.text[slice(*template.content)]
        for label, new in sorted(zip(labels, parse_list(value_of(instance)), strict=False), reverse=True):
            text = text.replace(label, new)
        system = parse(text.strip()).root
        offset = first_line + text[: len(text) - len(text.lstrip())].count("\n")
        for element in system.iter():
            if isinstance(element, Element):
                element.line += offset
        yield system


def _read_socket(node: Element, default_forces: str) -> Socket:
    pairs = (item.partition(":") for item in value_of(find(node, "parameters")).strip("{} ").split(","))
    parameters = {name.strip(): value.strip() for name, _, value in pairs if name.strip()}
    if node.tag == "ffsocket":
        forces = parameters.get("forces", default_forces)
    else:  # i-PI's own metatomic driver
        forces = "direct" if parameters.get("non_conservative", "").lower() in _IS_DIRECT else ""
    return Socket(
        tag=node.tag,
        name=node.get("name", ""),
        mode=node.get("mode", "inet") if node.tag == "ffsocket" else "",
        address=value_of(find(node, "address")) or "localhost",
        port=_integer(value_of(find(node, "port")) or "65535"),
        batch_size=_integer(value_of(find(node, "batch_size"))) or 1,
        timeout_seconds=_number(value_of(find(node, "timeout"))) or 0.0,
        latency_seconds=_number(value_of(find(node, "latency")) or "1e-4") or 0.0,
        parameters=parameters,
        forces=forces,
        potential=value_of(find(node, "pes")),
        element=node,
    )


def _read_system(node: Element, sockets: Mapping[str, Socket]) -> System:
    motion = find(node, "motion")
    dynamics = find(motion, "dynamics")
    barostat = find(dynamics, "barostat")
    start = next((part for part in (find(node, "initialize"), find(node, "beads")) if part is not None), node)
    optimizer = find(motion, "optimizer")
    return System(
        prefix=node.get("prefix", ""),
        motion=motion.get("mode", "dynamics") if motion is not None else "",
        ensemble=dynamics.get("mode", "nve") if dynamics is not None else "",
        splitting=dynamics.get("splitting", "obabo") if dynamics is not None else "",
        optimizer=optimizer.get("mode", "lbfgs") if optimizer is not None else "",
        timestep_fs=quantity(find(dynamics, "timestep"), "time"),
        nmts=_iterations(value_of(find(dynamics, "nmts"))),
        n_beads=_integer(start.get("nbeads", "1")) or 1,
        temperature_K=quantity(find(node, "ensemble/temperature"), "temperature"),
        pressure_GPa=quantity(find(node, "ensemble/pressure"), "pressure"),
        thermostats=tuple(_read_thermostats(find(dynamics, "thermostat"))),
        barostat=barostat.get("mode", "dummy") if barostat is not None else "",
        fix_com=value_of(find(motion, "fixcom")).lower() not in ("false", ".false.", "f", "0", "no"),
        components=tuple(
            _read_component(force, sockets) for force in children(find(node, "forces"), "force")
        ),
        element=node,
    )


def _read_thermostats(node: Element | None) -> Iterator[Thermostat]:
    if node is None:
        return
    if node.get("mode") == "multi":
        for inner in children(node, "thermostat"):
            yield from _read_thermostats(inner)
        return
    matrix = find(node, "A")
    yield Thermostat(
        mode=node.get("mode", ""),
        tau_fs=quantity(find(node, "tau"), "time"),
        pile_lambda=_number(value_of(find(node, "pile_lambda"))) or 1.0,
        matrix_shape=tuple(int(n) for n in re.findall(r"\d+", matrix.get("shape", "")))
        if matrix is not None
        else (),
        has_covariance=find(node, "C") is not None,
        element=node,
    )


def _read_component(node: Element, sockets: Mapping[str, Socket]) -> Component:
    name = node.get("forcefield", "")
    weight = _number(node.get("weight", "1"))
    return Component(
        forcefield=name,
        weight=1.0 if weight is None else weight,
        mts_weights=numbers(value_of(find(node, "mts_weights"))) or (1.0,),
        n_beads=_integer(node.get("nbeads", "0")) or 0,
        socket=sockets.get(name),
        element=node,
    )


def _read_output(node: Element) -> Output:
    return Output(
        kind=node.tag,
        filename=node.get("filename", ""),
        stride=_integer(node.get("stride", "1")) or 1,
        items=parse_list(value_of(node)) if node.tag == "properties" else (value_of(node),),
        element=node,
    )


def _default_output(root: Element) -> Element:
    """As if it stood in the line of the root."""
    output = parse(_DEFAULT_OUTPUT).root
    for node in children(output):
        node.line = root.line
    return output


def _iterations(text: str) -> tuple[int, ...]:
    """The entries of nmts; one level where they are no counts."""
    counts = tuple(_integer(item) or 0 for item in parse_list(text))
    return counts if counts and min(counts) > 0 else (1,)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _integer(text: str) -> int | None:
    number = _number(text)
    return None if number is None or not number.is_integer() else int(number)
