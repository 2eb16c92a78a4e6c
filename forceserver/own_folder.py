"""A folder that a command writes its results into: ours by a marker file, so that nobody loses files to us.

The folder itself is never removed: it may be a link, or the one where the user stands.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from forceserver.errors import UsageError


def claim(folder: Path, marker: str) -> None:
    """Make the folder, if it is not there; nothing in it is touched.

    Raises:
        UsageError: it cannot be a folder, or holds files and no marker.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_free = (folder / marker).exists() or not any(folder.iterdir())
    except OSError as error:
        raise UsageError(
            f"{folder} is no folder and cannot be made one ({error.strerror}); name another with -o"
        ) from None
    if not is_free:
        raise UsageError(f"{folder} holds other files; name another folder with -o, or move them away")


def remove(entry: Path) -> None:
    """A file, a link, or a folder with all that is in it."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
