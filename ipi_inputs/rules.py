"""Every rule of the linter: its name, how bad it is, why it matters, what to do, who says so.

The checks themselves, which say where and what, are in `check_text`, `check_forces` and `check_dynamics`.
An error gives wrong physics or no run at all; a warning costs accuracy, money or a week; an info is good to know.
"""

from __future__ import annotations

from ipi_inputs import check_dynamics, check_forces, check_text
from ipi_inputs.facts import LONGEST_SOCKET_PATH
from ipi_inputs.findings import Rule

BIGI = "Bigi, Langer, Ceriotti, ICML 2025 (arXiv:2412.11569)"
TABLE_2 = f"{BIGI}, Table 2"
TUCKERMAN = "Tuckerman, Berne, Martyna, J. Chem. Phys. 97, 1990 (1992)"
RESONANCE = "Ma, Izaguirre, Skeel, SIAM J. Sci. Comput. 24, 1951 (2003)"
CONTRACTION = "Markland, Manolopoulos, J. Chem. Phys. 129, 024105 (2008)"
PILE = "Ceriotti, Parrinello, Markland, Manolopoulos, J. Chem. Phys. 133, 124104 (2010)"
MANUAL = "i-PI manual, input tags"
OUTPUTS = "i-PI manual, output files"

REFUSED_BY_IPI = (
    "structure-not-found",
    "unknown-unit",
    "mts-levels",
)  # they explain why an input is not accepted

RULES: tuple[Rule, ...] = (
    # ------------------------------------------------------------------ what i-PI reads
    Rule(
        "not-accepted", "error", check_text.refused,
        "i-PI stops before the first step.",
        "Correct what the message names.",
        MANUAL,
    ),
    Rule(
        "structure-not-found", "error", check_text.missing_structure,
        "i-PI looks for the file from the folder in which it is started.",
        "Put the structure beside the input, or give its whole path.",
        MANUAL,
    ),
    Rule(
        "xyz-without-units", "warning", check_text.xyz_without_units,
        "i-PI reads an xyz file that names no unit in atomic units: a box in angstrom then shrinks to half its edge.",
        "Write what is missing into the second line of the file. i-PI sees no m/s there: give units=\"m/s\" in the input.",
        "i-PI manual, input files",
    ),
    Rule(
        "missing-unit", "error", check_text.missing_units,
        "Without units i-PI reads atomic units: 0.5 is then 0.012 fs, and 300 a temperature of 95 million K.",
        "Add units=\"femtosecond\", \"kelvin\", \"angstrom\", ...; where atomic units are meant, units=\"atomic_unit\".",
        MANUAL,
    ),
    Rule(
        "missing-timestep", "error", check_dynamics.missing_timestep,
        "i-PI then takes 1 atomic unit of time: 1000 steps make 24 fs.",
        "Add <timestep units=\"femtosecond\"> 0.5 </timestep> to <dynamics>.",
        MANUAL,
    ),
    Rule(
        "bare-atomic-units", "warning", check_text.bare_atomic_units,
        "Without units i-PI reads atomic units, which the next reader will take for angstrom or eV.",
        "Add units=\"angstrom\", ...; where atomic units are meant, units=\"atomic_unit\".",
        MANUAL,
    ),
    Rule(
        "unknown-unit", "error", check_text.unknown_units,
        "i-PI finds out when it reads or first writes the quantity, and stops there, or worse at the first output.",
        "Use one of the units that the message lists.",
        "i-PI manual, units",
    ),
    Rule(
        "unknown-output", "error", check_text.unknown_outputs,
        "i-PI stops when it opens its output files, after the sockets are open.",
        "Correct the name; i-PI's manual lists all properties and trajectories.",
        OUTPUTS,
    ),
    Rule(
        "output-folder", "error", check_text.missing_output_folder,
        "i-PI makes no folders: it stops when it opens its output files, after the sockets are open.",
        "Make the folder beside the input, or give outputs and <system> a prefix without \"/\".",
        OUTPUTS,
    ),
    # ------------------------------------------------------------------ sockets
    Rule(
        "socket-collision", "error", check_text.socket_collision,
        "The second to open the address fails; between two runs, a force server would serve the wrong one.",
        "Give every socket of every run on one machine its own <address>, or every run its own sockets_prefix.",
        MANUAL,
    ),
    Rule(
        "socket-path", "error", check_text.socket_path,
        f"The operating system takes at most {LONGEST_SOCKET_PATH} bytes for the path of a unix socket.",
        "Shorten <address> or sockets_prefix.",
        "unix(7)",
    ),
    Rule(
        "socket-timeout", "info", check_text.socket_timeout,
        "With timeout 0 a force server that hangs holds i-PI for ever: no EXIT file, no total_time, no RESTART.",
        "Set <timeout> (seconds) to many times the slowest evaluation, e.g. 600.",
        MANUAL,
    ),
    Rule(
        "socket-polling", "info", check_text.socket_polling,
        "i-PI looks for requests in a thread for each socket, at this pace. Where the model shares cores with i-PI, that time "
        "is taken from it: with two sockets on one core, a seventh of the run.",
        "Set <latency> 1e-3 </latency>. It delays a request by half a millisecond: leave it for potentials of under 2 ms.",
        "measured with i-PI 3.3, see README.md",
    ),
    Rule(
        "unknown-role", "warning", check_text.unknown_role,
        "The force server refuses parameters that it does not know, rather than serve other forces than were meant.",
        "Write {forces: conservative}, {forces: direct}, or {forces: blended, direct_fraction: X}, and model: NAME if need be.",
        "README, which forces: <parameters>",
    ),
    Rule(
        "batch-size", "warning", check_text.batch_size,
        "i-PI fills an incomplete batch with copies of its last structure; an unthreaded ffdirect waits for ever instead.",
        "Choose a batch_size that divides beads x systems, or leave it out: the force server gathers beads by itself.",
        MANUAL,
    ),
    # ------------------------------------------------------------------ levels and contraction
    Rule(
        "mts-levels", "error", check_forces.mts_levels,
        "Every force needs one weight per level of nmts.",
        "Give each <force> as many mts_weights as nmts has entries, the outer level first.",
        TUCKERMAN,
    ),
    Rule(
        "mts-outer-iterations", "warning", check_forces.mts_outer_iterations,
        "The time step is that of the outermost loop; with several iterations in it the outer step is a fraction of it.",
        "Begin nmts with 1 and set the time step to the outer step that you mean.",
        MANUAL,
    ),
    Rule(
        "mts-idle-level", "warning", check_forces.mts_idle_level,
        "A level at which no force acts only multiplies the number of steps.",
        "Remove the level, or give a force a weight there.",
        TUCKERMAN,
    ),
    Rule(
        "mts-roles", "warning", check_forces.mts_roles,
        "The roles are the wrong way round: the expensive forces act in every inner step, and direct ones save nothing.",
        "Swap the weights: conservative [ 1, 0 ] and direct [ -1, 1 ], the outer level first.",
        BIGI,
    ),
    Rule(
        "not-conservative-total", "error", check_forces.not_conservative_total,
        "The dynamics has an energy only if the direct forces cancel over an outer step and conservative ones remain.",
        "Weights that do: conservative [ 1, 0 ] and direct [ -1, 1 ]; contracted: also direct with weight -1 on the few beads.",
        BIGI,
    ),
    Rule(
        "contracted-beads", "error", check_forces.contraction,
        "Forces are contracted to fewer beads than the ring polymer has, never expanded.",
        "Lower nbeads of the <force>, or raise nbeads of <initialize>.",
        CONTRACTION,
    ),
    Rule(
        "contraction-alone", "error", check_forces.contraction_without_counterpart,
        "The internal modes that the contraction leaves out feel no force but the springs: a free-particle spread.",
        "Add a cheap force on all beads, and subtract it on the contracted ones.",
        CONTRACTION,
    ),
    # ------------------------------------------------------------------ direct forces
    Rule(
        "direct-unthermostatted", "error", check_forces.unthermostatted,
        "Direct forces do net work on closed paths: water heats by 7 K/ps with a good model and 70 K/ps with a poor one.",
        "Use nve-mts, which removes the drift for 20 % more than direct forces cost, or a local thermostat.",
        BIGI,
    ),
    Rule(
        "direct-weak-thermostat", "warning", check_forces.weak_thermostat,
        "The temperature settles too high by P tau/(3 N k_B), 4 K per meV/ps/atom of heating at tau = 1 ps.",
        "Use multiple time stepping (nvt-mts-langevin); or tau of 10 fs (nvt-langevin-strong), which slows diffusion.",
        TABLE_2,
    ),
    Rule(
        "direct-global-thermostat", "error", check_forces.global_thermostat,
        "It holds the mean temperature and breaks equipartition: H was 36 K too hot and O 70 K too cold at the right mean.",
        "Use multiple time stepping (nvt-mts-svr), or a strong local thermostat (nvt-langevin-strong, nvt-ffl).",
        TABLE_2,
    ),
    Rule(
        "direct-colored-thermostat", "error", check_forces.colored_thermostat,
        "Colored noise assumes conservative forces: it can amplify what direct forces inject, up to failure.",
        "Use multiple time stepping with a white-noise thermostat (nvt-mts-langevin).",
        BIGI,
    ),
    Rule(
        "direct-barostat", "error", check_forces.barostat,
        "A direct stress is not the derivative of the energy: the volume drifts. Without one there is no virial at all.",
        "Use npt-mts: direct forces in the inner steps, the conservative virial in the outer step.",
        BIGI,
    ),
    Rule(
        "direct-energy-method", "error", check_forces.energy_methods,
        "Optimisers, vibrations and paths take forces for the derivative of the energy; with direct forces they stall or lie.",
        "Use conservative forces: {forces: conservative}.",
        f"{BIGI}, Table 7",
    ),
    Rule(
        "kept-net-force", "warning", check_forces.kept_net_force,
        "i-PI removes the motion of the centre of mass and books its energy silently, so the drift of conserved is hidden.",
        "Let the server remove the net force (its default), or set <fixcom> False and watch the centre of mass.",
        "ipi/engine/motion/dynamics.py, pconstraints",
    ),
    Rule(
        "external-potential-fixcom", "warning", check_forces.external_potential,
        "An external potential pulls at the centre of mass, which fixcom holds; i-PI books the energy silently.",
        "Set <fixcom> False.",
        "ipi/engine/motion/dynamics.py, pconstraints",
    ),
    # ------------------------------------------------------------------ time steps and thermostats
    Rule(
        "time-step", "warning", check_dynamics.time_step,
        f"With fewer than {check_dynamics.STEPS_PER_PERIOD} steps per period velocity Verlet shifts the mode and drifts.",
        "Shorten the (inner) time step, e.g. 0.5 fs with hydrogen, or use deuterium or heavier hydrogen.",
        "Leimkuhler, Matthews, Molecular Dynamics (2015), chapter 3",
    ),
    Rule(
        "outer-step-resonance", "error", check_dynamics.outer_step_resonance,
        "An impulse every half period pumps the mode, however small the difference of the two forces.",
        "Keep i-PI's timestep, which is the OUTER step, below: 4 fs for O-H; scan it with resonance-scan.",
        RESONANCE,
    ),
    Rule(
        "missing-thermostat", "error", check_dynamics.missing_thermostat,
        "i-PI runs it all the same, at constant energy or enthalpy: the temperature is whatever comes of the start.",
        "Add a <thermostat> to <dynamics>, as nvt-svr or pimd-pile-l have one, or say mode=\"nve\" where that is meant.",
        "ipi/engine/motion/dynamics.py",
    ),
    Rule(
        "overdamped-pile", "warning", check_dynamics.overdamped_pile,
        "Friction that forgets a velocity within one step makes conserved drift, 0.5 eV/ps in a reported run of 48 beads.",
        "Shorten the time step, or lower pile_lambda to 0.5; sampling suffers little, conserved becomes a diagnostic again.",
        PILE,
    ),
    Rule(
        "noise-temperature", "error", check_dynamics.noise_at_another_temperature,
        "The covariance of a normal-mode GLE fixes the temperature, whatever <ensemble> says: ring polymer at P x T.",
        "Take the matrices for this temperature and number of beads from gle4md.org.",
        "Ceriotti, Manolopoulos, Phys. Rev. Lett. 109, 100604 (2012)",
    ),
    Rule(
        "missing-seed", "info", check_dynamics.missing_seed,
        "i-PI then seeds itself from the clock, and nobody can repeat the run.",
        "Add <prng> <seed> N </seed> </prng>, another N for each replica.",
        MANUAL,
    ),
    # ------------------------------------------------------------------ outputs
    Rule(
        "missing-columns", "warning", check_dynamics.missing_columns,
        "Drift, heat and temperature cannot be told afterwards without them, and they cost nothing.",
        "Add them to <properties>, with units: conserved{electronvolt}, temperature{kelvin}, ...",
        OUTPUTS,
    ),
    Rule(
        "missing-quantum-columns", "warning", check_dynamics.missing_quantum_columns,
        "The two kinetic energies check the internal modes against each other, and are blind to the centroid, nm=0.",
        "Add kinetic_cv{electronvolt}, kinetic_td{electronvolt}, temperature(nm=0){kelvin} to <properties>.",
        OUTPUTS,
    ),
    Rule(
        "missing-species-temperatures", "warning", check_dynamics.missing_species_temperatures,
        "Direct forces heat species unequally behind a right mean. i-PI corrects these columns for the centre of mass.",
        "Add temperature(X){kelvin} for every species X to <properties>.",
        TABLE_2,
    ),
    Rule(
        "missing-trajectories", "info", check_dynamics.missing_trajectories,
        "Without positions there is no g(r) or diffusion, without velocities no spectrum.",
        "Add <trajectory> positions{angstrom} and velocities{m/s}, or their centroids x_centroid and v_centroid.",
        OUTPUTS,
    ),
    Rule(
        "spectrum-stride", "warning", check_dynamics.spectrum_stride,
        "Faster modes fold back into the spectrum and look like slower ones.",
        "Lower the stride of the velocities, or the time step, to at most half a period: 4 fs for O-H.",
        "the sampling theorem",
    ),
    Rule(
        "missing-checkpoint", "warning", check_dynamics.missing_checkpoint,
        "A killed job leaves nothing to go on from: RESTART is written at a clean end only.",
        "Add <checkpoint stride=\"1000\" overwrite=\"True\"/> to <output>.",
        OUTPUTS,
    ),
)  # fmt: skip
