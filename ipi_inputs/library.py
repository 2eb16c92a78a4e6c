"""The library of inputs: find one by name, edit it, write it where it runs.

    load("nve-mts").with_(steps=1000, seed=7, structure="ice.xyz").write("run/input.xml")

Units: every edit says its own (timestep_fs, temperature_K, pressure_GPa, tau_fs).
"""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypedDict, Unpack

from ipi_inputs.document import Document, InputError, parse, value_of
from ipi_inputs.facts import InputFacts
from ipi_inputs.reading import read_facts
from ipi_inputs.starting import structure_elements, with_local_names

FOLDER = Path(__file__).parent

_XML_DECLARATION = re.compile(r"\A\ufeff?(<\?xml\s[^>]*>\s*)?")  # nothing may stand before it


class Edits(TypedDict, total=False):
    """What `with_` takes. README.md says what each means where it could be misread."""

    steps: int  # total_steps: outer steps of a run with multiple time stepping
    seed: int
    temperature_K: float  # of the ensemble and of the velocities at the start
    pressure_GPa: float
    timestep_fs: float  # i-PI's <timestep>: the OUTER step
    mts: (
        int | tuple[int, ...]
    )  # inner steps per outer step; keeps the INNER step unless timestep_fs comes with it
    n_beads: int
    contracted_beads: int  # beads of the contracted force components
    tau_fs: float  # of the thermostat of the atoms
    forces: str  # conservative, direct, blended:X
    structure: str | Path
    address: str  # of the sockets; several sockets get "-NAME" behind it
    prefix: str  # of the output files


@dataclass(frozen=True)
class InputFile:
    """One i-PI input. Immutable: an edit gives another one.

    Attributes:
        name: under which it was loaded.
        text: the XML.
        folder: where the file names inside it start from.
        edits: what was changed since it was loaded, in words.
    """

    name: str
    text: str
    folder: Path
    edits: tuple[str, ...] = ()

    @cached_property
    def document(self) -> Document:
        return parse(self.text)

    @cached_property
    def facts(self) -> InputFacts:
        return read_facts(self.document)

    @property
    def header(self) -> str:
        """The comment at the top, without its markers."""
        before = self.text[: self.document.root.start_tag[0]]
        return before.partition("<!--")[2].partition("-->")[0].strip()

    @property
    def summary(self) -> str:
        """The first sentence of the header."""
        return " ".join(self.header.split("\n\n")[0].split())

    @property
    def structures(self) -> tuple[Path, ...]:
        """The files that it starts from."""
        systems = (system.element for system in self.facts.systems)
        files = dict.fromkeys(value_of(node) for system in systems for node in structure_elements(system))
        return tuple(self.folder / file for file in files)

    def with_(self, **edits: Unpack[Edits]) -> InputFile:
        """An edited copy, accepted by i-PI's own input classes.

        Raises:
            InputError: an edit that does not exist or that this input cannot take (the message names what it can), or
                a result that i-PI refuses.
        """
        from ipi_inputs.edits import EDITS, require_contraction
        from ipi_inputs.judge import judge

        _require_known(edits, EDITS, "edit")
        text, notes = self.text, [note for note in self.edits if note.partition("=")[0] not in edits]
        for key in (known for known in EDITS if known in edits):
            value = edits[key]  # type: ignore[literal-required]
            text = EDITS[key](InputFile(self.name, text, self.folder), value)
            notes.append(f"{key}={Path(value).name if key == 'structure' else value}")
        edited = replace(self, text=text, edits=tuple(notes))
        require_contraction(edited)
        judge(text, self.folder)
        return edited

    def write(self, path: str | Path) -> Path:
        """Write the input and put its structure beside it, so that `i-pi FILE` runs in that folder.

        An edited input says so at its top, since the header describes the unedited one.

        Raises:
            InputError: another file stands where the structure would go, no structure is there to copy, the labels of
                a template name files in other folders, outputs would go to a folder that is not there, or nothing can be
                written.
        """
        target = Path(path)
        local = replace(self, text=with_local_names(self.document))
        for structure in local.structures:
            if structure.parent != self.folder:
                raise InputError(
                    f"a template of {self.name} starts from {structure}; wanted labels that stand for bare names of files"
                )
        if target.is_dir():
            raise InputError(f"{target} is a folder, wanted the name of a file, e.g. {target / 'input.xml'}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._require_output_folders(target.parent)
            for structure in self.structures:
                _copy(structure, target.parent / structure.name)
            target.write_text(local._with_edit_note())
        except OSError as error:
            raise InputError(f"cannot write {target}: {error}") from None
        return target

    def _require_output_folders(self, run_folder: Path) -> None:
        for folder in self.facts.output_folders:
            if not (run_folder / folder).is_dir():
                raise InputError(
                    f"the outputs of {self.name} would go to {run_folder / folder}, a folder that is not there and that i-PI "
                    "does not make; make it first, or give a prefix without '/'"
                )

    def _with_edit_note(self) -> str:
        if not self.edits:
            return self.text
        note = f"{self.name} with {', '.join(self.edits)}; the header describes it without these edits."
        comment = f"<!-- {re.sub('-(?=-)', '- ', note)} -->\n"  # two hyphens would end the comment
        return _XML_DECLARATION.sub(lambda start: start[0] + comment, self.text, count=1)


def names() -> list[str]:
    """The names of all inputs of the library."""
    return sorted(path.stem for path in FOLDER.glob("*.xml"))


def load(name: str) -> InputFile:
    """An input of the library by its name, or any other i-PI input by its path (which then ends in .xml).

    Raises:
        InputError: no such input; the message names the nearest ones.
    """
    path = Path(name) if name.endswith(".xml") else FOLDER / f"{name}.xml"
    if not name.endswith(".xml"):
        _require_known([name], names(), "input")
    try:
        return InputFile(path.stem, path.read_text(), path.parent)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the input {name}: {error}") from None


def _require_known(asked: Iterable[str], known: Iterable[str] | Mapping[str, object], what: str) -> None:
    choices = list(known)
    for word in asked:
        if word in choices:
            continue
        close = difflib.get_close_matches(word, choices, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise InputError(f"there is no {what} '{word}'{hint}; there are: {', '.join(choices)}")


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise InputError(
            f"the input starts from {source}, which is not there; give another with structure=FILE"
        )
    if target.exists() and target.samefile(source):
        return
    if target.exists() and target.read_bytes() != source.read_bytes():
        raise InputError(
            f"{target} exists and differs from {source}, the structure of this input; "
            "write to another folder, or rename one of the two"
        )
    shutil.copyfile(source, target)
