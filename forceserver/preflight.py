"""Refusals before i-PI moves: what the sockets want against what the models can do.

Every one of these would otherwise be found hours later, or never.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from forceserver.errors import UsageError
from forceserver.inputfile import SimulationInput, SocketSpec
from forceserver.roles import parse_role
from forceserver.structures import CONSERVATIVE, DIRECT, ForceRole

if TYPE_CHECKING:
    from forceserver.evaluate import VirialSource
    from forceserver.exchange import Template
    from forceserver.potentials.interface import Capabilities, Potential


def check_simulation(
    simulation: SimulationInput, models: Mapping[str, Potential], default: ForceRole, virial: VirialSource
) -> dict[str, ForceRole]:
    """Check every socket of a simulation against the models.

    Returns:
        The role of each socket by its name, as far as the input says it.

    Raises:
        UsageError: the first thing that cannot work.
    """
    roles = {}
    for spec in simulation.sockets:
        roles[spec.name] = parse_role(spec.parameters, default, frozenset(models))
        check_role(roles[spec.name], spec, models, virial)
    return roles


def check_role(
    role: ForceRole, spec: SocketSpec, models: Mapping[str, Potential], virial: VirialSource = "own"
) -> None:
    """Refuse a role that its model cannot play.

    Raises:
        UsageError: the model lacks the forces, the species or the virial.
    """
    capabilities = models[role.model].capabilities
    _check_kinds(role, spec, capabilities)
    _check_species(spec, capabilities)
    _check_virial(role, spec, capabilities, virial)


def lacks_virial(
    role: ForceRole, capabilities: Capabilities, virial: VirialSource, template: Template
) -> bool:
    """Whether results in this role come without a virial."""
    stands_in = virial == "conservative"  # for that of the direct forces
    lacks_volume = capabilities.direct_virial_wants_volume and not template.pbc.all()
    has_own = virial == "own" and capabilities.direct_virial and not lacks_volume
    if DIRECT in role.kinds and not stands_in and not has_own:
        return True
    return (CONSERVATIVE in role.kinds or stands_in) and not capabilities.conservative_virial


def _check_kinds(role: ForceRole, spec: SocketSpec, capabilities: Capabilities) -> None:
    has = {CONSERVATIVE: capabilities.conservative, DIRECT: capabilities.direct}
    for kind in sorted(role.kinds):
        if not has[kind]:
            remedy = (
                "pair it with one that predicts forces: --direct MODEL2"
                if kind == DIRECT
                else "use {forces: direct} there"
            )
            raise UsageError(
                f"socket '{spec.name}' wants {kind} forces, which {capabilities.name} does not have; {remedy}"
            )


def _check_species(spec: SocketSpec, capabilities: Capabilities) -> None:
    if capabilities.elements is None:
        return
    wanted = {int(number) for number in np.unique(spec.template.atomic_numbers)}
    unknown = wanted - capabilities.elements
    if unknown:
        raise UsageError(
            f"socket '{spec.name}' has {_symbols(unknown)}, which {capabilities.name} does not know; "
            f"it knows {_symbols(capabilities.elements)}"
        )


def _check_virial(
    role: ForceRole, spec: SocketSpec, capabilities: Capabilities, virial: VirialSource
) -> None:
    if not spec.virial_readers or not lacks_virial(role, capabilities, virial, spec.template):
        return
    serve_other = "serve the conservative virial with them (--virial conservative), or "
    remedy = (
        serve_other if DIRECT in role.kinds and capabilities.conservative_virial else ""
    ) + "take that out of the input"
    raise UsageError(
        f"socket '{spec.name}' wants {role} forces, for which {capabilities.name} has no virial, but {spec.virial_readers[0]} "
        f"reads it; {remedy}"
    )


def _symbols(numbers: set[int] | frozenset[int]) -> str:
    from ase.data import chemical_symbols

    return ", ".join(chemical_symbols[number] for number in sorted(numbers))
