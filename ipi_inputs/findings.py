"""The words of the linter: a rule, the case it looks at, and what it finds. Units: fs and amu, as in `facts` and `judge`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ipi_inputs.document import Element, find
from ipi_inputs.facts import InputFacts, System

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")

Hit = tuple[Element | int, str]  # where (an element, or a line), and what was found there


@dataclass(frozen=True)
class Finding:
    """Something wrong with an input."""

    rule: str
    level: Level
    line: int
    what: str
    why: str
    remedy: str
    reference: str

    def as_json(self) -> dict[str, str | int]:
        """The fields by name, in this order."""
        return asdict(self)


@dataclass(frozen=True)
class Case:
    """One input under examination, with what i-PI made of it.

    Attributes:
        refusal: why i-PI does not accept it; "" where it does.
        masses_amu: mass by species; empty where the structure could not be read.
        keeps_net_force: whether the force server will run with `--net-force keep`.
    """

    facts: InputFacts
    folder: Path
    refusal: str
    masses_amu: Mapping[str, float]
    keeps_net_force: bool = False

    @property
    def dynamics(self) -> Iterator[System]:
        """The systems that move in time."""
        return (system for system in self.facts.systems if system.motion == "dynamics")

    @property
    def is_restart(self) -> bool:
        """Whether i-PI wrote it: in atomic units, without seed, and without what has its default value."""
        return find(self.facts.document.root, "prng/state") is not None


@dataclass(frozen=True)
class Rule:
    """What to look for, how bad it is, and what to tell the user."""

    name: str
    level: Level
    check: Callable[[Case], Iterator[Hit]]
    why: str
    remedy: str
    reference: str

    def findings(self, case: Case) -> Iterator[Finding]:
        """All places of a case where this rule is broken."""
        for where, what in self.check(case):
            line = where if isinstance(where, int) else where.line
            yield Finding(self.name, self.level, line, what, self.why, self.remedy, self.reference)
