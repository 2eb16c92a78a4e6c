"""The facts of a run that its outputs do not tell: ensemble, thermostat, masses, beads, force components.

Units: fs for times of the integrator, K, amu. Everything is read with i-PI's own input classes, so that defaults and
units are i-PI's; nothing is evaluated and no file is written.
"""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.errors import UnreadableRun
from analysis.series import FloatArray
from analysis.units import to_internal

LOCAL_THERMOSTATS = frozenset(
    {"langevin", "pile_l", "gle", "nm_gle", "cl", "ffl"}
)  # act on every degree of freedom
GLOBAL_THERMOSTATS = frozenset(
    {"svr", "pile_g", "nm_gle_g"}
)  # one number for all of (the centroid of) the system


@dataclass(frozen=True)
class Thermostat:
    """What keeps the temperature."""

    mode: str  # i-PI's word: langevin, svr, pile_l, ...
    tau_fs: float  # 0 where the mode has no such number

    @property
    def is_global(self) -> bool:
        return self.mode in GLOBAL_THERMOSTATS

    def __str__(self) -> str:
        return f"{self.mode}, tau {self.tau_fs:g} fs" if self.tau_fs else self.mode


@dataclass(frozen=True)
class ForceComponent:
    """One `<force>`: which forcefield, on how many beads, at which level of multiple time stepping."""

    name: str
    forcefield: str
    role: str  # conservative, direct, blended, or "" where the forcefield does not say
    n_beads: int  # 0: all
    weight: float
    mts_weights: tuple[float, ...]


@dataclass(frozen=True)
class OutputSpec:
    """One `<properties>` or `<trajectory>` of the input."""

    kind: str  # properties or trajectory
    filename: str  # without the prefix
    contents: tuple[str, ...]  # as written: temperature(O){kelvin}
    stride: int


@dataclass(frozen=True, eq=False)
class Atoms:
    """Who takes part."""

    labels: tuple[str, ...]  # (n_atoms,)
    masses: FloatArray  # (n_atoms,) amu

    @property
    def n_atoms(self) -> int:
        return len(self.labels)

    @property
    def species(self) -> tuple[str, ...]:
        """Labels that occur, in order of appearance."""
        return tuple(dict.fromkeys(self.labels))

    def where(self, label: str) -> FloatArray:
        """Mask of a species, (n_atoms,) bool; of everything for an empty label."""
        return np.array([not label or label == own for own in self.labels])


@dataclass(frozen=True, eq=False)
class RunFacts:
    """What an i-PI input says about its run."""

    ensemble: str  # nve, nvt, npt, ...; for other motions their mode (minimize, vibrations, ...)
    temperature_K: float | None  # None where the input sets none
    pressure_GPa: float | None
    thermostat: Thermostat | None
    timestep_fs: float  # of the outermost level
    nmts: tuple[int, ...]  # per level, outermost first; () without multiple time stepping
    n_beads: int
    fixcom: bool
    n_fixed_atoms: int
    prefix: str
    float32_fft: bool
    components: tuple[ForceComponent, ...]
    outputs: tuple[OutputSpec, ...]
    atoms: Atoms | None  # None where the structure could not be read

    @property
    def inner_steps(self) -> int:
        """M: innermost steps per outer step."""
        return int(np.prod(self.nmts)) if self.nmts else 1

    @property
    def is_constant_energy(self) -> bool:
        return self.ensemble == "nve"

    def role_of(self, component: int) -> str:
        return self.components[component].role if component < len(self.components) else ""


def read_facts(path: Path) -> RunFacts:
    """Read an i-PI input or a RESTART file, XML or JSON.

    Raises:
        UnreadableRun: not an i-PI input, or i-PI itself rejects it.
    """
    from ipi.inputs.simulation import InputSimulation
    from ipi.utils.io.inputs.io_xml import xml_parse_string

    try:
        text = path.read_text()
        if text.lstrip().startswith("{"):
            from ipi.utils.io.inputs.io_json import json_parse_string

            tree = json_parse_string(text)
        else:
            tree = xml_parse_string(text)
        simulation = InputSimulation()
        with contextlib.redirect_stdout(io.StringIO()):  # i-PI reports its progress on stdout
            simulation.parse(tree.fields[0][1])
            return _facts(simulation, path.parent)
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


def _facts(simulation: Any, directory: Path) -> RunFacts:
    systems = [child for name, child in simulation.extra if name == "system"]
    if len(systems) != 1:
        raise ValueError(f"wanted one <system>, got {len(systems)}; analyse systems one at a time")
    system = systems[0]
    output = simulation.output
    motion = system.motion
    mode = str(motion.mode.fetch())
    dynamics = motion.dynamics if mode == "dynamics" else None
    temperature = _in_unit(system.ensemble.temperature.fetch(), "temperature", "kelvin")
    pressure = _in_unit(system.ensemble.pressure.fetch(), "pressure", "gigapascal")
    ensemble = str(dynamics.mode.fetch()) if dynamics is not None else mode
    outer_step = float(dynamics.timestep.fetch()) if dynamics is not None else 0.0
    return RunFacts(
        ensemble=ensemble,
        temperature_K=temperature if temperature > 0 else None,
        pressure_GPa=pressure if ensemble in ("npt", "nst", "scnpt") else None,
        thermostat=_thermostat(dynamics.thermostat) if dynamics is not None and ensemble != "nve" else None,
        timestep_fs=_in_unit(outer_step, "time", "femtosecond"),
        nmts=tuple(int(level) for level in dynamics.nmts.fetch()) if dynamics is not None else (),
        n_beads=_n_beads(system),
        fixcom=bool(motion.fixcom.fetch()),
        n_fixed_atoms=len(motion.fixatoms.fetch()) + len(motion.fixatoms_dof.fetch()) // 3,
        prefix=str(output.prefix.fetch()),
        float32_fft=bool(system.normal_modes.fft_float32.fetch()),
        components=_components(simulation, system),
        outputs=tuple(_outputs(output)),
        atoms=_atoms(system, directory),
    )


def _in_unit(value: float, dimension: str, unit: str) -> float:
    return float(value) / to_internal(dimension, unit)


def _n_beads(system: Any) -> int:
    declared = int(system.initialize.nbeads.fetch())
    return declared if declared > 0 else max(int(system.beads.nbeads.fetch()), 1)


def _thermostat(field: Any) -> Thermostat | None:
    mode = str(field.mode.fetch())
    if not mode:
        return None
    tau = 0.0 if mode == "multiple" else float(field.tau.fetch())
    return Thermostat(mode=mode, tau_fs=_in_unit(tau, "time", "femtosecond"))


def _components(simulation: Any, system: Any) -> tuple[ForceComponent, ...]:
    roles = {
        str(forcefield.name.fetch()): _role(forcefield)
        for name, forcefield in simulation.extra
        if name.startswith("ff")
    }
    found = []
    for _, force in system.forces.extra:
        forcefield = str(force.forcefield.fetch())
        found.append(
            ForceComponent(
                name=str(force.name.fetch()),
                forcefield=forcefield,
                role=roles.get(forcefield, ""),
                n_beads=int(force.nbeads.fetch()),
                weight=float(force.weight.fetch()),
                mts_weights=tuple(float(weight) for weight in force.mts_weights.fetch()),
            )
        )
    return tuple(found)


def _role(forcefield: Any) -> str:
    """The role that a socket asks for in its <parameters>, where it asks for one."""
    parameters = getattr(forcefield, "parameters", None)
    values = parameters.fetch() if parameters is not None else {}
    return str(values.get("forces", "")).strip() if isinstance(values, dict) else ""


def _outputs(output: Any) -> list[OutputSpec]:
    found = []
    for kind, entry in output.extra:
        if kind not in ("properties", "trajectory"):
            continue
        contents = entry.fetch().outlist if kind == "properties" else [entry.fetch().what]
        found.append(
            OutputSpec(
                kind=kind,
                filename=str(entry.filename.fetch()),
                contents=tuple(re.sub(r"\s+", "", str(item)) for item in contents),
                stride=int(entry.stride.fetch()),
            )
        )
    return found


def _atoms(system: Any, directory: Path) -> Atoms | None:
    """Labels and masses, by i-PI's own initialiser; None where a file that it needs is gone."""
    from ipi.engine.beads import Beads
    from ipi.engine.cell import Cell

    class Stage:
        """The part of i-PI's System that stage 1 of its initialiser fills."""

        beads: Any = system.beads.fetch()
        cell: Any = Cell()

    initializer = system.initialize.fetch()
    needless = ("velocities", "momenta", "thermostat", "gle", "cell")
    initializer.queue = [(key, value) for key, value in initializer.queue if key not in needless]
    stage = Stage()
    stage.beads = stage.beads if stage.beads.natoms else Beads(0, 0)
    try:
        with contextlib.chdir(directory):
            initializer.init_stage1(stage)
    except Exception:  # i-PI raises whatever its readers raise; the labels can still come from a trajectory
        if not stage.beads.natoms:
            return None
    masses = np.array(stage.beads.m, dtype=float) / to_internal("mass", "dalton")
    return Atoms(labels=tuple(str(name) for name in stage.beads.names), masses=masses)
