"""Checks of time steps, thermostats of ring polymers, and of what is written for the analysis.

Units: fs for times, 1/cm for wavenumbers, amu for masses, K for temperatures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations_with_replacement
from math import pi, sqrt

from ipi_inputs.document import Element, find, value_of
from ipi_inputs.facts import InputFacts, System
from ipi_inputs.findings import Case, Hit
from ipi_inputs.reading import numbers

# The fastest stretch of a pair of elements in common molecules, /cm; pairs that are not listed are slower.
STRETCHES: Mapping[frozenset[str], float] = {
    frozenset("H"): 4400.0,
    frozenset("FH"): 4000.0,
    frozenset("OH"): 3700.0,
    frozenset("NH"): 3500.0,
    frozenset("CH"): 3150.0,
    frozenset({"S", "H"}): 2650.0,
    frozenset({"Si", "H"}): 2250.0,
    frozenset("CO"): 2350.0,
    frozenset("CN"): 2300.0,
    frozenset("N"): 2350.0,
    frozenset("C"): 2150.0,
}
SLOWEST_GUESS = 1000.0  # /cm, where no pair is listed
PROTIUM_AMU = 1.00794
ISOTOPES = {"D": "H", "T": "H"}

FS_TIMES_WAVENUMBER = 33356.41  # period in fs = this / (wavenumber in /cm)
KELVIN_TO_WAVENUMBER = 0.6950348  # k_B / (h c), /cm per K
STEPS_PER_PERIOD = 8  # fewer than this, and velocity Verlet shifts the frequency by more than 2.5 %
RESONANCE_MARGIN = 0.95  # of half a period
LARGEST_FRICTION_PER_STEP = (
    2.0  # of gamma x time step; 48 beads with 0.5 fs, where a drift was reported, have 3 to 4
)

WITH_A_THERMOSTAT = ("nvt", "nvt-cc", "npt", "nst", "sc", "scnpt")  # ensembles
SHORT_RUN = 1000  # steps, which nobody minds to repeat

ALWAYS_WRITTEN = ("conserved", "potential", "kinetic_md", "temperature")
QUANTUM_WRITTEN = ("kinetic_cv", "kinetic_td", "temperature(nm=0)")
VELOCITIES = ("velocities", "v_centroid", "momenta", "p_centroid")
POSITIONS = ("positions", "x_centroid")


def missing_timestep(case: Case) -> Iterator[Hit]:
    for system in case.dynamics:
        if find(system.element, "motion/dynamics/timestep") is None and not case.is_restart:
            dynamics = find(system.element, "motion/dynamics")
            yield system.element if dynamics is None else dynamics, "no <timestep>"


def missing_thermostat(case: Case) -> Iterator[Hit]:
    for system in case.dynamics:
        held = any(thermostat.mode for thermostat in system.thermostats)
        if system.ensemble in WITH_A_THERMOSTAT and not held:
            dynamics = find(system.element, "motion/dynamics")
            place = system.element if dynamics is None else dynamics
            yield place, f"{system.ensemble.upper()} without a thermostat"


def time_step(case: Case) -> Iterator[Hit]:
    fastest = fastest_stretch(case.masses_amu)
    for system in case.dynamics:
        step = system.inner_timestep_fs
        if fastest and step and step * STEPS_PER_PERIOD > (1 + 1e-3) * FS_TIMES_WAVENUMBER / fastest:
            period = FS_TIMES_WAVENUMBER / fastest
            yield (
                _step(system),
                f"{step:g} fs for a fastest mode near {fastest:.0f} /cm, whose period is {period:.1f} fs",
            )


def outer_step_resonance(case: Case) -> Iterator[Hit]:
    fastest = fastest_stretch(case.masses_amu)
    for system in case.dynamics:
        if not fastest or system.timestep_fs is None or len(system.nmts) < 2:
            continue
        wavenumber = sqrt(fastest**2 + _undamped_ring_mode(system) ** 2)
        half_period = 0.5 * FS_TIMES_WAVENUMBER / wavenumber
        if system.timestep_fs > RESONANCE_MARGIN * half_period:
            yield (
                _step(system),
                f"the outer step, {system.timestep_fs:g} fs, reaches half a period of the fastest mode, "
                f"{half_period:.2f} fs at {wavenumber:.0f} /cm",
            )


def overdamped_pile(case: Case) -> Iterator[Hit]:
    for system in case.dynamics:
        for thermostat in system.thermostats:
            if not thermostat.mode.startswith("pile") or system.n_beads < 2 or not system.temperature_K:
                continue
            friction = 2 * thermostat.pile_lambda * _highest_ring_mode(system)  # /cm
            per_step = 2 * pi * friction / FS_TIMES_WAVENUMBER * (system.inner_timestep_fs or 0)
            if per_step > LARGEST_FRICTION_PER_STEP:
                yield (
                    thermostat.element,
                    f"{system.n_beads} beads: friction x time step = {per_step:.1f} on the fastest ring mode",
                )


def noise_at_another_temperature(case: Case) -> Iterator[Hit]:
    for system in case.dynamics:
        for thermostat in system.thermostats:
            covariance = find(thermostat.element, "C")
            values = numbers(value_of(covariance))
            if (
                covariance is None
                or not values
                or thermostat.mode not in ("nm_gle", "nm_gle_g")
                or not system.temperature_K
            ):
                continue
            expected = system.n_beads * system.temperature_K
            if covariance.get("units") == "kelvin" and abs(values[0] / expected - 1) > 1e-3:
                yield (
                    thermostat.element,
                    f"the centroid block of C holds {values[0]:g} K, {system.n_beads} beads at "
                    f"{system.temperature_K:g} K need {expected:g} K",
                )


def spectrum_stride(case: Case) -> Iterator[Hit]:
    fastest = fastest_stretch(case.masses_amu)
    written = [o for o in case.facts.outputs_of("trajectory") if o.keys & set(VELOCITIES)]
    for system in case.dynamics:
        if not fastest or not written or system.timestep_fs is None:
            continue
        densest = min(written, key=lambda output: output.stride)
        interval = densest.stride * system.timestep_fs
        if interval > 0.5 * FS_TIMES_WAVENUMBER / fastest:
            highest = 0.5 * FS_TIMES_WAVENUMBER / interval
            yield (
                densest.element,
                f"velocities every {interval:g} fs resolve {highest:.0f} /cm, the fastest mode is near {fastest:.0f} /cm",
            )


def missing_columns(case: Case) -> Iterator[Hit]:
    columns = _columns(case.facts)
    missing = [name for name in ALWAYS_WRITTEN if name not in columns]
    if not columns & {"step", "time"}:
        missing.append("step or time")
    if missing and any(case.dynamics):
        yield _output_line(case.facts), f"no column for {', '.join(missing)}"


def missing_quantum_columns(case: Case) -> Iterator[Hit]:
    missing = [name for name in QUANTUM_WRITTEN if name not in _columns(case.facts)]
    if missing and any(system.n_beads > 1 for system in case.dynamics):
        yield _output_line(case.facts), f"a ring polymer without {', '.join(missing)}"


def missing_species_temperatures(case: Case) -> Iterator[Hit]:
    columns = _columns(case.facts)
    missing = [species for species in case.masses_amu if f"temperature({species})" not in columns]
    mixed = any(component.is_direct for system in case.dynamics for component in system.acting)
    if mixed and missing and len(case.masses_amu) > 1:
        yield _output_line(case.facts), f"no temperature of {', '.join(missing)}"


def missing_trajectories(case: Case) -> Iterator[Hit]:
    keys = {key for output in case.facts.outputs_of("trajectory") for key in output.keys}
    for words, what in ((POSITIONS, "positions"), (VELOCITIES, "velocities")):
        if any(case.dynamics) and not keys & set(words):
            yield _output_line(case.facts), f"no trajectory of {what}"


def missing_checkpoint(case: Case) -> Iterator[Hit]:
    checkpoints = case.facts.outputs_of("checkpoint")
    total = case.facts.total_steps or 1000  # i-PI's default
    if case.facts.systems and not checkpoints:
        yield _output_line(case.facts), "no checkpoint"
    elif checkpoints and total > SHORT_RUN and all(output.stride > total for output in checkpoints):
        yield checkpoints[0].element, f"the first checkpoint would come after the {total} steps"


def missing_seed(case: Case) -> Iterator[Hit]:
    if case.facts.seed is None and any(case.dynamics) and not case.is_restart:
        yield case.facts.document.root, "no <seed>"


def fastest_stretch(masses_amu: Mapping[str, float]) -> float | None:
    """The highest vibrational wavenumber to expect, from the species and their masses; None where they are unknown.

    A pair's tabulated wavenumber scales with the reduced mass, so that deuterium and heavier hydrogen count.
    """
    elements = {ISOTOPES.get(species, species) for species in masses_amu}
    candidates = []
    for first, second in combinations_with_replacement(sorted(masses_amu), 2):
        pair = frozenset({ISOTOPES.get(first, first), ISOTOPES.get(second, second)})
        if pair in STRETCHES and (
            pair != frozenset("H") or elements == {"H"}
        ):  # H2 only where nothing else is
            candidates.append(STRETCHES[pair] * _mass_factor(first, second, masses_amu))
    return max(candidates, default=SLOWEST_GUESS) if masses_amu else None


def _mass_factor(first: str, second: str, masses_amu: Mapping[str, float]) -> float:
    def reduced(a: float, b: float) -> float:
        return a * b / (a + b)

    usual = [PROTIUM_AMU if ISOTOPES.get(s, s) == "H" else masses_amu[s] for s in (first, second)]
    return sqrt(reduced(*usual) / reduced(masses_amu[first], masses_amu[second]))


def _highest_ring_mode(system: System) -> float:
    """2 P k_B T/hbar, the fastest mode of the free ring polymer, as a wavenumber."""
    return 2 * system.n_beads * KELVIN_TO_WAVENUMBER * (system.temperature_K or 0.0)


def _undamped_ring_mode(system: System) -> float:
    """The fastest internal mode where nothing damps it; 0 under PILE and its like."""
    damped = any(thermostat.mode.startswith(("pile", "nm_gle")) for thermostat in system.thermostats)
    return 0.0 if damped or system.n_beads < 2 else _highest_ring_mode(system)


def _step(system: System) -> Element:
    timestep = find(system.element, "motion/dynamics/timestep")
    return system.element if timestep is None else timestep


def _columns(facts: InputFacts) -> set[str]:
    """Columns by name, and by name(argument) where they have one."""
    items = [
        re.sub(r"\{[^}]*\}|\s", "", item)
        for output in facts.outputs_of("properties")
        for item in output.items
    ]
    return {*items, *(item.partition("(")[0] for item in items if "(" not in item)}


def _output_line(facts: InputFacts) -> int:
    output = find(facts.document.root, "output")
    return output.line if output is not None else facts.document.root.line
