"""A case as an i-PI input: the same for every contender, but for the element that says where its forces come from.

The library of inputs is for people: it has outputs to look at, and nothing but `<ffsocket>`. Here little is written, so that
i-PI's files are no part of what is measured. A strong thermostat keeps direct forces from heating the run away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from forceserver.bench.cases import Case, Component
from forceserver.structures import ForceKind

STRUCTURE = "structure.xyz"  # beside the input
FOR_EVER = 10**9
LATENCY_SECONDS = 1e-3  # of i-PI's polling threads, as in the library: by i-PI's own 1e-4 they take much of a core that is shared

INPUT = """<simulation verbosity="low" sockets_prefix="{sockets_prefix}">
  <output prefix="simulation">
    <properties filename="clock" stride="1" flush="1000000"> [ step, clock ] </properties>
    <properties filename="properties" stride="10">
      [ step, time{{picosecond}}, conserved{{electronvolt}}, temperature{{kelvin}} ]
    </properties>
  </output>
  <total_steps> {total_steps} </total_steps>
  <prng> <seed> {seed} </seed> </prng>
{force_fields}
  <system>
    <initialize nbeads="{n_beads}">
      <file mode="ase"> {structure} </file>
      <velocities mode="thermal" units="kelvin"> 300 </velocities>
    </initialize>
    <forces>
{forces}
    </forces>
    <ensemble> <temperature units="kelvin"> 300 </temperature> </ensemble>
    <motion mode="dynamics">
      <dynamics mode="nvt">
        <timestep units="femtosecond"> {timestep_fs} </timestep>
        <nmts> {nmts} </nmts>
        <thermostat mode="{thermostat}"> <tau units="femtosecond"> 10 </tau> </thermostat>
      </dynamics>
    </motion>
  </system>
</simulation>
"""


@dataclass(frozen=True)
class ForceField:
    """Where i-PI gets its forces: a socket, or a driver of i-PI's own within the same process."""

    tag: Literal["ffsocket", "ffdirect"] = "ffsocket"
    mode: Literal["unix", "shm"] = "unix"
    in_batches: bool = False  # of as many structures as are asked for at once
    pes: str = ""  # of <ffdirect>
    parameters: Mapping[ForceKind, str] = field(default_factory=dict)


def input_text(case: Case, force_field: ForceField, sockets_prefix: str, seed: int) -> str:
    """The XML of one simulation."""
    levels = f"[ 1, {case.n_inner_steps} ]" if case.n_inner_steps > 1 else "[ 1 ]"
    return INPUT.format(
        sockets_prefix=sockets_prefix,
        total_steps=FOR_EVER,
        seed=seed,
        force_fields="\n".join(_force_field(case, kind, force_field) for kind in case.kinds),
        n_beads=case.n_beads,
        structure=STRUCTURE,
        forces="\n".join(_force(component) for component in case.components),
        timestep_fs=case.timestep_fs,
        nmts=levels,
        thermostat="langevin" if case.n_beads == 1 else "pile_l",
    )


def _force(component: Component) -> str:
    weights = ", ".join(str(weight) for weight in component.weights)
    return (
        f'      <force forcefield="{component.kind}" nbeads="{component.n_beads}"> '
        f"<mts_weights> [ {weights} ] </mts_weights> </force>"
    )


def _force_field(case: Case, kind: ForceKind, chosen: ForceField) -> str:
    batch_size = case.most_at_once(kind) if chosen.in_batches else 1
    parameters = chosen.parameters.get(kind, f"{{forces: {kind}}}")
    common = f"<parameters> {parameters} </parameters> <batch_size> {batch_size} </batch_size>"
    if chosen.tag == "ffsocket":
        return (
            f'  <ffsocket name="{kind}" mode="{chosen.mode}" pbc="false"> <address> {kind} </address> '
            f"<latency> {LATENCY_SECONDS} </latency> {common} </ffsocket>"
        )
    # Without a thread of its own it waits for ever for a batch that does not fill; with one, each request waits for a poll.
    sizes = [component.n_beads for component in case.components if component.kind == kind]
    threaded = any(size % batch_size for size in sizes)
    return f'  <ffdirect name="{kind}" pbc="false" threaded="{threaded}"> <pes> {chosen.pes} </pes> {common} </ffdirect>'
