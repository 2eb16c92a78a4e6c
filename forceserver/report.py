"""The block at the start that says who is who, and the one at the end that says what it took. Text only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from forceserver.preflight import lacks_virial
from forceserver.structures import CONSERVATIVE, DIRECT, ForceRole

if TYPE_CHECKING:
    from forceserver.bookkeeping import ServeStatistics
    from forceserver.evaluate import Evaluator
    from forceserver.inputfile import SimulationInput, SocketSpec
    from forceserver.neighbors import NeighborStatistics
    from forceserver.potentials.interface import Capabilities

PHASES = ("waiting", "unpacking", "neighbour lists", "model", "packing")


def describe_start(
    simulations: Sequence[SimulationInput],
    roles: Sequence[Mapping[str, ForceRole]],
    evaluator: Evaluator,
    *,
    keep_net_force: bool,
) -> Iterator[str]:
    """One line for each model, each simulation and each socket, and one for whatever is done to forces."""
    for name, potential in evaluator.models.items():
        yield f"model '{name}': {_describe_model(potential.capabilities)}"
    used: set[ForceRole] = set()
    for simulation, socket_roles in zip(simulations, roles, strict=True):
        if simulation.path is not None:
            yield f"input {simulation.path}"
        for spec in simulation.sockets:
            role = socket_roles[spec.name]
            used.add(role)
            yield f"  socket '{spec.name}' at {spec.address}: {_describe_socket(spec, role)}"
            capabilities = evaluator.models[role.model].capabilities
            if lacks_virial(role, capabilities, evaluator.virial, spec.template):
                yield f"  socket '{spec.name}': no virial comes with its forces; zeros are sent in its place"
    if any(DIRECT in role.kinds for role in used):
        yield f"net force of direct forces: {'kept' if keep_net_force else 'removed (mean over all atoms)'}"
    if any(
        evaluator.models[role.model].capabilities.synthetic_direct for role in used if DIRECT in role.kinds
    ):
        yield "the direct forces are SYNTHETIC: made up for tests, by no network"


def describe_service(served: ServeStatistics, evaluator: Evaluator) -> Iterator[str]:
    """Requests, evaluations, batch sizes, neighbour lists and time per phase."""
    evaluated = evaluator.statistics
    total = sum(served.n_requests.values())
    if not total:
        yield "served nothing"
        return
    by_role = ", ".join(
        f"{count} {role} on '{name}'" for (name, role), count in sorted(served.n_requests.items())
    )
    yield f"served {total} force requests: {by_role}"
    sizes = ", ".join(f"{count} x {size}" for size, count in sorted(evaluated.batch_sizes.items()))
    yield (
        f"evaluated {evaluated.n_structures} structures in {evaluated.n_forward_passes} model calls "
        f"(calls x structures: {sizes}); {served.n_lingered} of {served.n_gatherings} gatherings waited for the linger"
    )
    foreseen = evaluated.foresight
    if evaluated.n_fused_passes or foreseen.n_recalled:
        yield (
            f"fusion: {evaluated.n_fused_passes} model calls gave both kinds of forces at once; {foreseen.n_recalled} requests "
            f"were answered from what they had given; {foreseen.n_mispredicted} structures were evaluated for both in vain"
        )
    if evaluated.n_splits:
        yield f"split {evaluated.n_splits} batches that did not fit in memory"
    lists = _neighbor_statistics(evaluator)
    if lists:
        builds, reuses = sum(each.builds for each in lists), sum(each.reuses for each in lists)
        yield f"neighbour lists: {builds} built, {reuses} reused"
    seconds = {phase: served.clock.seconds.get(phase, 0.0) for phase in PHASES}
    seconds["neighbour lists"] = sum(each.seconds for each in lists)
    seconds["model"] -= seconds["neighbour lists"]
    share = ", ".join(
        f"{phase} {value:.2f} s ({1e3 * value / total:.3f} ms/request)" for phase, value in seconds.items()
    )
    yield f"time: {share}"


def _neighbor_statistics(evaluator: Evaluator) -> list[NeighborStatistics]:
    """Of the models that keep lists."""
    held = (getattr(potential, "neighbor_statistics", None) for potential in evaluator.models.values())
    return [statistics for statistics in held if statistics is not None]


def _describe_model(capabilities: Capabilities) -> str:
    kinds = [
        kind
        for kind, has in ((CONSERVATIVE, capabilities.conservative), (DIRECT, capabilities.direct))
        if has
    ]
    dtype = str(capabilities.dtype).removeprefix("torch.")
    return f"{capabilities.name}; {' and '.join(kinds)} forces; {dtype} on {capabilities.device}"


def _describe_socket(spec: SocketSpec, role: ForceRole) -> str:
    requests = f"{spec.n_requests} structures a step" if spec.n_requests else "structures a step unknown"
    batches = f", batches of {spec.batch_size}" if spec.batch_size > 1 else ""
    return f"{role} forces of model '{role.model}' for {spec.template.describe()}; {requests}{batches}"
