"""Evidence: the structure on which something went wrong, written so that the failure can be repeated.

Extended XYZ, angstrom, full float64 precision.
"""

from __future__ import annotations

import tempfile
from itertools import count
from pathlib import Path

from forceserver.structures import ForceRole, Structure

NAME = "bad-structure-{}.xyz"


def dump_structure(structure: Structure, directory: Path, *, reason: str, role: ForceRole | None) -> Path:
    """Write a structure to a fresh file `bad-structure-N.xyz`; nothing that exists is overwritten.

    Returns:
        The path; where the directory is full or read-only, one in the folder for temporary files, or where it should have gone:
        the message about the forces must not be replaced by one about a disk.
    """
    from ase.data import chemical_symbols

    lattice = " ".join(repr(float(number)) for number in structure.cell.ravel())
    pbc = " ".join("T" if periodic else "F" for periodic in structure.pbc)
    about = f'reason="{reason.replace(chr(34), chr(39))}"' + (
        f' forces="{role}" model="{role.model}"' if role else ""
    )
    lines = [
        str(structure.n_atoms),
        f'Lattice="{lattice}" Properties=species:S:1:pos:R:3 pbc="{pbc}" {about}',
    ]
    for number, position in zip(structure.atomic_numbers, structure.positions, strict=True):
        lines.append(f"{chemical_symbols[number]} " + " ".join(repr(float(x)) for x in position))
    text = "\n".join(lines) + "\n"
    wanted = directory.resolve()
    try:
        return _write_afresh(text, wanted)
    except OSError as error:
        why = error.strerror
    elsewhere = Path(tempfile.gettempdir())
    try:
        path = _write_afresh(text, elsewhere)
    except OSError:
        return Path(f"{wanted / NAME.format(1)} (not written: {why})")
    return Path(f"{path} (in {wanted}: {why})")


def _write_afresh(text: str, directory: Path) -> Path:
    """Raises:
    OSError: the directory cannot be written, or is full; half a structure is not left there.
    """
    for number in count(1):
        path = directory / NAME.format(number)
        try:
            file = path.open("x")
        except FileExistsError:
            continue
        try:
            with file:
                file.write(text)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return path
    raise AssertionError("unreachable: count() does not end")
