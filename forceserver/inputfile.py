"""What a server needs to know from an i-PI input: sockets, roles, species, beads, and whether anybody reads the virial.

The input is read by i-PI's own input classes, so defaults, units and every way of naming atoms mean here what they mean there.
Nothing is evaluated, opened or bound. XML, JSON and RESTART files are the same thing to i-PI, and so to us.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forceserver.errors import UsageError, one_line
from forceserver.exchange import Template
from forceserver.quiet import quiet_ipi
from forceserver.species import initialized_template
from forceserver.transport import Address, InetAddress, UnixAddress

log = logging.getLogger(__name__)

BAROSTATTED = {"npt", "nst", "scnpt"}
VIRIAL_WORDS = ("pressure", "stress", "virial", "vir_")
NO_VIRIAL_WORDS = {"virial_fq"}  # forces times positions
COMPONENT_WORDS = {"vir_component", "vir_component_raw"}  # of one <force>, whose mts_weights are not applied


@dataclass(frozen=True, eq=False)
class SocketSpec:
    """One `<ffsocket>`, and what the rest of the input says about it."""

    name: str
    address: Address
    parameters: Mapping[str, str]  # as written; what i-PI sends in INIT decides
    batch_size: int
    n_requests: int | None  # structures that i-PI asks for at once, at most; None: unknown
    template: Template  # of the systems that use this socket, which must be alike
    virial_readers: tuple[str, ...] = ()  # what in the input reads the virial of this socket, in words


@dataclass(frozen=True, eq=False)
class SimulationInput:
    """One i-PI input: one simulation, whose sockets live and die together."""

    path: Path | None  # None: only an address was given
    sockets: tuple[SocketSpec, ...]


@dataclass(frozen=True)
class _Component:
    """One `<force>`, as far as a server cares."""

    forcefield: str
    n_beads: int
    weights: tuple[float, ...]  # weight x mts_weights, outer level first
    virial_readers: tuple[str, ...] = ()  # outputs of its virial alone
    is_bias: bool = False  # evaluated after the forces, and in no output of the virial


@dataclass(frozen=True, eq=False)
class _System:
    components: tuple[_Component, ...]
    template: Template
    barostats: tuple[str, ...]
    virial_readers: tuple[str, ...]  # outputs of the total


def read_input(
    path: Path, *, sockets_prefix: str | None = None, folder: Path | None = None
) -> SimulationInput:
    """Read an i-PI input.

    Args:
        path: XML, JSON (by its ending) or RESTART.
        sockets_prefix: takes the place of the input's own, as `i-pi -S` does.
        folder: where i-PI runs, and so looks for files that the input names; None: not known.

    Raises:
        UsageError: no such file, not an i-PI input, no `<ffsocket>`, or atoms that cannot be told.
    """
    simulation = parse_input(path)
    prefix = sockets_prefix if sockets_prefix is not None else simulation.sockets_prefix.fetch()
    forcefields = list(_ffsockets(simulation.extra))
    if not forcefields:
        raise UsageError(
            f"{path} has no <ffsocket>: i-PI would not listen to any force server. Add "
            '<ffsocket name="forces" mode="unix"><address>NAME</address></ffsocket>'
        )
    with _refusals_named(path):
        outputs = _virial_outputs(simulation)
    systems = [_read_system(system, path, folder, outputs) for system in systems_of(simulation, path)]
    specs = [_socket_spec(names, forcefield, systems, prefix, path) for names, forcefield in forcefields]
    sockets = tuple(spec for spec in specs if spec is not None)
    if not sockets:
        wanted = sorted({each.forcefield for system in systems for each in system.components})
        raise UsageError(
            f"{path}: no <force> of any <system> uses an <ffsocket>, so i-PI would ask for nothing (they use: "
            f"{', '.join(wanted) or 'nothing'}; the <ffsocket>s are: {', '.join(names[-1] for names, _ in forcefields)})"
        )
    return SimulationInput(path, sockets)


def parse_input(path: Path) -> Any:
    """i-PI's `InputSimulation`, parsed but not fetched: fetching would open files and sockets.

    Raises:
        UsageError: no such file, or not an input that i-PI accepts.
    """
    from ipi.inputs.simulation import InputSimulation

    simulation, nodes = InputSimulation(), parse_nodes(path)
    with _refusals_named(path):
        simulation.parse(nodes)
    return simulation


def parse_nodes(path: Path) -> Any:
    """The `<simulation>` of an input as i-PI's `xml_node` (name, attribs, fields), comments left out, JSON as if it were XML.

    Raises:
        UsageError: no such file, or neither XML nor JSON.
    """
    from ipi.utils.io.inputs.io_json import json_parse_string
    from ipi.utils.io.inputs.io_xml import xml_parse_string

    try:
        text = path.read_text()
    except OSError as error:
        raise UsageError(f"cannot read the i-PI input {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not an i-PI input: it is not a text file") from None
    parse = json_parse_string if path.suffix == ".json" else xml_parse_string
    with _refusals_named(path):
        return parse(text).fields[0][1]


@contextlib.contextmanager
def _refusals_named(path: Path) -> Iterator[None]:
    try:
        with quiet_ipi():
            yield
    except Exception as error:  # i-PI raises whatever comes to hand
        raise UsageError(f"{path} is not an input that i-PI accepts: {one_line(error, whole=True)}") from None


def _ffsockets(
    extra: Sequence[tuple[str, Any]], outer: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All `<ffsocket>`s with the names that a `<force>` can know them by: their own, or that of what wraps them."""
    for tag, node in extra:
        if not tag.startswith("ff"):
            continue
        names = (*outer, node.name.fetch())
        if tag in ("ffsocket", "ffcavphsocket"):
            yield names, node
        else:
            yield from _ffsockets(getattr(node, "extra", ()), names)
            nested = [
                (field, node.__dict__[field])
                for field in ("ffsocket",)
                if field in getattr(node, "fields", {})
            ]
            yield from _ffsockets([pair for pair in nested if pair[1]._explicit], names)


def systems_of(simulation: Any, path: Path) -> Iterator[Any]:
    """Every `<system>` of a parsed input, those made from a `<system_template>` included.

    Raises:
        UsageError: a template does not fill to a system.
    """
    for tag, node in simulation.extra:
        if tag == "system":
            yield node
        elif tag == "system_template":
            yield from _instances(node, path)


def _instances(template: Any, path: Path) -> Iterator[Any]:
    from ipi.inputs.system import InputSystem
    from ipi.utils.io.inputs.io_xml import xml_parse_string

    text = template.template.fetch()
    labels = [str(label) for label in template.labels.fetch()]
    for tag, instance in template.extra:
        if tag != "instance":
            continue
        filled = text
        for label, value in sorted(zip(labels, instance.fetch(), strict=False), reverse=True):
            filled = filled.replace(label, str(value))
        system = InputSystem()
        try:
            with quiet_ipi():
                system.parse(xml_parse_string(filled).fields[0][1])
        except Exception as error:
            raise UsageError(
                f"{path}: a <system_template> does not fill to a <system>: {one_line(error, whole=True)}"
            ) from None
        yield system


def _read_system(
    system: Any, path: Path, folder: Path | None, outputs: Mapping[int | None, Sequence[str]]
) -> _System:
    n_beads = system.initialize.nbeads.fetch() if system.initialize._explicit else system.beads.nbeads.fetch()
    components = tuple(
        _Component(
            forcefield=component.forcefield.fetch(),
            n_beads=component.nbeads.fetch() or n_beads,
            weights=tuple(
                float(weight) for weight in component.weight.fetch() * component.mts_weights.fetch()
            ),
            virial_readers=tuple(outputs.get(index, ())),
        )
        for index, (_, component) in enumerate(system.forces.extra)
    )
    biases = tuple(
        _Component(component.forcefield.fetch(), component.nbeads.fetch() or n_beads, (1.0,), is_bias=True)
        for _, component in system.ensemble.bias.extra
    )
    template = initialized_template(system, path, folder)
    barostats = tuple(_barostats(system.motion))
    return _System((*components, *biases), template, barostats, tuple(outputs.get(None, ())))


def _barostats(motion: Any) -> Iterator[str]:
    mode = motion.mode.fetch()
    if mode == "dynamics" and motion.dynamics.mode.fetch() in BAROSTATTED:
        yield f"the {motion.dynamics.mode.fetch()} ensemble"
    if mode == "multi":
        for _, inner in motion.extra:
            yield from _barostats(inner)


def _virial_outputs(simulation: Any) -> Mapping[int | None, Sequence[str]]:
    """Properties in the outputs that are made of the virial, in words: {index of the component, None for the total: outputs}."""
    from ipi.engine.properties import getall

    found: dict[int | None, list[str]] = defaultdict(list)
    for tag, output in simulation.output.extra:
        for text in output.fetch().outlist if tag == "properties" else ():
            word, _, arguments, named = getall(text)
            if word in COMPONENT_WORDS:
                found[int(named.get("index", *arguments[:1]))].append(f"the output '{text}'")
            elif word.startswith(VIRIAL_WORDS) and word not in NO_VIRIAL_WORDS:
                found[None].append(f"the output '{text}'")
    return found


def _socket_spec(
    names: tuple[str, ...], forcefield: Any, systems: Sequence[_System], prefix: str, path: Path
) -> SocketSpec | None:
    """None for an `<ffsocket>` that no `<force>` uses: i-PI asks for nothing there."""
    users = [(system, each) for system in systems for each in system.components if each.forcefield in names]
    if not users:
        log.info("no <force> uses <ffsocket name='%s'>: it is not served", names[-1])
        return None
    active = [int(index) for index in forcefield.activelist.fetch()]
    templates = [_restricted(system.template, active, names[-1], path) for system, _ in users]
    if not all(template.is_like(templates[0]) for template in templates):
        raise UsageError(
            f"{path}: systems of different atoms share <ffsocket name='{names[-1]}'>, and i-PI would cut them to one size; "
            "give each its own <ffsocket>"
        )
    batch_size = forcefield.batch_size.fetch()
    if batch_size < 1:
        raise UsageError(
            f"{path}: <batch_size> of <ffsocket name='{names[-1]}'> must be 1 or more, got {batch_size}"
        )
    components = [component for _, component in users]
    return SocketSpec(
        name=names[-1],
        address=_address(forcefield, prefix, path),
        parameters={str(key): str(value) for key, value in forcefield.parameters.fetch().items()},
        batch_size=batch_size,
        n_requests=_most_at_once(components),
        template=templates[0],
        virial_readers=tuple(dict.fromkeys(_virial_readers(users))),
    )


def _virial_readers(users: Sequence[tuple[_System, _Component]]) -> Iterator[str]:
    """Barostats read the virial of each level of multiple time stepping, outputs that of a component, or of the total."""
    counts = _has_weight([component for _, component in users if not component.is_bias])
    for system, component in users:
        yield from system.barostats
        yield from component.virial_readers
        yield from system.virial_readers if counts else ()


def _most_at_once(components: Sequence[_Component]) -> int:
    """Beads of all components that act together, on a level of multiple time stepping or as biases, where they are most."""
    acting: dict[tuple[bool, int], int] = defaultdict(int)
    for each in components:
        for level, weight in enumerate(each.weights):
            if weight:
                acting[each.is_bias, level] += each.n_beads
    return max(acting.values(), default=0) or max(each.n_beads for each in components)


def _has_weight(components: Sequence[_Component]) -> bool:
    """Whether what the socket returns counts in the total: weights cancel only between components of equal beads."""
    totals: dict[int, float] = defaultdict(float)
    for component in components:
        totals[component.n_beads] += sum(component.weights)
    return any(abs(total) > 1e-12 for total in totals.values())


def _address(forcefield: Any, prefix: str, path: Path) -> Address:
    mode = forcefield.mode.fetch()
    if mode == "unix":
        return UnixAddress(prefix + forcefield.address.fetch())
    if mode == "inet":
        if not 0 < forcefield.port.fetch() < 65536:
            raise UsageError(f"{path}: <port> must lie between 1 and 65535, got {forcefield.port.fetch()}")
        return InetAddress(forcefield.address.fetch(), forcefield.port.fetch())
    raise UsageError(
        f"{path}: <ffsocket name='{forcefield.name.fetch()}'> has mode='{mode}', which this server does not speak; "
        "use mode='unix' on one machine or mode='inet' between machines"
    )


def _restricted(template: Template, active: list[int], name: str, path: Path) -> Template:
    """The template of the atoms that an `activelist` lets through; one that starts with -1 is i-PI's word for all."""
    if not active or active[0] == -1:
        return template
    if not all(0 <= index < template.n_atoms for index in active):
        raise UsageError(
            f"{path}: <activelist> of <ffsocket name='{name}'> must hold indices from 0 to {template.n_atoms - 1}, got {active}"
        )
    return template.restricted_to(active)
