"""What an i-PI input says, as frozen facts: sockets and their roles, force components, dynamics, outputs.

Units: fs, K and GPa, converted from whatever the input uses; None where a value is absent or cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ipi_inputs.document import Document, Element

KINDS = ("conservative", "direct")
LONGEST_SOCKET_PATH = 107  # bytes in sockaddr_un.sun_path, less the closing zero


@dataclass(frozen=True)
class Socket:
    """An `<ffsocket>`, or another force field that i-PI evaluates by itself."""

    tag: str
    name: str
    mode: str  # unix, inet, shm; "" for other force fields
    address: str
    port: int | None
    batch_size: int
    timeout_seconds: float
    latency_seconds: float  # between two looks of i-PI's polling thread
    parameters: Mapping[str, str]
    forces: str  # conservative, direct, blended; "" where nobody says
    potential: str  # the `<pes>` that i-PI evaluates by itself; "" for a socket
    element: Element

    @property
    def model(self) -> str:
        return self.parameters.get("model", "default")

    def endpoint(self, prefix: str) -> str:
        """Where it listens: the path of a unix socket, or host:port."""
        return prefix + self.address if self.mode in ("unix", "shm") else f"{self.address}:{self.port}"

    @property
    def is_direct(self) -> bool:
        """Whether any part of these forces is not the derivative of an energy."""
        return self.forces in ("direct", "blended")


@dataclass(frozen=True)
class Component:
    """A `<force>`: a force field, a weight, the levels at which it acts, the ring polymer it acts on."""

    forcefield: str
    weight: float
    mts_weights: tuple[float, ...]
    n_beads: int  # 0: every bead of the system
    socket: Socket | None
    element: Element

    @property
    def forces(self) -> str:
        """conservative, direct, blended; "" where nobody says."""
        return self.socket.forces if self.socket else ""

    @property
    def is_direct(self) -> bool:
        return self.socket is not None and self.socket.is_direct

    @property
    def total_weight(self) -> float:
        """What is left of this component after an outer step."""
        return self.weight * sum(self.mts_weights)

    def acts_at(self, level: int) -> bool:
        return self.weight != 0 and level < len(self.mts_weights) and self.mts_weights[level] != 0


@dataclass(frozen=True)
class Thermostat:
    """A `<thermostat>` of the atoms, not the one of a barostat."""

    mode: str
    tau_fs: float | None
    pile_lambda: float
    matrix_shape: tuple[int, ...]  # of A; () where there is none
    has_covariance: bool
    element: Element


@dataclass(frozen=True)
class System:
    """A `<system>`: what moves, how, under which forces."""

    prefix: str
    motion: str  # dynamics, minimize, vibrations, ...
    ensemble: str  # nve, nvt, npt, ...; "" outside dynamics
    splitting: str
    optimizer: str
    timestep_fs: float | None  # the OUTER step, as in i-PI
    nmts: tuple[int, ...]
    n_beads: int
    temperature_K: float | None
    pressure_GPa: float | None
    thermostats: tuple[Thermostat, ...]
    barostat: str
    fix_com: bool
    components: tuple[Component, ...]
    element: Element

    @property
    def n_inner_steps(self) -> int:
        """Inner steps per outer step: the product of the iterations of all levels."""
        return prod(self.nmts)

    @property
    def inner_timestep_fs(self) -> float | None:
        return None if self.timestep_fs is None else self.timestep_fs / self.n_inner_steps

    @property
    def acting(self) -> tuple[Component, ...]:
        """The components that push atoms, without those of zero weight that are only written."""
        return tuple(component for component in self.components if component.weight != 0)


@dataclass(frozen=True)
class Output:
    """A `<properties>`, `<trajectory>` or `<checkpoint>`."""

    kind: str
    filename: str
    stride: int
    items: tuple[str, ...]  # as written: name(arguments){unit}
    element: Element

    @property
    def keys(self) -> frozenset[str]:
        """Names without arguments and units."""
        return frozenset(re.split(r"[({]", item, maxsplit=1)[0].strip() for item in self.items)


@dataclass(frozen=True)
class InputFacts:
    """All of it."""

    document: Document
    total_steps: int | None
    seed: int | None
    prefix: str
    sockets_prefix: str
    sockets: tuple[Socket, ...]
    systems: tuple[System, ...]
    outputs: tuple[Output, ...]

    @property
    def output_folders(self) -> tuple[Path, ...]:
        """Where the outputs go, seen from where i-PI runs, each folder once."""
        prefix = f"{self.prefix}." if self.prefix else ""
        files = (
            f"{system.prefix}_{prefix}{output.filename}"
            if system.prefix and output.kind != "checkpoint"
            else f"{prefix}{output.filename}"
            for output in self.outputs
            for system in self.systems
        )
        return tuple(dict.fromkeys(Path(file).parent for file in files))

    def outputs_of(self, kind: str) -> tuple[Output, ...]:
        return tuple(output for output in self.outputs if output.kind == kind)
