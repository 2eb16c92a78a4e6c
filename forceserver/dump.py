"""Evidence: the structure on which something went wrong, written so that the failure can be repeated.

Extended XYZ, angstrom, full float64 precision.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

from forceserver.structures import ForceRole, Structure


def dump_structure(structure: Structure, directory: Path, *, reason: str, role: ForceRole | None) -> Path:
    """Write a structure to a fresh file `bad-structure-N.xyz`; nothing that exists is overwritten.

    Returns:
        The path, or where it should have gone if the directory cannot be written: the message about the forces must not be
        replaced by one about a disk.
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
    for attempt in count(1):
        path = directory.resolve() / f"bad-structure-{attempt}.xyz"
        try:
            with path.open("x") as file:
                file.write("\n".join(lines) + "\n")
        except FileExistsError:
            continue
        except OSError as error:
            return Path(f"{path} (not written: {error.strerror})")
        return path
    raise AssertionError("unreachable: count() does not end")
