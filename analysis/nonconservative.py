"""What separates the forces of a run from the gradient of its energy, where the run wrote both.

Units: eV/A for forces, meV/ps/atom for power, ps for times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.drift import POWER_UNIT
from analysis.errors import AnalysisError, MissingOutput
from analysis.molecules import common_frames
from analysis.run import Run
from analysis.series import FloatArray, Series
from analysis.statistics import Estimate, autocorrelation_time, mean
from analysis.trajectories import Trajectory

MAX_FRAMES = 4000
FOLLOWED_FRAMES = 2000  # one after the other, for the correlation time


@dataclass(frozen=True)
class ForceDifference:
    """Statistics of f_D - f_C along a run."""

    rms: Estimate  # eV/A, per Cartesian component
    rms_by_species: dict[str, Estimate]
    net: Estimate  # eV/A, root mean square of a component of the net force per atom
    correlation_ps: Estimate  # the median over Cartesian components of some atoms; at least half a frame


def force_difference(run: Run) -> ForceDifference:
    """Statistics of f_D - f_C from the component trajectories of both.

    Raises:
        MissingOutput: the components were not written, or the input does not say which is which.
    """
    conservative, direct = _component(run, "conservative"), _component(run, "direct")
    squares, nets, steps = [], [], []
    for step, difference in _differences(
        conservative, direct, common_frames([conservative, direct], MAX_FRAMES)
    ):
        squares.append((difference**2).mean(axis=1))
        nets.append(np.mean(difference.sum(axis=0) ** 2) / len(difference) ** 2)
        steps.append(step)
    times = run.frame_times_ps(np.array(steps))
    by_atom = np.array(squares)  # (n_frames, n_atoms)
    return ForceDifference(
        rms=_root(Series(times, by_atom.mean(axis=1), "(eV/A)^2", "(f_D - f_C)^2")),
        rms_by_species={
            label: _root(Series(times, by_atom[:, run.atoms.where(label)].mean(axis=1), "(eV/A)^2"))
            for label in run.atoms.species
        },
        net=_root(Series(times, np.array(nets), "(eV/A)^2", "net force")),
        correlation_ps=_typical_memory(run, conservative, direct),
    )


def _differences(
    conservative: Trajectory, direct: Trajectory, pairs: Sequence[tuple[int, ...]]
) -> Iterator[tuple[int, FloatArray]]:
    """Step and f_D - f_C (n_atoms, 3) of pairs of frames."""
    for own, other in pairs:
        reference = conservative.frames(own, own + 1)
        yield int(reference.steps[0]), direct.frames(other, other + 1).values[0] - reference.values[0]


def _root(square: Series) -> Estimate:
    found = mean(square)
    root = float(np.sqrt(found.value))
    return Estimate(root, found.error / (2.0 * root) if root else 0.0, "eV/A", found.n_effective)


def _typical_memory(run: Run, conservative: Trajectory, direct: Trajectory) -> Estimate:
    """Median autocorrelation time of single components of f_D - f_C, in frames that follow each other in mid-run."""
    everywhere = common_frames([conservative, direct], max(conservative.n_frames, direct.n_frames))
    begin = max(0, (len(everywhere) - FOLLOWED_FRAMES) // 2)
    differences, steps = [], []
    followed = everywhere[begin : begin + FOLLOWED_FRAMES]
    for step, difference in _differences(conservative, direct, followed):
        differences.append(difference[:: max(1, len(difference) // 16)].ravel())
        steps.append(step)
    times = run.frame_times_ps(np.array(steps))
    found = [autocorrelation_time(Series(times, column, "eV/A")) for column in np.array(differences).T]
    return sorted(found, key=lambda estimate: estimate.value)[len(found) // 2]


def nonconservative_power(run: Run) -> Estimate:
    """Mean power of f - f_C along the run, sum_i (f_i - f_C,i).v_i, in meV/ps/atom: what the drift should be.

    f is the force that moves the atoms: all components with their weights. Needs frames of every component and of the
    velocities at common steps. Not for multiple time stepping, where forces act as impulses of different length.

    Raises:
        MissingOutput: one of the trajectories is not there.
        AnalysisError: multiple time stepping, or more than one bead.
    """
    return mean(power_series(run))


def power_series(run: Run) -> Series:
    """sum_i (f_i - f_C,i).v_i along the run, in meV/ps/atom."""
    facts = run.require_facts("the work of direct forces")
    if facts.inner_steps > 1 or facts.n_beads > 1:
        raise AnalysisError(
            "the work of direct forces is defined here for one bead and single time steps only"
        )
    conservative, velocities = _component(run, "conservative"), run.trajectory("velocities")
    acting = {
        index: _forces_of(run, index)
        for index, component in enumerate(facts.components)
        if component.weight != 0.0
    }
    powers, steps = [], []
    for own, moving, *others in common_frames([conservative, velocities, *acting.values()], MAX_FRAMES):
        reference = conservative.frames(own, own + 1)
        difference = -reference.values[0]
        for (index, trajectory), other in zip(acting.items(), others, strict=True):
            acts = trajectory.frames(other, other + 1).values[0]
            difference = difference + facts.components[index].weight * acts
        powers.append(float(np.sum(difference * velocities.frames(moving, moving + 1).values[0])))
        steps.append(reference.steps[0])
    values = np.array(powers) * 1e3 / run.atoms.n_atoms
    return Series(run.frame_times_ps(np.array(steps)), values, POWER_UNIT, "power of f - f_C")


def _component(run: Run, role: str) -> Trajectory:
    """The force trajectory of the component with a role."""
    facts = run.require_facts("forces by component")
    for index, component in enumerate(facts.components):
        if component.role.startswith(role):
            return _forces_of(run, index)
    if all(component.role for component in facts.components):
        asked = " and ".join(sorted({component.role for component in facts.components}))
        raise MissingOutput(
            f"{run.name}: f_D - f_C is not known, the input asks for {asked} forces, for {role} ones it does not; a <force "
            "weight='0'> of them never acts, and forces_component_raw(INDEX){ev/ang} in a <trajectory> writes it"
        )
    raise MissingOutput(
        f"{run.name}: no force component says that it is {role}; say <parameters>{{forces: {role}}}</parameters> in its "
        "<ffsocket>"
    )


def _forces_of(run: Run, index: int) -> Trajectory:
    """Forces of one component, without its weight."""
    for (held, _), trajectory in run.trajectories.items():
        if held.name == "forces_component_raw" and ("index", str(index)) in held.arguments:
            return trajectory
    raise MissingOutput(
        f"{run.name}: no forces of component {index}; add <trajectory filename='forces-component-{index}' stride='20'> "
        f"forces_component_raw({index}){{ev/ang}} </trajectory> to its <output>"
    )
