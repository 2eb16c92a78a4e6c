"""What is known about a run when a cause is sought: facts of its input and numbers that were measured.

Units: fs for steps and periods, eV/A for forces, meV/ps/atom for powers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.bonds import BrokenBond
from analysis.errors import AnalysisError
from analysis.inputfile import ForceComponent, RunFacts
from analysis.run import Run
from analysis.statistics import Estimate
from analysis.units import LIGHT_CM_PER_FS, boltzmann, spring_wavenumber

HYDROGEN_MASSES = (0.9, 3.5)  # amu, anything that vibrates like hydrogen or its isotopes
STRETCH_INVERSECM = 3700.0  # the fastest vibration with hydrogen of 1 amu
HEAVY_INVERSECM = 2000.0  # without hydrogen: C-O, C-N, N-N
HEAVY_MASSES = (11.5, 16.5)  # amu, of C, N and O
SLOW_INVERSECM = 1000.0  # of everything else
CLEAR_SIGMAS = 3.0  # below it a cause is not said to be there
NET_FORCE_TOLERANCE = 1e-4  # eV/A per atom; six digits of each force round to less


@dataclass(frozen=True)
class Evidence:
    """What the causes in `rules` look at."""

    acts_directly: bool  # direct or blended forces move the atoms, uncorrected
    corrects_directly: bool  # direct forces inside, corrected by multiple time stepping
    forces_stated: bool  # every component that moves the atoms says which forces it asks for
    inner_steps: int
    inner_step_fs: float
    outer_step_fs: float  # between two impulses of the slowest force
    half_period_fs: float  # of the fastest vibration that the species suggest
    outer_half_period_fs: float  # the same, with the springs of the modes that the slowest force acts on
    has_hydrogen: bool
    thermostat: str
    has_thermostat: bool
    has_global_thermostat: bool
    tau_fs: float
    target_K: float
    n_beads: int
    has_quantum_noise: bool  # internal modes of a ring polymer held off k_B T by a quantum <C>
    splitting: str  # of Langevin dynamics: obabo, baoab; "" without an input
    n_seams: int
    fixcom: bool
    float32_fft: bool
    energy_resolution_eV: float  # 0: none seen
    net_force_per_atom: float  # eV/A; 0 where forces were not written
    broken_bonds: tuple[BrokenBond, ...] = ()  # in the order of breaking
    drift: Estimate | None = None
    injected: Estimate | None = None
    mismatch_from_modes: Estimate | None = None

    @property
    def near_resonance(self) -> bool:
        return self.inner_steps > 1 and self.outer_step_fs > 0.95 * self.outer_half_period_fs

    @property
    def modes_are_at_the_target(self) -> bool:
        """As far as is known: their temperature explains nothing of a mismatch of kinetic energies."""
        accounted = self.mismatch_from_modes
        return accounted is not None and abs(accounted.sigmas_from(0.0)) < CLEAR_SIGMAS

    @property
    def has_net_force(self) -> bool:
        return self.fixcom and self.net_force_per_atom > NET_FORCE_TOLERANCE

    @property
    def expected_heating_K(self) -> float:  # noqa: N802 (units keep their case)
        """T_kin - T = P tau/(3 N k_B) under Langevin friction."""
        if self.drift is None:
            return math.nan
        return self.drift.value * 1e-3 * self.tau_fs * 1e-3 / (3.0 * boltzmann())

    @property
    def tau_for_one_percent_fs(self) -> float:
        heating = self.expected_heating_K
        return self.tau_fs * 0.01 * self.target_K / heating if heating > 0 else math.inf


def gather(
    run: Run,
    drift: Estimate | None,
    injected: Estimate | None,
    mismatch: Estimate | None,
    broken_bonds: Sequence[BrokenBond] = (),
) -> Evidence:
    """Evidence of a run from its input and its outputs; without an input, what the outputs alone tell."""
    facts = run.facts
    acting = _acting(facts)
    direct = [own for own in acting if own.role.startswith(("direct", "blended"))]
    corrected = bool(direct) and abs(sum(own.weight * sum(own.mts_weights) for own in direct)) < 1e-6
    thermostat = facts.thermostat if facts is not None else None
    levels = facts.nmts if facts is not None else ()
    outer = facts.timestep_fs / (levels[0] if levels else 1) if facts is not None else 0.0
    inner_steps = math.prod(levels[1:])
    return Evidence(
        acts_directly=bool(direct) and not corrected,
        corrects_directly=corrected,
        forces_stated=bool(acting) and all(own.role for own in acting),
        inner_steps=inner_steps,
        inner_step_fs=outer / inner_steps,
        outer_step_fs=outer,
        half_period_fs=half_period_fs(run),
        outer_half_period_fs=half_period_fs(run, springs=True),
        has_hydrogen=_has_hydrogen(run),
        thermostat=str(thermostat) if thermostat is not None else "none",
        has_thermostat=thermostat is not None,
        has_global_thermostat=thermostat is not None and thermostat.is_global,
        tau_fs=thermostat.tau_fs if thermostat is not None else 0.0,
        target_K=run.target_K or 0.0,
        n_beads=facts.n_beads if facts is not None else 1,
        has_quantum_noise=facts is not None and any(mode > 0 for mode in facts.noncanonical_modes),
        splitting=facts.splitting if facts is not None else "",
        n_seams=max((len(table.rewinds) for table in run.tables), default=0),
        fixcom=facts is not None and facts.fixcom,
        float32_fft=facts is not None and facts.float32_fft and facts.n_beads > 1,
        energy_resolution_eV=energy_resolution(run),
        net_force_per_atom=net_force(run),
        broken_bonds=tuple(broken_bonds),
        drift=drift,
        injected=injected,
        mismatch_from_modes=mismatch,
    )


def _acting(facts: RunFacts | None) -> list[ForceComponent]:
    """Components that move the atoms; none is known without an input."""
    components = facts.components if facts is not None else ()
    return [own for own in components if own.weight != 0.0 and any(own.mts_weights)]


def fastest_vibration(run: Run) -> float:
    """Wavenumber of the fastest vibration to expect from the species, in 1/cm.

    3700 1/cm for hydrogen of 1 amu, scaled by the root of the mass for heavier; without hydrogen 2000 1/cm where there is C, N
    or O, else 1000 1/cm.

    Raises:
        MissingOutput: the species are not known.
    """
    masses = run.atoms.masses
    lightest = float(masses.min())
    if _is_hydrogen(lightest):
        return STRETCH_INVERSECM / math.sqrt(lightest)
    heavy = (masses > HEAVY_MASSES[0]) & (masses < HEAVY_MASSES[1])
    return HEAVY_INVERSECM if heavy.any() else SLOW_INVERSECM


def _is_hydrogen(mass: float) -> bool:
    return HYDROGEN_MASSES[0] < mass < HYDROGEN_MASSES[1]


def _has_hydrogen(run: Run) -> bool:
    try:
        return _is_hydrogen(float(run.atoms.masses.min()))
    except AnalysisError:
        return False


def half_period_fs(run: Run, *, springs: bool = False) -> float:
    """Half a period of the fastest vibration to expect from the species; inf where they are not known.

    With `springs`, of the fastest motion that the slowest force of multiple time stepping acts on, in a ring polymer of P
    beads: contracted to P' beads it acts on normal modes up to k = P'/2 alone, whose springs add omega_k = 2 P k_B T/hbar
    sin(pi k/P) to `fastest_vibration` in quadrature (Markland and Manolopoulos, J. Chem. Phys. 129, 024105 (2008)), unless the
    thermostat damps them as fast as they turn, so that nothing builds up. i-PI itself propagates the springs exactly.
    """
    try:
        wavenumber = fastest_vibration(run)
    except AnalysisError:
        return math.inf
    facts = run.facts
    is_damped = facts is not None and facts.thermostat is not None and facts.thermostat.damps_internal_modes
    if springs and facts is not None and facts.n_beads > 1 and facts.temperature_K and not is_damped:
        highest = _beads_of_slowest_force(facts) // 2
        spring = spring_wavenumber(facts.n_beads, facts.temperature_K, highest)
        wavenumber = math.hypot(wavenumber, spring)
    return 0.5 / (wavenumber * LIGHT_CM_PER_FS)


def _beads_of_slowest_force(facts: RunFacts) -> int:
    slowest = [own for own in _acting(facts) if own.mts_weights and own.mts_weights[0]]
    return max((own.n_beads or facts.n_beads for own in slowest), default=facts.n_beads)


def energy_resolution(run: Run) -> float:
    """Step between neighbouring energies, in eV, if they stand on the grid of single precision; else 0.

    float32 numbers between 2^k and 2^(k+1) are multiples of 2^(k-23). Energies on such a grid all have the same phase
    modulo the step, off it any phase: their mean resultant length tells, 1 against about 1/sqrt(n).
    """
    if not run.has("potential"):
        return 0.0
    energies = run.series("potential").values
    largest = float(np.abs(energies).max())
    if largest == 0.0 or len(energies) < 32 or np.ptp(energies) == 0.0:
        return 0.0
    step = 2.0 ** (math.floor(math.log2(largest)) - 23)
    if not float(np.ptp(energies)) > 100.0 * step:
        return 0.0
    phases = np.exp(2j * np.pi * (energies - energies[0]) / step)
    return step if abs(phases.mean()) > 0.5 else 0.0


def net_force(run: Run) -> float:
    """Root mean square of a component of the net force per atom, in eV/A, from the forces that were written; else 0."""
    for (held, _), trajectory in run.trajectories.items():
        if held.name in ("forces", "forces_component_raw") and trajectory.n_frames:
            block = trajectory.frames(0, None, max(1, trajectory.n_frames // 20))
            return float(np.sqrt(np.mean((block.values.sum(axis=1) / trajectory.n_atoms) ** 2)))
    return 0.0
