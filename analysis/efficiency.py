"""Sampling efficiency: independent samples of the potential energy for the force evaluations that they cost.

Units: ps for times; costs in evaluations, of which a conservative one may count for several direct ones.
"""

from __future__ import annotations

import math

from analysis.inputfile import RunFacts
from analysis.statistics import Estimate


def evaluations_per_ps(facts: RunFacts) -> dict[str, float]:
    """Evaluations of each role per ps of simulation, all beads, from the levels of multiple time stepping.

    A component is evaluated as often as its innermost level with a weight asks for; components without a weight only when
    they are written, which is not counted.
    """
    outer_steps = 1e3 / facts.timestep_fs
    counts: dict[str, float] = {}
    for component in facts.components:
        if component.weight == 0.0 or not any(component.mts_weights):
            continue
        innermost = max(level for level, weight in enumerate(component.mts_weights) if weight != 0.0)
        repeats = math.prod(facts.nmts[: innermost + 1])
        role = component.role or component.name or component.forcefield
        counts[role] = counts.get(role, 0.0) + outer_steps * repeats * (component.n_beads or facts.n_beads)
    return counts


def evaluations_per_sample(
    facts: RunFacts, autocorrelation_ps: Estimate, conservative_cost: float = 1.0
) -> Estimate:
    """Cost of one independent sample, 2 tau_int times the evaluations per ps: the smaller, the better the sampling.

    Args:
        facts: the input.
        autocorrelation_ps: integrated autocorrelation time of the observable.
        conservative_cost: cost of a conservative evaluation in direct ones (2.7 for PET); 1 counts all alike.
    """
    per_ps = sum(
        count * (1.0 if role.startswith("direct") else conservative_cost)
        for role, count in evaluations_per_ps(facts).items()
    )
    return autocorrelation_ps.scaled(2.0 * per_ps, unit="evaluations")
