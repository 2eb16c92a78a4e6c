"""From what a user asked for to a running server and its report: load, check, introduce, serve, account."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from forceserver.errors import UsageError, suggest
from forceserver.inputfile import SimulationInput, SocketSpec, read_input
from forceserver.structures import DEFAULT_MODEL
from forceserver.transport import parse_address

if TYPE_CHECKING:
    from forceserver.evaluate import VirialSource
    from forceserver.potentials import DtypeName
    from forceserver.potentials.interface import Potential
    from forceserver.server import ServeOptions

log = logging.getLogger(__name__)

IPI_SOCKETS_PREFIX = "/tmp/ipi_"  # i-PI's default


@dataclass(frozen=True)
class ModelRequest:
    """Which models to hold, and how to treat their forces."""

    model: str
    also: Mapping[str, str] = field(default_factory=dict)  # {name: MODEL}
    direct: str | None = None  # a second model for direct forces
    device: str = "cpu"
    dtype: str | None = None
    threads: int | None = None  # of torch on the CPU; None: torch's own choice
    keep_net_force: bool = False
    virial: str = "own"
    fusion: bool = True
    report: Path | None = None  # where to write what was counted, as JSON


def simulations_from(
    inputs: Sequence[Path],
    address: str | None,
    template: Path | None,
    sockets_prefix: str | None,
    names: Sequence[str] = (),
) -> list[SimulationInput]:
    """The simulations to serve: from i-PI inputs, or from a bare address and a template.

    Args:
        inputs: i-PI inputs.
        address: where i-PI listens, in place of an input.
        template: the structure file that belongs to the address.
        sockets_prefix: in place of the inputs' own.
        names: of the `<ffsocket>`s to serve; none: all. Other programs may serve the rest.

    Raises:
        UsageError: neither or both are given, or one of them cannot be read.
    """
    if inputs and (address or template):
        raise UsageError("-i says all that -a and -t would say; give one or the other")
    if inputs:
        simulations = [_chosen(read_input(path, sockets_prefix=sockets_prefix), names) for path in inputs]
        _check_addresses([spec for simulation in simulations for spec in simulation.sockets])
        return simulations
    if not address:
        raise UsageError("which i-PI? Give its input with -i INPUT.xml, or -a ADDRESS with -t TEMPLATE")
    if not template:
        raise UsageError(
            f"-a {address} needs -t TEMPLATE, a structure file: i-PI sends positions without species"
        )
    from forceserver.species import read_template

    prefix = IPI_SOCKETS_PREFIX if sockets_prefix is None else sockets_prefix
    spec = SocketSpec(
        name=address,
        address=parse_address(address, prefix),
        parameters={},
        batch_size=1,
        n_requests=None,
        template=read_template(template),
    )
    return [SimulationInput(None, (spec,))]


def _chosen(simulation: SimulationInput, names: Sequence[str]) -> SimulationInput:
    """The simulation with those of its sockets that are named."""
    known = [spec.name for spec in simulation.sockets]
    for name in names:
        if name not in known:
            raise UsageError(
                f"--socket {name}: {simulation.path} has the <ffsocket>s {', '.join(known)}{suggest(name, known)}"
            )
    chosen = tuple(spec for spec in simulation.sockets if not names or spec.name in names)
    return SimulationInput(simulation.path, chosen)


def _check_addresses(specs: Sequence[SocketSpec]) -> None:
    """Two sockets at one address are one i-PI too many."""
    for address, count in Counter(spec.address for spec in specs).items():
        if count > 1:
            raise UsageError(
                f"{count} sockets have the address {address}; give each its own, and each input once"
            )


def load_models(request: ModelRequest) -> dict[str, Potential]:
    """The models by name; the first is `default`.

    Raises:
        UsageError: one cannot be loaded, or a name is taken.
    """
    import torch

    from forceserver.parallel import keep_heaps
    from forceserver.potentials import load_potential

    if DEFAULT_MODEL in request.also:
        raise UsageError(f"--also {DEFAULT_MODEL}=...: this name belongs to the first model; choose another")
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    keep_heaps(torch.get_num_threads())
    dtype = cast("DtypeName | None", request.dtype)
    models = {
        DEFAULT_MODEL: load_potential(
            request.model, device=request.device, dtype=dtype, direct_spec=request.direct
        )
    }
    for name, model in request.also.items():
        models[name] = load_potential(model, device=request.device, dtype=dtype)
    return models


def serve(simulations: Sequence[SimulationInput], request: ModelRequest, options: ServeOptions) -> None:
    """Hold the models and serve the simulations; log who is who before, and what it took after.

    Raises:
        UsageError: something asked for cannot be had; found before i-PI is dialled.
        ForceServerError: see `Server.run`.
    """
    from forceserver.accounts import claim_report, keep_accounts
    from forceserver.evaluate import Evaluator
    from forceserver.preflight import check_simulation
    from forceserver.report import describe_service, describe_start
    from forceserver.server import Server
    from forceserver.signals import stop_on_signals

    claim_report(request.report)
    with stop_on_signals() as stop:
        models = load_models(request)
        virial = cast("VirialSource", request.virial)
        evaluator = Evaluator(
            models, keep_net_force=request.keep_net_force, virial=virial, fusion=request.fusion
        )
        roles = [
            check_simulation(simulation, models, options.default_role, virial) for simulation in simulations
        ]
        for line in describe_start(simulations, roles, evaluator, keep_net_force=request.keep_net_force):
            log.info(line)
        server = Server(simulations, evaluator, options, stop)
        try:
            with keep_accounts(request.report, server.statistics, evaluator):
                server.run()
        finally:
            for line in describe_service(server.statistics, evaluator):
                log.info(line)
    if stop.reason:
        log.warning("%s: stopped between two evaluations; i-PI waits for another server", stop.reason)
        sys.exit(128 + stop.signal_number)
