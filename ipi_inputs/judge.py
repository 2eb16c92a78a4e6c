"""i-PI's own classes as the judge of an input: parse it, build the simulation, bind it, open nothing.

What i-PI does not check itself (units in outputs, names of columns) is checked by the rules of the linter. Atomic units
inside i-PI; masses leave in amu.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipi_inputs.document import InputError, parse
from ipi_inputs.starting import READS_FILES


@dataclass(frozen=True)
class Judgement:
    """What i-PI made of an input."""

    masses_amu: Mapping[str, float]  # by label, in order of appearance, of the first system
    n_atoms: int

    @property
    def species(self) -> tuple[str, ...]:
        return tuple(self.masses_amu)


def judge(text: str, folder: Path) -> Judgement:
    """Let i-PI build the simulation of an input, up to the point where it would open sockets and outputs.

    Args:
        text: the input.
        folder: where the file names inside the input start from.

    Raises:
        InputError: i-PI refuses the input; the message is i-PI's own.
    """
    parse(text)  # i-PI's own parser does not say in which line the XML is broken
    with _quiet_ipi() as said:
        try:
            return _build(text, folder.absolute())
        except SystemExit:  # what i-PI does instead of raising, having printed why
            reason = said.getvalue()
        except KeyError as error:  # as a rule it says the key and nothing else
            key = str(error.args[0])
            reason = key if " " in key else f"it knows no '{key}'"
        except Exception as error:  # i-PI raises whatever it likes
            reason = str(error) or type(error).__name__
    raise InputError(f"i-PI refuses this input: {' '.join(reason.split())}")


def _build(text: str, folder: Path) -> Judgement:
    from ipi.inputs.simulation import InputSimulation
    from ipi.utils.io.inputs.io_xml import xml_parse_string
    from ipi.utils.units import Constants

    reader = InputSimulation()
    reader.parse(xml_parse_string(text).fields[0][1])
    reader.verbosity.value = "quiet"
    # Other force fields would load drivers or start MPI just by being built: a socket of the same name stands in.
    reader.extra = [_stand_in(tag, part, folder) for tag, part in reader.extra]
    simulation = reader.fetch()
    simulation.bind(read_only=True)
    beads = simulation.syslist[0].beads
    masses = {str(name): float(mass) / Constants.amu for name, mass in zip(beads.names, beads.m, strict=True)}
    return Judgement(masses, int(beads.natoms))


def _stand_in(tag: str, part: Any, folder: Path) -> tuple[str, Any]:
    if tag in ("system", "system_template"):
        return tag, _Systems(part, folder)
    if tag == "ffsocket":
        return tag, part
    from ipi.inputs.forcefields import InputFFSocket

    socket = InputFFSocket()
    socket.name.store(part.name.fetch())
    return "ffsocket", socket


@dataclass(frozen=True)
class _Systems:
    """i-PI's reader of a `<system>` or a template, for an input whose files are not where we run.

    The names are completed after i-PI has put in the labels of a template, which may also occur in the path of the folder.
    """

    reader: Any
    folder: Path

    def fetch(self) -> Any:
        """What i-PI's reader gives: a system, or the systems of a template."""
        fetched = self.reader.fetch()
        for system in fetched if isinstance(fetched, list) else [fetched]:
            for _, start in system.init.queue:
                if start.mode in READS_FILES:
                    start.value = str(self.folder / start.value)
        return fetched


@contextlib.contextmanager
def _quiet_ipi() -> Iterator[io.StringIO]:
    """i-PI prints to stdout and keeps its verbosity and number format in globals: catch the one, restore the others."""
    from ipi import ipi_global_settings
    from ipi.utils.messages import verbosity

    settings, level = dict(ipi_global_settings), verbosity.level
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            yield said
        finally:
            ipi_global_settings.update(settings)
            object.__setattr__(verbosity, "level", level)  # its own setter takes names, not levels
