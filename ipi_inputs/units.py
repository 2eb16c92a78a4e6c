"""i-PI's own unit tables, asked quietly. Times leave here in fs, temperatures in K, pressures in GPa.

The tables live in i-PI, whose import takes most of a second: nothing here imports it before it is needed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping

USER_UNITS = {
    "time": "femtosecond",
    "temperature": "kelvin",
    "pressure": "gigapascal",
    "length": "angstrom",
    "frequency": "inversecm",
}


class UnitError(ValueError):
    """A unit that i-PI does not know for a quantity of this dimension."""


def is_known(dimension: str) -> bool:
    """Whether i-PI has units for a dimension at all."""
    return dimension in _unit_map() and dimension != "undefined"


def names(dimension: str) -> tuple[str, ...]:
    """The base units of a dimension, without the magnitude prefixes (femto, mega, ...) that may stand before them."""
    return tuple(unit for unit in _unit_map()[dimension] if unit not in ("", "automatic"))


def to_atomic(dimension: str, unit: str, number: float = 1.0) -> float:
    """A number in a unit, in atomic units.

    Raises:
        UnitError: i-PI does not know the unit; i-PI itself finds this out only when it writes or reads the quantity.
    """
    from ipi.utils.units import unit_to_internal

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return float(unit_to_internal(dimension, unit, number))
    except (TypeError, ValueError, KeyError, IndexError):
        raise UnitError(
            f"unknown unit '{unit}' for a quantity of dimension {dimension}; wanted one of "
            f"{', '.join(names(dimension))}, with a prefix such as femto, pico, mega, giga where it helps"
        ) from None


def to_user(dimension: str, unit: str, number: float) -> float:
    """A number in any of i-PI's units, in ours: fs, K, GPa, angstrom, 1/cm."""
    return to_atomic(dimension, unit, number) / to_atomic(dimension, USER_UNITS[dimension])


def _unit_map() -> Mapping[str, Mapping[str, float]]:
    from ipi.utils.units import UnitMap

    table: Mapping[str, Mapping[str, float]] = UnitMap
    return table
