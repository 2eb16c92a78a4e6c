"""What is simulated. A case is named by its numbers, so that others than the usual ones can be asked for. Times in fs."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from forceserver.errors import UsageError, suggest
from forceserver.structures import CONSERVATIVE, DIRECT, ForceKind

INNER_STEP_FS = 0.5
INNER_STEP_OF_BEADS_FS = 0.25

USUAL = (
    "conservative", "direct", "pimd-8", "pimd-32", "mts-2", "mts-4", "mts-8",
    "pimd-8-mts-4", "rpc-16-4-mts-4", "simulations-4", "simulations-8",
)  # fmt: skip
QUICK = ("conservative", "mts-4", "pimd-8")
GRAMMAR = (
    "conservative, direct, pimd-BEADS, mts-M, pimd-BEADS-mts-M, rpc-BEADS-CONTRACTED-mts-M, simulations-N"
)


@dataclass(frozen=True)
class Component:
    """One `<force>` of the input."""

    kind: ForceKind
    n_beads: int  # of the ring polymer on which it is evaluated
    weights: tuple[int, ...]  # mts_weights, outer level first


@dataclass(frozen=True)
class Case:
    """One simulation, or several alike at once."""

    name: str
    title: str
    components: tuple[Component, ...]
    n_beads: int = 1
    n_inner_steps: int = 1  # M, of one step of i-PI
    n_simulations: int = 1
    repeats_of_cell: tuple[int, int, int] = (1, 1, 1)

    @property
    def kinds(self) -> tuple[ForceKind, ...]:
        """Each is a force field of its own, with a socket of its own."""
        return tuple(dict.fromkeys(component.kind for component in self.components))

    @property
    def timestep_fs(self) -> float:
        """i-PI's: the outer one."""
        return self.n_inner_steps * (INNER_STEP_FS if self.n_beads == 1 else INNER_STEP_OF_BEADS_FS)

    @property
    def n_steps_of_warm_up(self) -> int:
        """TorchScript needs several calls of each kind, and multiple time stepping two outer steps to show its rhythm."""
        is_small = self.n_beads == self.n_inner_steps == 1 and self.repeats_of_cell == (1, 1, 1)
        return 10 if is_small else 5

    def most_at_once(self, kind: ForceKind) -> int:
        """Structures that one simulation asks of one force field at a time, at most."""
        return max(component.n_beads for component in self.components if component.kind == kind)

    def passes(self) -> list[tuple[int, frozenset[ForceKind]]]:
        """The fewest model calls that one step of all simulations can do with: (structures, kinds of forces) each.

        A pass gives both kinds of forces where both are wanted of one geometry.
        """
        n_replicas = self.n_beads * self.n_simulations
        if len(self.components) == 1:
            return [(n_replicas, frozenset(self.kinds))]
        both = frozenset({CONSERVATIVE, DIRECT})
        n_corrected = self.most_at_once(CONSERVATIVE) * self.n_simulations
        inner = (n_replicas, frozenset({DIRECT}))
        n_inner = self.n_inner_steps - (n_corrected == n_replicas)
        return [inner] * n_inner + [(n_corrected, both)]


def parse_cases(text: str) -> list[Case]:
    """The cases of a list of names with commas between them; "" for the usual ones.

    Raises:
        UsageError: a name that is none, or numbers that make no sense.
    """
    names = [name.strip() for name in text.split(",") if name.strip()] or list(USUAL)
    return [parse_case(name) for name in dict.fromkeys(names)]


def parse_case(name: str) -> Case:
    """Raises:
    UsageError: see `parse_cases`.
    """
    if name == CONSERVATIVE:
        return Case(name, "classical, conservative forces", (Component(CONSERVATIVE, 1, (1,)),))
    if name == DIRECT:
        return Case(name, "classical, direct forces", (Component(DIRECT, 1, (1,)),))
    if match := re.fullmatch(r"simulations-(\d+)", name):
        count = _count(name, match[1], 2)
        return replace(
            parse_case(CONSERVATIVE),
            name=name,
            title=f"{count} classical simulations at once, conservative forces",
            n_simulations=count,
        )
    if match := re.fullmatch(r"(?:pimd-(\d+))?-?(?:mts-(\d+))?", name):
        return _path_integral(name, match[1], match[2])
    if match := re.fullmatch(r"rpc-(\d+)-(\d+)-mts-(\d+)", name):
        return _contracted(name, *(_count(name, word, 1) for word in match.groups()))
    raise UsageError(f"--cases: there is no case '{name}'{suggest(name, USUAL)}; wanted of {GRAMMAR}")


def sizes_of_cell(n_atoms: int, most_atoms: int) -> list[tuple[int, int, int]]:
    """How often the cell is repeated along each vector: doubled from one to the next, the shortest side first."""
    sizes = [(1, 1, 1)]
    while True:
        last = list(sizes[-1])
        last[last.index(min(last))] *= 2
        if n_atoms * last[0] * last[1] * last[2] > most_atoms:
            return sizes
        sizes.append((last[0], last[1], last[2]))


def scaling_cases(n_atoms: int, most_atoms: int, most_beads: int) -> tuple[list[Case], list[Case]]:
    """Conservative forces: cells of more and more atoms, and ring polymers of more and more beads."""
    classical = parse_case(CONSERVATIVE)
    cells = [
        replace(classical, name=f"atoms-{count}", title=f"classical, {count} atoms", repeats_of_cell=size)
        for size in sizes_of_cell(n_atoms, most_atoms)
        for count in [n_atoms * size[0] * size[1] * size[2]]
    ]
    beads = [classical, *(parse_case(f"pimd-{2**k}") for k in range(1, max(1, most_beads).bit_length()))]
    polymers = [
        replace(case, name=f"beads-{case.n_beads}", title=f"{case.n_beads} beads, conservative forces")
        for case in beads
    ]
    return cells, polymers


def _path_integral(name: str, beads: str | None, inner_steps: str | None) -> Case:
    n_beads = _count(name, beads, 2) if beads else 1
    if inner_steps is None:
        every_bead = (Component(CONSERVATIVE, n_beads, (1,)),)
        return Case(name, f"path integrals, {n_beads} beads, conservative forces", every_bead, n_beads)
    m = _count(name, inner_steps, 2)
    components = (Component(CONSERVATIVE, n_beads, (1, 0)), Component(DIRECT, n_beads, (-1, 1)))
    ring = f"{n_beads} beads, " if beads else ""
    return Case(name, f"{ring}multiple time stepping, M = {m}", components, n_beads, m)


def _contracted(name: str, n_beads: int, n_contracted: int, m: int) -> Case:
    if not (n_contracted < n_beads and m >= 2):
        raise UsageError(
            f"--cases: '{name}' wants fewer contracted beads than beads, and M of 2 or more; e.g. rpc-16-4-mts-4"
        )
    components = (
        Component(CONSERVATIVE, n_contracted, (1, 0)),
        Component(DIRECT, n_contracted, (-1, 0)),
        Component(DIRECT, n_beads, (0, 1)),
    )
    return Case(name, f"{n_beads} beads contracted to {n_contracted}, M = {m}", components, n_beads, m)


def _count(name: str, digits: str, least: int) -> int:
    if int(digits) < least:
        raise UsageError(f"--cases: '{name}': wanted {least} or more, got {digits}")
    return int(digits)
