"""Checks of how forces are combined, and of what direct forces do to what: levels, contraction, thermostats, optimisers.

Units: fs. Levels of multiple time stepping count from 0, the outer one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from math import prod

from ipi_inputs.document import Element, find
from ipi_inputs.facts import Component, System, Thermostat
from ipi_inputs.findings import Case, Hit

TOLERANCE = 1e-8
LONGEST_SAFE_TAU_FS = 50.0  # Langevin at 100 fs left 1.4 to 4.2 K in water, at 10 fs 0.1 to 0.4 K
LOCAL_THERMOSTATS = ("langevin", "ffl", "cl", "pile_l")
GLOBAL_THERMOSTATS = ("svr", "pile_g", "nm_gle_g")
COLORED_THERMOSTATS = ("gle", "nm_gle", "nm_gle_g")
ADAPTIVE_THERMOSTATS = ("cl",)  # their tau is not the only friction
ENERGY_CONSERVING = ("nve", "")
EXTERNAL_POTENTIALS = ("harmonic", "doublewell", "doubledoublewell", "spherical_LJ")  # i-PI's own


def mts_levels(case: Case) -> Iterator[Hit]:
    for system in case.facts.systems:
        for component in system.components:
            if len(component.mts_weights) != len(system.nmts):
                yield (
                    component.element,
                    f"force '{component.forcefield}' has {len(component.mts_weights)} mts_weights, "
                    f"nmts has {len(system.nmts)} levels",
                )


def mts_outer_iterations(case: Case) -> Iterator[Hit]:
    for system in case.dynamics:
        if len(system.nmts) > 1 and system.nmts[0] != 1:
            yield (
                _levels(system),
                f"nmts begins with {system.nmts[0]}, so the time step holds {system.nmts[0]} outer steps",
            )


def mts_idle_level(case: Case) -> Iterator[Hit]:
    for system in case.dynamics:
        for level in range(len(system.nmts)):
            consistent = all(len(component.mts_weights) == len(system.nmts) for component in system.acting)
            if consistent and system.acting and not any(c.acts_at(level) for c in system.acting):
                yield _levels(system), f"no force acts at level {level} of nmts {list(system.nmts)}"


def mts_roles(case: Case) -> Iterator[Hit]:
    """Conservative forces in inner steps that direct ones of the same model were made for."""
    for system in case.dynamics:
        deepest: defaultdict[str, int] = defaultdict(lambda: -1)  # level of the direct forces, by model
        for component, model in _of_models(system, "direct"):
            deepest[model] = max(deepest[model], _deepest_level(system, component))
        for component, model in _of_models(system, "conservative"):
            level = _deepest_level(system, component)
            n_times = prod(system.nmts[: level + 1])
            if n_times > 1 and level >= deepest[model] >= 0:
                yield (
                    component.element,
                    f"conservative forces '{component.forcefield}' act {n_times} times in an outer step, at level {level}; "
                    f"direct ones go no deeper than level {deepest[model]}",
                )


def not_conservative_total(case: Case) -> Iterator[Hit]:
    for system in case.facts.systems:
        totals: defaultdict[str, float] = defaultdict(float)
        for component in system.acting:
            if component.forces:
                totals[component.forces] += component.total_weight
        if "conservative" in totals and _leaves_direct_forces(totals):
            sums = ", ".join(f"{kind} {total:g}" for kind, total in totals.items())
            yield system.acting[0].element, f"after an outer step the weights sum to: {sums}"


def contraction(case: Case) -> Iterator[Hit]:
    for system in case.facts.systems:
        for component in system.components:
            if component.n_beads > system.n_beads:
                yield (
                    component.element,
                    f"force '{component.forcefield}' wants {component.n_beads} beads, the ring polymer has {system.n_beads}",
                )


def contraction_without_counterpart(case: Case) -> Iterator[Hit]:
    for system in case.facts.systems:
        contracted = [c for c in system.acting if 0 < c.n_beads < system.n_beads]
        if contracted and all(0 < c.n_beads < system.n_beads for c in system.acting):
            yield contracted[0].element, f"no force acts on all {system.n_beads} beads"


def unthermostatted(case: Case) -> Iterator[Hit]:
    for system, component in _direct_systems(case):
        if system.ensemble in ENERGY_CONSERVING or not any(t.mode for t in system.thermostats):
            yield (
                component.element,
                f"{component.forces} forces in {system.ensemble.upper()} without a thermostat",
            )


def weak_thermostat(case: Case) -> Iterator[Hit]:
    for _system, component, thermostat in _direct_thermostats(case):
        tau = thermostat.tau_fs
        fixed = thermostat.mode in LOCAL_THERMOSTATS and thermostat.mode not in ADAPTIVE_THERMOSTATS
        if fixed and tau is not None and tau > LONGEST_SAFE_TAU_FS:
            yield (
                thermostat.element,
                f"{component.forces} forces under '{thermostat.mode}' with tau = {tau:g} fs",
            )


def global_thermostat(case: Case) -> Iterator[Hit]:
    for _system, component, thermostat in _direct_thermostats(case):
        if thermostat.mode in GLOBAL_THERMOSTATS:
            yield (
                thermostat.element,
                f"{component.forces} forces under the global thermostat '{thermostat.mode}'",
            )


def colored_thermostat(case: Case) -> Iterator[Hit]:
    for _system, component, thermostat in _direct_thermostats(case):
        if thermostat.mode in COLORED_THERMOSTATS:
            yield thermostat.element, f"{component.forces} forces under '{thermostat.mode}'"


def barostat(case: Case) -> Iterator[Hit]:
    for system, component in _direct_systems(case):
        if system.barostat not in ("", "dummy"):
            yield component.element, f"{component.forces} forces drive the '{system.barostat}' barostat"


def energy_methods(case: Case) -> Iterator[Hit]:
    for system in case.facts.systems:
        component = _net_direct(system)
        if component and system.motion not in ("dynamics", "dummy", "replay", "multi", ""):
            method = system.optimizer if system.motion == "minimize" else system.motion
            yield component.element, f"{component.forces} forces in '{method}'"


def kept_net_force(case: Case) -> Iterator[Hit]:
    if not case.keeps_net_force:
        return
    for system in case.dynamics:
        for component in system.acting:
            if system.fix_com and component.is_direct:
                yield component.element, f"force '{component.forcefield}' keeps its net force, fixcom is on"


def external_potential(case: Case) -> Iterator[Hit]:
    """Force fields that are not invariant under translation, as far as their names tell."""
    for system in case.dynamics:
        for component in system.acting:
            name = component.socket.potential if component.socket else ""
            if system.fix_com and name in EXTERNAL_POTENTIALS:
                yield component.element, f"the external potential '{name}' with fixcom on"


def _levels(system: System) -> Element:
    nmts = find(system.element, "motion/dynamics/nmts")
    return system.element if nmts is None else nmts


def _of_models(system: System, forces: str) -> Iterator[tuple[Component, str]]:
    """The components that push atoms with forces of one kind, each with its model."""
    for component in system.acting:
        if component.socket and component.forces == forces:
            yield component, component.socket.model


def _deepest_level(system: System, component: Component) -> int:
    """The innermost level at which a component acts; -1 where it acts at none."""
    return max((level for level in range(len(system.nmts)) if component.acts_at(level)), default=-1)


def _leaves_direct_forces(totals: dict[str, float]) -> bool:
    others = [total for kind, total in totals.items() if kind != "conservative"]
    return any(abs(total) > TOLERANCE for total in others) or (bool(others) and totals["conservative"] == 0)


def _net_direct(system: System) -> Component | None:
    """The component that leaves direct forces behind after an outer step; None where none does."""
    totals: defaultdict[str, float] = defaultdict(float)
    for component in system.acting:
        totals[component.forcefield] += component.total_weight
    for component in system.acting:
        if component.is_direct and abs(totals[component.forcefield]) > TOLERANCE:
            return component
    return None


def _direct_systems(case: Case) -> Iterator[tuple[System, Component]]:
    for system in case.dynamics:
        component = _net_direct(system)
        if component:
            yield system, component


def _direct_thermostats(case: Case) -> Iterator[tuple[System, Component, Thermostat]]:
    for system, component in _direct_systems(case):
        for thermostat in system.thermostats:
            yield system, component, thermostat
