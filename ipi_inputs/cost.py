"""What an input costs: force evaluations of each kind per outer step and per picosecond of time in the simulation.

One evaluation is one structure; a batch of eight beads is eight. Where the force server takes conservative and direct
forces of one geometry from one forward pass, the real cost is lower than the sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ipi_inputs.facts import Component, InputFacts, Output, System

FS_PER_PS = 1000.0
FINITE_DIFFERENCES_PER_STEP = 2  # i-PI's vibrations: one displacement to either side


@dataclass(frozen=True)
class Cost:
    """Evaluations of one run, all systems together.

    Attributes:
        outer_step_fs: i-PI's time step; None without dynamics, or where the systems differ.
        inner_step_fs: the step of the innermost level.
        per_outer_step: evaluations by kind of forces; empty where it depends on the run (line searches).
    """

    outer_step_fs: float | None
    inner_step_fs: float | None
    n_inner_steps: int
    per_outer_step: Mapping[str, float]

    @property
    def outer_steps_per_ns(self) -> float | None:
        return 1000 * FS_PER_PS / self.outer_step_fs if self.outer_step_fs else None

    @property
    def per_ps(self) -> Mapping[str, float]:
        """Evaluations by kind of forces in a picosecond."""
        if not self.outer_step_fs:
            return {}
        return {kind: count * FS_PER_PS / self.outer_step_fs for kind, count in self.per_outer_step.items()}

    def lines(self) -> list[str]:
        """The numbers as sentences."""
        if not self.outer_step_fs or self.inner_step_fs is None:
            steps = []
        elif self.n_inner_steps == 1:
            steps = [f"step {self.outer_step_fs:g} fs, {self.outer_steps_per_ns:,.0f} steps per ns"]
        else:
            steps = [
                f"outer step {self.outer_step_fs:g} fs (i-PI's timestep) = {self.n_inner_steps} inner steps of "
                f"{self.inner_step_fs:g} fs, {self.outer_steps_per_ns:,.0f} outer steps per ns"
            ]
        step = "outer step" if self.n_inner_steps > 1 else "step"
        for kind, count in self.per_outer_step.items():
            per_ps = f", {self.per_ps[kind]:,.0f} per ps" if self.per_ps else ""
            steps.append(f"{kind} evaluations: {count:g} per {step}{per_ps}")
        return steps or ["one or more evaluations per step, as the line search needs"]


def cost_of(facts: InputFacts) -> Cost:
    """Count the evaluations that an input asks for."""
    total: Counter[str] = Counter()
    for system in facts.systems:
        for index, component in enumerate(system.components):
            count = _evaluations(system, component, index, facts.outputs)
            for kind in _kinds(component):
                total[kind] += count  # type: ignore[assignment]
    first = facts.systems[0] if facts.systems else None
    same = first is not None and len({(s.timestep_fs, s.nmts) for s in facts.systems}) == 1
    return Cost(
        outer_step_fs=first.timestep_fs if first and same else None,
        inner_step_fs=first.inner_timestep_fs if first and same else None,
        n_inner_steps=first.n_inner_steps if first and same else 1,
        per_outer_step={kind: count for kind, count in total.items() if count > 0},
    )


def _evaluations(system: System, component: Component, index: int, outputs: tuple[Output, ...]) -> float:
    """Structures per outer step of one component."""
    n_beads = component.n_beads or system.n_beads
    if system.motion == "minimize":
        return n_beads if system.optimizer == "bfgstrm" else 0
    if system.motion == "vibrations":
        return n_beads * FINITE_DIFFERENCES_PER_STEP
    levels = [level for level in range(len(system.nmts)) if component.acts_at(level)]
    if not levels:
        return n_beads * _writes_per_step(index, outputs)
    return n_beads * prod(system.nmts[: levels[-1] + 1])


def _writes_per_step(index: int, outputs: tuple[Output, ...]) -> float:
    """How often a component of zero weight is evaluated: only when an output shows it."""
    needles = (f"component({index})", f"component_raw({index})")
    strides = [o.stride for o in outputs if any(needle in item for item in o.items for needle in needles)]
    return 1 / min(strides) if strides else 0.0


def _kinds(component: Component) -> tuple[str, ...]:
    socket = component.socket
    if socket is None or not socket.forces:
        return ("forces",)
    kinds = ("conservative", "direct") if socket.forces == "blended" else (socket.forces,)
    return kinds if socket.model == "default" else tuple(f"{kind} of model {socket.model}" for kind in kinds)
