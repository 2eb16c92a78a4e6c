"""The words with which a user names a model, and their meaning.

    MODEL     FILE.pt[,KEY=VALUE...]  or  BUNDLED[,KEY=VALUE...]  or  SCHEME  or  SCHEME:ITEM[,ITEM...]
    ITEM      KEY=VALUE, or at most one bare word (a file, a class), which is kept under the key `POSITIONAL`

BUNDLED is the name of a model that comes with the package. A path may hold colons, not commas; a value may hold commas between
brackets or quotes: `kpts=(2,2,2)`. Values stay strings here: only a loader knows which of them are numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from forceserver.errors import UsageError, suggest

if TYPE_CHECKING:
    from forceserver.models import BundledModel

POSITIONAL = ""  # a key that nobody can type: calculators have keywords of all names
FILE_SCHEME = "metatomic"
FILE_SUFFIX = ".pt"
PATH_OPTIONS = ("extensions",)
QUOTED = re.compile(r"""(['"])(.*?)\1""")


def parse(
    spec: str, *, schemes: Iterable[str], bundled: Mapping[str, BundledModel] = {}
) -> tuple[str, dict[str, str]]:
    """Split the name of a model into its scheme and its options.

    Args:
        spec: what the user wrote.
        schemes: the names of all loaders.
        bundled: the models that come with the package, by name.

    Raises:
        UsageError: neither a scheme, a file nor a bundled model; an item is empty or given twice; a bundled file is lost.
    """
    scheme, _, rest = spec.partition(":")
    known = sorted(schemes)
    if scheme in known:
        return scheme, _parse_items(spec, rest)
    name, _, items = spec.partition(",")
    if name in bundled:
        options = _parse_items(spec, items)
        if POSITIONAL in options:
            raise UsageError(f"model '{spec}': '{options[POSITIONAL]}' is not KEY=VALUE; {name} has its file")
        return bundled[name].scheme, {POSITIONAL: str(bundled[name].find()), **options}
    if name.endswith(FILE_SUFFIX):
        return FILE_SCHEME, _parse_items(spec, spec)
    raise UsageError(
        f"unknown model '{spec}'{suggest(scheme, [*known, *bundled])}. Wanted a metatomic file (*{FILE_SUFFIX}), a bundled "
        f"model ({', '.join(bundled)}) or SCHEME[:OPTIONS] with SCHEME one of {', '.join(known)}"
    )


def anchored(spec: str) -> str:
    """The name of a model that means the same from any folder: every path in it made absolute, be it there or not."""
    head, *items = _split_items(spec)
    scheme, colon, word = head.partition(":")
    if scheme == FILE_SCHEME and word:
        head = scheme + colon + _absolute(word)
    elif head.endswith(FILE_SUFFIX):
        head = _absolute(head)
    return ",".join([head, *map(_anchored_item, items)])


def _anchored_item(item: str) -> str:
    """KEY=VALUE, where the value may be a path, or hold paths in quotes, as a Python literal does: `dirs=['a/', 'b/']`."""
    key, separator, value = item.partition("=")
    if QUOTED.search(value):
        value = QUOTED.sub(lambda quoted: quoted[1] + _anchored_path(quoted[2]) + quoted[1], value)
    elif value:
        value = _absolute(value) if key in PATH_OPTIONS else _anchored_path(value)
    return key + separator + value


def _anchored_path(text: str) -> str:
    """Only a loader knows its paths: one is what looks like a path and is there, and no number."""
    looks_like_one = "/" in text or bool(Path(text).suffix)
    return (
        _absolute(text)
        if looks_like_one and not _is_number(text) and Path(_absolute(text)).exists()
        else text
    )


def _absolute(path: str) -> str:
    try:
        return str(Path(path).expanduser().resolve())
    except RuntimeError:  # ~NAME, and nobody has it
        return str(Path(path).resolve())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_numbers(scheme: str, options: Mapping[str, str], defaults: Mapping[str, float]) -> dict[str, float]:
    """The numeric options of a scheme, the defaults filled in.

    Raises:
        UsageError: an option that `defaults` does not know, or a value that is not a finite number.
    """
    check_keys(scheme, options, defaults)
    numbers = dict(defaults)
    for key, text in options.items():
        try:
            numbers[key] = float(text)
        except ValueError:
            numbers[key] = math.nan
        if not math.isfinite(numbers[key]):
            raise UsageError(f"{scheme}: option '{key}' must be a finite number, got '{text}'")
    return numbers


def check_keys(scheme: str, options: Mapping[str, str], known: Iterable[str]) -> None:
    """Refuse options that a scheme does not have.

    Raises:
        UsageError: names the alternatives and the nearest of them.
    """
    known = set(known)
    named = sorted(known - {POSITIONAL})
    for key in options:
        if key not in known:
            wanted = f"options of {scheme}: {', '.join(named)}" if named else f"{scheme} has no options"
            what = f"'{options[key]}' without a key" if key == POSITIONAL else f"unknown option '{key}'"
            raise UsageError(f"{scheme}: {what}{suggest(key, named)}; {wanted}")


def require_positive(scheme: str, numbers: Mapping[str, float], keys: Iterable[str]) -> None:
    """Refuse options that must be positive and are not.

    Raises:
        UsageError: names the option and its value.
    """
    for key in keys:
        if numbers[key] <= 0.0:
            raise UsageError(f"{scheme}: option '{key}' must be positive, got {numbers[key]:g}")


def _split_items(text: str) -> list[str]:
    """Split at the commas that stand neither between brackets nor in quotes."""
    items, depth, quote = [""], 0, ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and letter in text[place + 1 :]:
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth = max(0, depth - 1)
        if letter == "," and not depth and not quote:
            items.append("")
        else:
            items[-1] += letter
    return items


def _parse_items(spec: str, rest: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in _split_items(rest) if rest else []:
        word, separator, value = item.partition("=")
        key = word.strip() if separator else POSITIONAL
        value = (value if separator else item).strip()
        if (separator and not key) or not value:
            raise UsageError(f"model '{spec}': '{item}' is not KEY=VALUE; write for example harmonic:k=2.0")
        if key in options:
            twice = f"'{key}' is given twice" if separator else "two words stand without a key"
            raise UsageError(f"model '{spec}': {twice}, '{options[key]}' and '{value}'")
        options[key] = value
    return options
