"""The rules by which a run is judged, and the causes that are considered. Data only; `verdicts` applies them.

A rule has two tolerances in the unit of its deviation (or as a fraction of the target): what is worth a warning, and
what invalidates the run for the purpose. A verdict needs both: a deviation beyond the tolerance, and one that is
significant. Where the error bar is so wide that a failing deviation could hide in it, the verdict is "too short".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from analysis.evidence import Evidence

SIGMAS = 4.0  # of a single check; raised where a rule is applied to many subjects
MIN_EFFECTIVE = 25.0  # below this, error bars of correlated series are not to be trusted


@dataclass(frozen=True)
class Rule:
    """One check."""

    name: str
    title: str  # what a sound run does
    broken: str  # what an unsound one does
    unit: str
    warn: float
    fail: float | None  # None: at worst a warning
    relative: bool  # tolerances are fractions of what was expected
    causes: tuple[str, ...]  # considered in this order
    reference: str
    min_effective: float = MIN_EFFECTIVE  # fewer where the error comes from independent blocks
    can_wait: bool = True  # False: silence is a pass, no longer run is asked for


@dataclass(frozen=True)
class Cause:
    """One explanation."""

    name: str
    applies: Callable[[Evidence], bool]
    because: Callable[[Evidence], str]
    remedy: Callable[[Evidence], str]


BIGI = "Bigi, Langer, Ceriotti, ICML 2025 (arXiv:2412.11569)"
MERZ = "Merz, Shirts, PLoS ONE 13, e0202764 (2018)"
FU = "Fu et al., Trans. Mach. Learn. Res. (2023), arXiv:2210.07237: small errors of forces, unstable dynamics"
OVERDAMPED = "M. Ceriotti in lab-cosmo/i-pi-dev_archive#237: strong friction of PILE interferes with energy conservation"
BLOCKS = 4.0
HEATING = (
    "direct forces",
    "broken bonds",
    "multiple time stepping",
    "resonance",
    "time step",
    "net force",
    "single precision",
    "unexplained",
)
UNEVEN = ("quantum noise", "global thermostat", *HEATING[:-1], "thermostat too weak", "unexplained")

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("finite", "every row is finite", "rows are not finite",
             "rows", 0.5, 0.5, False, ("blow-up",), "i-PI goes on, and ends well, on a run of nan"),
        Rule("drift", "energy is conserved", "energy is not conserved",
             "meV/ps/atom", 0.02, 0.2, False, HEATING, BIGI),
        Rule("throughput", "no power runs through the bath", "power runs through the bath",
             "meV/ps/atom", 0.1, None, False, HEATING, BIGI),
        Rule("ring throughput", "no more power runs through the bath than friction makes", "power runs through the bath",
             "meV/ps/atom", 1.0, None, True, HEATING, OVERDAMPED),  # fractions of `drift.friction_power`
        Rule("seam", "no jump at a restart", "energy jumps at a restart",
             "meV/atom", 0.05, 0.5, False, ("restart",), "i-PI appends to its outputs after a restart", can_wait=False),
        Rule("temperature", "mean temperature is the target", "mean temperature is off target",
             "K", 0.005, 0.01, True, ("thermostat too weak", *HEATING), BIGI + ", Table 2"),
        Rule("stationary", "temperature has settled", "temperature drifts",
             "K", 0.02, 0.05, True, HEATING, "Chodera, J. Chem. Theory Comput. 12, 1799 (2016)", can_wait=False),
        Rule("equipartition", "species share the temperature", "species do not share the temperature",
             "K", 0.01, 0.02, True, UNEVEN, BIGI + ", Table 2"),
        Rule("molecules", "translation, rotation and vibration share the temperature",
             "kinds of motion do not share the temperature", "K", 0.015, 0.03, True, UNEVEN, MERZ),
        Rule("bonds", "bonds of the first frame hold", "bonds have broken",
             "bonds", 0.5, None, False, ("direct forces", "broken bonds"), FU),
        Rule("modes", "ring-polymer modes share the temperature", "ring-polymer modes do not share the temperature",
             "K", 0.01, 0.02, True, UNEVEN, "Ceriotti et al., J. Chem. Phys. 133, 124104 (2010)"),
        Rule("bands", "frequencies share the temperature", "frequencies do not share the temperature",
             "K", 0.05, 0.10, True, UNEVEN, BIGI, BLOCKS),
        Rule("width", "kinetic energy has the canonical width", "kinetic energy has the wrong width",
             "K", 0.05, 0.10, True, ("thermostat acts on part", *HEATING), MERZ),
        Rule("estimators", "K_cv and K_td agree", "K_cv and K_td disagree",
             "meV/atom", 1.0, 3.0, False, ("internal modes", "direct forces", "broken bonds", "time step of the beads", *HEATING),
             "Herman, Bruskin, Berne, J. Chem. Phys. 76, 5150 (1982)"),
        Rule("volume", "volume has settled", "volume drifts",
             "%/ps", 0.02, 0.1, False, ("direct virial", *HEATING), BIGI + ": direct stress makes the volume drift"),
        Rule("outer step", "outer step keeps clear of the resonance", "outer step is close to the resonance",
             "half periods", 0.95, None, False, ("resonance",),
             "Ma, Izaguirre, Skeel, SIAM J. Sci. Comput. 24, 1951 (2003)"),
        Rule("diffusion", "diffusion is that of the reference", "diffusion differs from the reference",
             "A^2/ps", 0.15, 0.30, True, ("thermostat too strong", *HEATING),
             BIGI + ": Langevin of 10 fs slows water five times", BLOCKS),
        Rule("structure", "g(r) is that of the reference", "g(r) differs from the reference",
             "A", 0.05, 0.15, False, HEATING, BIGI, BLOCKS),
        Rule("spectrum", "highest band stands where the reference has it", "highest band is displaced",
             "1/cm", 10.0, 30.0, False, HEATING, BIGI, BLOCKS),
    )
}  # fmt: skip

CAUSES: dict[str, Cause] = {
    cause.name: cause
    for cause in (
        Cause(
            "broken bonds",
            lambda e: bool(e.broken_bonds),
            lambda e: (
                f"bonds of the first frame no longer hold: {len(e.broken_bonds)}, the first of them "
                f"{e.broken_bonds[0].name} (atoms from 0) at step {e.broken_bonds[0].step}. Where a model was never shown bonds "
                "that long, its energy can have any shape, its forces jump within a step, and its two kinds differ by far"
            ),
            lambda e: (
                "look at the frames around that step; unless a reaction is expected, the model needs training data with "
                "bonds longer and shorter than any run reaches"
            ),
        ),
        Cause(
            "direct forces",
            lambda e: e.acts_directly,
            lambda e: (
                "the atoms move under direct forces, which are not the gradient of the energy"
                + (f"; f_D - f_C does {e.injected} along the way" if e.injected else "")
            ),
            lambda e: (
                "put the conservative force in the outer step of multiple time stepping (M = 8 at 0.5 fs)"
            ),
        ),
        Cause(
            "multiple time stepping",
            lambda e: e.corrects_directly and not e.near_resonance,
            lambda e: (
                f"the conservative correction comes only every {e.outer_step_fs:g} fs (M = {e.inner_steps})"
            ),
            lambda e: f"halve M, to {max(1, e.inner_steps // 2)}, and see whether it goes away",
        ),
        Cause(
            "resonance",
            lambda e: e.near_resonance,
            lambda e: (
                f"the outer step of {e.outer_step_fs:g} fs is close to half a period of the fastest vibration "
                f"({e.outer_half_period_fs:.2f} fs)"
            ),
            lambda e: (
                f"make the outer step at most {0.9 * e.outer_half_period_fs:.1f} fs"
                + (", or make hydrogen heavier" if e.has_hydrogen else "")
            ),
        ),
        Cause(
            "time step",
            lambda e: not e.acts_directly and e.inner_step_fs > e.half_period_fs / 6.0,
            lambda e: (
                f"the time step of {e.inner_step_fs:g} fs is long for a half period of {e.half_period_fs:.2f} fs"
            ),
            lambda e: f"use {e.half_period_fs / 9.0:.2g} fs",
        ),
        Cause(
            "thermostat too weak",
            lambda e: e.acts_directly and e.tau_fs > 0 and not e.has_global_thermostat and e.n_beads == 1,
            lambda e: (
                f"friction of 1/({e.tau_fs:g} fs) lets {e.drift or 'the injected power'} settle at "
                f"T + {e.expected_heating_K:.3g} K (P tau/3N k_B)"
            ),
            lambda e: f"tau of {e.tau_for_one_percent_fs:.3g} fs would hold it within 1 %",
        ),
        Cause(
            "global thermostat",
            lambda e: e.has_global_thermostat and (e.acts_directly or e.corrects_directly),
            lambda e: (
                f"'{e.thermostat}' rescales everything by one number: what heats one kind of motion it takes from "
                "the others, and the mean stays right"
            ),
            lambda e: (
                "use a local thermostat (langevin, pile_l), or take the cause away by multiple time stepping"
            ),
        ),
        Cause(
            "thermostat too strong",
            lambda e: 0 < e.tau_fs < 200 and not e.has_global_thermostat,
            lambda e: f"friction of 1/({e.tau_fs:g} fs) competes with the motion of the molecules",
            lambda e: "use a global thermostat or a longer tau for dynamics",
        ),
        Cause(
            "thermostat acts on part",
            lambda e: e.has_thermostat,
            lambda e: f"'{e.thermostat}' does not give all of the kinetic energy its canonical fluctuations",
            lambda e: "compare with langevin or svr, and look at the temperatures of modes and species",
        ),
        Cause(
            "net force",
            lambda e: e.has_net_force,
            lambda e: (
                f"the forces add up to {e.net_force_per_atom:.2g} eV/A per atom while fixcom removes the motion that "
                "follows; i-PI books that work as heat"
            ),
            lambda e: "remove the net force in the server (the default), or switch fixcom off",
        ),
        Cause(
            "single precision",
            lambda e: not e.acts_directly and (e.energy_resolution_eV > 0 or e.float32_fft),
            lambda e: (
                f"energies come in steps of {e.energy_resolution_eV:.2g} eV: single precision"
                if e.energy_resolution_eV
                else "normal modes are transformed in single precision (fft_float32)"
            ),
            lambda e: "run the model, or at least the sum of its energies, in float64",
        ),
        Cause(
            "restart",
            lambda e: e.n_seams > 0,
            lambda e: (
                f"the run was restarted {e.n_seams} time(s) and goes on from another state than it stopped in"
            ),
            lambda e: (
                "restart from a checkpoint that holds the thermostat's energy, and analyse the parts one by one"
            ),
        ),
        Cause(
            "internal modes",
            lambda e: e.n_beads > 1 and not e.modes_are_at_the_target,
            lambda e: (
                "the internal modes of the ring polymer are not at the target: "
                f"their temperature accounts for {e.mismatch_from_modes or 'an unknown part'}"
            ),
            lambda e: (
                "damp the internal modes at least critically (pile_lambda 1), or correct the forces more often"
            ),
        ),
        Cause(
            "quantum noise",
            lambda e: e.n_beads > 1 and e.has_quantum_noise,
            lambda e: (
                f"'{e.thermostat}' holds internal modes far above k_B T, and bonds that are not harmonic pass some of that on to "
                "the centroid: 12(1) K for water on 4 beads with PIGLET and exact forces, at 0.5 fs and at 0.25 fs"
            ),
            lambda e: "couple the centroid more strongly, or compare with pile_l and more beads",
        ),
        Cause(
            "time step of the beads",
            lambda e: e.n_beads > 1 and e.splitting == "obabo" and e.inner_step_fs > e.half_period_fs / 13.0,
            lambda e: (
                f"steps of {e.inner_step_fs:g} fs sample the positions of the beads too broadly: for water on 8 beads with exact "
                "forces K_cv - K_td is 2.1(3) meV/atom at 0.5 fs and -0.1(7) at 0.25 fs"
            ),
            lambda e: (
                "write <dynamics splitting='baoab'>, whose positions are right at that step (0.1(3) there; momenta are too cold "
                f"instead), or compare with a run of {0.5 * e.inner_step_fs:g} fs: the error goes with the square of the step"
            ),
        ),
        Cause(
            "direct virial",
            lambda e: e.acts_directly,
            lambda e: "the barostat follows a virial that is not the derivative of the energy",
            lambda e: "use the conservative virial, at least in the outer step",
        ),
        Cause(
            "blow-up",
            lambda e: True,
            lambda e: "i-PI goes on, and ends well, after forces or energies that are not finite",
            lambda e: (
                "look at the last finite frames; restart from a checkpoint before them with a shorter step"
            ),
        ),
        Cause(
            "unexplained",
            lambda e: not (e.acts_directly or e.corrects_directly),
            lambda e: (
                (
                    "the forces say that they are conservative; suspects are "
                    if e.forces_stated
                    else "the input does not say which forces it asked for: direct ones would explain it. If they are "
                    "conservative, suspects are "
                )
                + "a discontinuous cutoff, a neighbour list that is too old, a wrong sign of the virial, fixed atoms or "
                "constraints, an overdamped PILE with many beads"
            ),
            lambda e: (
                (
                    ""
                    if e.forces_stated
                    else "write <parameters>{forces: ...}</parameters> in each <ffsocket>, and "
                )
                + "compare with a run of half the time step"
            ),
        ),
    )
}
