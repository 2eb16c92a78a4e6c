"""The facts of a run that its outputs do not tell: ensemble, thermostat, masses, beads, force components.

Units: fs for times of the integrator, K, amu. Everything is read with i-PI's own input classes, so that defaults and
units are i-PI's; nothing is evaluated and no file is written.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.series import FloatArray
from analysis.sources import choose_system, parse_input, refusals_named
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
    noncanonical_modes: frozenset[int] = frozenset()  # normal modes that it holds off k_B T by design
    pile_lambda: float = 1.0  # of PILE: friction of internal modes over 2 omega_k

    @property
    def is_global(self) -> bool:
        return self.mode in GLOBAL_THERMOSTATS

    @property
    def is_pile(self) -> bool:
        """Whether each internal mode of a ring polymer has a friction of its own, `pile_lambda` times twice its frequency."""
        return self.mode in ("pile_l", "pile_g")

    @property
    def damps_internal_modes(self) -> bool:
        """Whether each internal mode forgets about as fast as it turns: PILE, and colored noise on normal modes."""
        return self.is_pile or self.mode.startswith("nm_gle")

    @property
    def friction_is_known(self) -> bool:
        """Not that of colored noise, nor of several thermostats at once."""
        return self.mode not in ("gle", "nm_gle", "nm_gle_g", "multi")

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
    timestep_fs: float  # of the outermost level; 0 for motions without one
    splitting: str  # obabo or baoab; "" for motions without a thermostat
    nmts: tuple[int, ...]  # per level, outermost first; () without multiple time stepping
    n_beads: int
    fixcom: bool  # False where atoms are fixed: i-PI overrides it
    fixed_dof: tuple[int, ...]  # 3 times the atom plus 0, 1, 2 for x, y, z
    outputs_start: str  # what the names of its outputs start with: "simulation.", "data/a_run."
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

    @property
    def noncanonical_modes(self) -> frozenset[int]:
        """Ring-polymer normal modes that the thermostat holds off k_B T by design; with one bead, mode 0 is all."""
        return self.thermostat.noncanonical_modes if self.thermostat is not None else frozenset()

    def role_of(self, component: int) -> str:
        return self.components[component].role if component < len(self.components) else ""


def read_facts(path: Path, prefix: str | None = None) -> RunFacts:
    """Read an i-PI input or a RESTART file, XML or JSON.

    Args:
        path: the input.
        prefix: of the outputs of the system that is meant; None: there is only one.

    Raises:
        UnreadableRun: not an i-PI input, i-PI itself rejects it, or it does not tell which system is meant.
    """
    with refusals_named(path):
        simulation = parse_input(path)
        start, system = choose_system(simulation, path, prefix)
        return _facts(simulation, start, system, path.parent)


def _facts(simulation: Any, start: str, system: Any, directory: Path) -> RunFacts:
    output = simulation.output
    motion = _dynamics_among(system.motion)
    mode = str(motion.mode.fetch())
    dynamics = motion.dynamics if mode == "dynamics" else None
    temperature = _in_unit(system.ensemble.temperature.fetch(), "temperature", "kelvin")
    pressure = _in_unit(system.ensemble.pressure.fetch(), "pressure", "gigapascal")
    ensemble = str(dynamics.mode.fetch()) if dynamics is not None else mode
    outer_step = float(dynamics.timestep.fetch()) if dynamics is not None else 0.0
    fixed_dof = _fixed_dof(motion)
    n_beads = _n_beads(system)
    return RunFacts(
        ensemble=ensemble,
        temperature_K=temperature if temperature > 0 else None,
        pressure_GPa=pressure if ensemble in ("npt", "nst", "scnpt") else None,
        thermostat=_thermostat(dynamics.thermostat, n_beads)
        if dynamics is not None and ensemble != "nve"
        else None,
        timestep_fs=_in_unit(outer_step, "time", "femtosecond"),
        splitting=str(dynamics.splitting.fetch()) if dynamics is not None else "",
        nmts=tuple(int(level) for level in dynamics.nmts.fetch()) if dynamics is not None else (),
        n_beads=n_beads,
        fixcom=bool(motion.fixcom.fetch()) and not fixed_dof,
        fixed_dof=fixed_dof,
        outputs_start=start,
        float32_fft=bool(system.normal_modes.fft_float32.fetch()),
        components=_components(simulation, system),
        outputs=tuple(_outputs(output)),
        atoms=_atoms(system, directory),
    )


def _dynamics_among(motion: Any) -> Any:
    """The dynamics of a `multi` motion (atoms that swap beside it, say), the first of its motions where it has none."""
    if str(motion.mode.fetch()) != "multi":
        return motion
    members = [own for name, own in motion.extra if name == "motion"]
    return next((own for own in members if str(own.mode.fetch()) == "dynamics"), (members or [motion])[0])


def _in_unit(value: float, dimension: str, unit: str) -> float:
    return float(value) / to_internal(dimension, unit)


def _n_beads(system: Any) -> int:
    declared = int(system.initialize.nbeads.fetch())
    return declared if declared > 0 else max(int(system.beads.nbeads.fetch()), 1)


def _fixed_dof(motion: Any) -> tuple[int, ...]:
    whole = (3 * int(atom) + axis for atom in motion.fixatoms.fetch() for axis in range(3))
    return tuple(sorted({*whole, *(int(own) for own in motion.fixatoms_dof.fetch())}))


def _thermostat(field: Any, n_beads: int) -> Thermostat | None:
    mode = str(field.mode.fetch())
    if not mode:
        return None
    tau = 0.0 if mode == "multi" else float(field.tau.fetch())
    return Thermostat(
        mode=mode,
        tau_fs=_in_unit(tau, "time", "femtosecond"),
        noncanonical_modes=_noncanonical_modes(field, n_beads),
        pile_lambda=float(field.pile_lambda.fetch()),
    )


def _noncanonical_modes(field: Any, n_beads: int) -> frozenset[int]:
    """Modes with a covariance <C> that is no multiple of the unit matrix, and a centroid with a temperature of its own.

    A multiple of the unit matrix is classical equilibrium, be its temperature right or wrong: that is judged. `gle`
    has one matrix for all beads, `nm_gle` one for each normal mode.
    """
    mode = str(field.mode.fetch())
    if mode == "multi":
        return frozenset().union(*(_noncanonical_modes(own, n_beads) for _, own in field.extra))
    if mode in ("pile_l", "pile_g"):
        return frozenset({0} if float(field.pile_centroid_t.fetch()) > 0.0 else ())
    covariance = np.asarray(field.C.fetch(), dtype=float)
    if not mode.endswith(("gle", "gle_g")) or covariance.ndim < 2:
        return frozenset()
    blocks = covariance.reshape(-1, *covariance.shape[-2:])
    off = [
        not np.allclose(own, own[0, 0] * np.eye(len(own)), rtol=0.0, atol=1e-3 * own[0, 0]) for own in blocks
    ]
    return frozenset(np.flatnonzero(off if len(off) == n_beads else np.full(n_beads, any(off))).tolist())


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
