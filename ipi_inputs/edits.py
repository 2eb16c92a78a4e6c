"""The edits that an input can take, one function each: an input and a value in, the new text out.

Each finds the place in the tree, says no where the input has none, and leaves the rest of the text alone.
Units: fs, K, GPa, as the names of the edits say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipi_inputs.asked import finite, positive, whole
from ipi_inputs.asked import fraction as as_fraction
from ipi_inputs.columns import rewrite_normal_modes, rewrite_species
from ipi_inputs.document import (
    Element,
    InputError,
    apply,
    children,
    find,
    find_all,
    replace_attribute,
    replace_value,
)
from ipi_inputs.facts import KINDS, LONGEST_SOCKET_PATH, Component, System
from ipi_inputs.starting import require_only_files_of_a_structure, structure_elements, structure_mode

if TYPE_CHECKING:
    from ipi_inputs.library import InputFile


def set_steps(source: InputFile, steps: int) -> str:
    return _set_value(source, "total_steps", whole("steps", steps, 1))


def set_seed(source: InputFile, seed: int) -> str:
    return _set_value(source, "prng/seed", whole("seed", seed, 0))


def set_prefix(source: InputFile, prefix: str) -> str:
    output = find(source.document.root, "output")
    if output is None or not prefix or re.search(r"[\s<>&\"']", prefix):
        raise InputError(
            f"prefix: wanted a file name without blanks or quotes, and an input with <output>, got '{prefix}'"
        )
    return apply(source.document, [replace_attribute(source.document, output, "prefix", prefix)])


def set_address(source: InputFile, address: str) -> str:
    sockets = [socket for socket in source.facts.sockets if socket.mode in ("unix", "shm")]
    if not sockets or len(sockets) != len(source.facts.sockets):
        raise InputError(
            f"address: wanted an input whose sockets are all mode='unix', {source.name} has others"
        )
    edits = []
    for socket in sockets:
        name = address if len(sockets) == 1 else f"{address}-{socket.name}"
        path = source.facts.sockets_prefix + name
        if not re.fullmatch(r"[\w.:+-]+", name) or len(path.encode()) > LONGEST_SOCKET_PATH:
            raise InputError(
                f"address: '{path}' cannot be a unix socket; wanted letters, digits and . : + - _, "
                f"and at most {LONGEST_SOCKET_PATH} characters with its prefix"
            )
        edits.append(
            replace_value(source.document, _need(source, find(socket.element, "address"), "<address>"), name)
        )
    return apply(source.document, edits)


def set_temperature(source: InputFile, temperature: float) -> str:
    kelvin = positive("temperature_K", temperature)
    nodes = _of_ensembles(source, "temperature")
    if not nodes:
        raise InputError(
            f"temperature_K: {source.name} has no temperature; inputs of molecular dynamics have"
        )
    for system in source.facts.systems:
        for thermostat in system.thermostats:
            if thermostat.has_covariance:
                raise InputError(
                    f"temperature_K: the matrices of the thermostat of {source.name} hold for {system.temperature_K:g} K; "
                    "get others from gle4md.org for another temperature, or take pimd-pile-l"
                )
    velocities = (
        node for node in find_all(source.document.root, "velocities") if node.get("mode") == "thermal"
    )
    return _set_quantities(source, [*nodes, *velocities], kelvin, "kelvin")


def set_pressure(source: InputFile, pressure: float) -> str:
    nodes = _of_ensembles(source, "pressure")
    if not nodes:
        raise InputError(
            f"pressure_GPa: {source.name} has a constant volume; inputs with a barostat have 'npt' in their names"
        )
    return _set_quantities(source, nodes, finite("pressure_GPa", pressure), "gigapascal")


def set_tau(source: InputFile, tau: float) -> str:
    value = positive("tau_fs", tau)
    found = (find(thermostat.element, "tau") for thermostat in _system(source).thermostats)
    nodes = [node for node in found if node is not None]
    if not nodes:
        raise InputError(
            f"tau_fs: {source.name} has no thermostat with a <tau>; e.g. nvt-langevin, nvt-svr, pimd-pile-l have"
        )
    return _set_quantities(source, nodes, value, "femtosecond")


def set_timestep(source: InputFile, timestep: float) -> str:
    value = positive("timestep_fs", timestep)
    _readable_timestep(source, "timestep_fs")
    return _set_quantities(source, _timesteps(source), value, "femtosecond")


def set_mts(source: InputFile, mts: int | tuple[int, ...]) -> str:
    """Other numbers of inner steps; the outer step moves, so that the inner one stays."""
    iterations = (mts,) if isinstance(mts, int) else tuple(mts)
    system = _system(source)
    inner = _readable_timestep(source, "mts")
    if len(system.nmts) < 2:
        raise InputError(
            f"mts: {source.name} does no multiple time stepping; inputs that do have 'mts' in their names"
        )
    if len(iterations) != len(system.nmts) - 1:
        wanted = "one number" if len(system.nmts) == 2 else f"{len(system.nmts) - 1} numbers"
        raise InputError(
            f"mts: {source.name} has {len(system.nmts)} levels, wanted {wanted}, got {len(iterations)}"
        )
    outer = inner
    for count in iterations:
        outer *= int(whole("mts", count, 1))
    nmts = find(system.element, "motion/dynamics/nmts")
    levels = ", ".join(str(count) for count in (1, *iterations))
    text = apply(
        source.document, [replace_value(source.document, _need(source, nmts, "<nmts>"), f"[ {levels} ]")]
    )
    return set_timestep(_again(source, text), outer)


def set_n_beads(source: InputFile, n_beads: int) -> str:
    count = whole("n_beads", n_beads, 2)
    system = _system(source)
    if system.n_beads < 2:
        raise InputError(
            f"n_beads: {source.name} is classical: its thermostat and outputs are not made for path integrals; "
            "take one of pimd-..., rpmd, trpmd, rpc..."
        )
    if any(len(thermostat.matrix_shape) == 3 for thermostat in system.thermostats):
        raise InputError(
            f"n_beads: the matrices of the thermostat of {source.name} hold for {system.n_beads} beads; "
            "get others from gle4md.org, or take pimd-pile-l"
        )
    edits = [
        replace_attribute(source.document, node, "nbeads", count)
        for node in find_all(source.document.root, "initialize")
    ]
    return rewrite_normal_modes(_again(source, apply(source.document, edits)).facts, n_beads)


def set_contracted_beads(source: InputFile, n_beads: int) -> str:
    count = whole("contracted_beads", n_beads, 1)
    system = _system(source)
    contracted = [component for component in system.components if component.n_beads > 0]
    if not contracted:
        raise InputError(f"contracted_beads: {source.name} does no ring-polymer contraction; rpc, rpc-mts do")
    smallest = min(component.n_beads for component in contracted)
    edits = [
        replace_attribute(source.document, component.element, "nbeads", count)
        for component in contracted
        if component.n_beads == smallest
    ]
    return apply(source.document, edits)


def set_forces(source: InputFile, forces: str) -> str:
    kind, _, fraction = forces.partition(":")
    if kind == "blended":
        parameters = f"{{forces: blended, direct_fraction: {as_fraction('forces', fraction)}}}"
    elif kind in KINDS and not fraction:
        parameters = f"{{forces: {kind}}}"
    else:
        raise InputError(
            f"forces: wanted conservative, direct or blended:X with X between 0 and 1, got '{forces}'"
        )
    acting = {component.forcefield: component for component in _system(source).acting}
    if len(acting) != 1:
        raise InputError(
            f"forces: {source.name} combines {', '.join(acting)}; inputs with one force field take this edit"
        )
    component: Component = next(iter(acting.values()))
    node = find(component.socket.element, "parameters") if component.socket else None
    return apply(
        source.document, [replace_value(source.document, _need(source, node, "<parameters>"), parameters)]
    )


def set_structure(source: InputFile, structure: str | Path) -> str:
    from ipi_inputs.judge import judge

    path = Path(structure).absolute()
    mode, edits = structure_mode(path), []
    require_only_files_of_a_structure(source.document, source.name)
    for node in structure_elements(source.document.root):
        edits.append(replace_attribute(source.document, node, "mode", mode))
        edits.append(replace_value(source.document, node, str(path)))
    if not edits:
        raise InputError(
            f"structure: {source.name} starts from no file; wanted an <initialize> with a <file>"
        )
    text = apply(source.document, edits)
    before, refusal = _species_of(source)
    try:
        after = judge(text, source.folder).species
    except InputError as error:
        if str(error) == refusal:
            raise
        raise InputError(
            f"structure: {path.name}, which i-PI reads in its mode '{mode}': {error}; wanted a file with a cell, and with D and "
            "T, if any, only in i-PI's own xyz, which says 'positions{angstrom} cell{angstrom}' in its second line"
        ) from None
    return rewrite_species(_again(source, text).facts, before, after)


def require_contraction(source: InputFile) -> None:
    """Raise InputError where forces are contracted to more beads than the ring polymer has."""
    for system in source.facts.systems:
        most = max((component.n_beads for component in system.components), default=0)
        if most > system.n_beads:
            raise InputError(
                f"the forces of {source.name} are contracted to {most} beads, of a ring polymer of {system.n_beads}; "
                "wanted no more than that: give n_beads and contracted_beads that agree"
            )


EDITS: Mapping[str, Callable[[InputFile, Any], str]] = {  # in the order in which they are applied
    "steps": set_steps,
    "seed": set_seed,
    "prefix": set_prefix,
    "address": set_address,
    "temperature_K": set_temperature,
    "pressure_GPa": set_pressure,
    "tau_fs": set_tau,
    "mts": set_mts,
    "timestep_fs": set_timestep,
    "contracted_beads": set_contracted_beads,
    "n_beads": set_n_beads,
    "forces": set_forces,
    "structure": set_structure,
}


def _set_value(source: InputFile, path: str, new: str) -> str:
    node = _need(source, find(source.document.root, path), f"<{path}>")
    return apply(source.document, [replace_value(source.document, node, new)])


def _set_quantities(source: InputFile, nodes: list[Element], number: str, unit: str) -> str:
    edits = [replace_value(source.document, node, number) for node in nodes]
    edits += [replace_attribute(source.document, node, "units", unit) for node in nodes]
    return apply(source.document, edits)


def _of_ensembles(source: InputFile, tag: str) -> list[Element]:
    """The elements with a tag in all `<ensemble>`s, also in those of a template."""
    return [
        node for ensemble in find_all(source.document.root, "ensemble") for node in children(ensemble, tag)
    ]


def _system(source: InputFile) -> System:
    if len(source.facts.systems) != 1:
        raise InputError(
            f"{source.name} has {len(source.facts.systems)} systems; this edit is for inputs with one"
        )
    system = source.facts.systems[0]
    if system.element not in children(source.document.root, "system"):
        raise InputError(
            f"{source.name} makes its system from a template; this edit is for inputs with a <system> of their own: "
            "write the system out, or edit the template by hand"
        )
    return system


def _timesteps(source: InputFile) -> list[Element]:
    return list(find_all(_system(source).element, "timestep"))


def _readable_timestep(source: InputFile, edit: str) -> float:
    """The inner step in fs."""
    inner = _system(source).inner_timestep_fs
    if inner is None:
        raise InputError(f"{edit}: {source.name} has no time step; inputs of molecular dynamics have")
    return inner


def _species_of(source: InputFile) -> tuple[tuple[str, ...], str]:
    """The species of an input; all that there are, and i-PI's reason, where it does not accept the input as it is."""
    from ipi.utils.units import Elements

    from ipi_inputs.judge import judge

    try:
        return judge(source.text, source.folder).species, ""
    except InputError as error:
        return tuple(Elements.mass_list), str(error)


def _again(source: InputFile, text: str) -> InputFile:
    return type(source)(source.name, text, source.folder)


def _need(source: InputFile, node: Element | None, what: str) -> Element:
    if node is None:
        raise InputError(f"{source.name} has no {what} to edit")
    return node
