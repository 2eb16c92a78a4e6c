"""The words with which a user names a model, and their meaning.

    MODEL     FILE.pt[,KEY=VALUE...]  or  SCHEME  or  SCHEME:ITEM[,ITEM...]
    ITEM      KEY=VALUE, or at most one bare word, which is kept under the key `model` (a file, a class)

A path may hold colons, not commas. Values stay strings here: only a loader knows which of them are numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from forceserver.errors import UsageError, suggest

POSITIONAL = "model"
FILE_SCHEME = "metatomic"
FILE_SUFFIX = ".pt"


def parse(spec: str, *, schemes: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Split the name of a model into its scheme and its options.

    Raises:
        UsageError: the scheme is not among `schemes`, an item is empty or given twice.
    """
    scheme, _, rest = spec.partition(":")
    known = sorted(schemes)
    if scheme in known:
        return scheme, _parse_items(spec, rest)
    if spec.split(",")[0].endswith(FILE_SUFFIX):
        return FILE_SCHEME, _parse_items(spec, spec)
    raise UsageError(
        f"unknown model '{spec}'{suggest(scheme, known)}. Wanted a metatomic file (*{FILE_SUFFIX}) or SCHEME[:OPTIONS] "
        f"with SCHEME one of {', '.join(known)}"
    )


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
    known = sorted(known)
    for key in options:
        if key not in known:
            wanted = f"options of {scheme}: {', '.join(known)}" if known else f"{scheme} has no options"
            what = f"'{options[key]}' without a key" if key == POSITIONAL else f"unknown option '{key}'"
            raise UsageError(f"{scheme}: {what}{suggest(key, known)}; {wanted}")


def require_positive(scheme: str, numbers: Mapping[str, float], keys: Iterable[str]) -> None:
    """Refuse options that must be positive and are not.

    Raises:
        UsageError: names the option and its value.
    """
    for key in keys:
        if numbers[key] <= 0.0:
            raise UsageError(f"{scheme}: option '{key}' must be positive, got {numbers[key]:g}")


def _parse_items(spec: str, rest: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in rest.split(",") if rest else []:
        key, separator, value = item.partition("=")
        if not separator:
            key, value = POSITIONAL, item
        if not key.strip() or not value.strip():
            raise UsageError(f"model '{spec}': '{item}' is not KEY=VALUE; write for example harmonic:k=2.0")
        if key.strip() in options:
            raise UsageError(
                f"model '{spec}': '{key.strip()}' is given twice, '{options[key.strip()]}' and '{value}'"
            )
        options[key.strip()] = value.strip()
    return options
