"""Units: from what i-PI writes between braces to the base units of this package.

Base units are eV, angstrom, ps, amu and K, hence angstrom/ps for velocities, eV/angstrom for forces; pressures are
in GPa and densities in g/cm^3. Conversion factors are i-PI's own, rounded as they are: mixing two sets of constants
in one energy would be a drift of its own.
"""

from __future__ import annotations

import contextlib
import io
import math
from functools import cache

from analysis.errors import UnreadableRun

BASE_UNITS: dict[str, tuple[str, str]] = {  # dimension -> (i-PI's name of our unit, how we print it)
    "energy": ("electronvolt", "eV"),
    "length": ("angstrom", "A"),
    "time": ("picosecond", "ps"),
    "temperature": ("kelvin", "K"),
    "mass": ("dalton", "amu"),
    "force": ("ev/ang", "eV/A"),
    "volume": ("angstrom3", "A^3"),
    "pressure": ("gigapascal", "GPa"),
    "density": ("g/cm3", "g/cm^3"),
    "frequency": ("inversecm", "1/cm"),
    "electric-dipole": ("eang", "e A"),
}
DERIVED_UNITS: dict[str, tuple[str, str, str]] = {  # dimension -> (numerator, denominator, how we print it)
    "velocity": ("length", "time", "A/ps"),
}
DIMENSIONLESS = frozenset({"", "undefined", "number"})
LIGHT_CM_PER_FS = 2.99792458e-5
PLANCK_CM_K = 0.695034800  # k_B/(h c), 1/(cm K)


@cache
def to_internal(dimension: str, unit: str) -> float:
    """i-PI's factor from `unit` to atomic units.

    Raises:
        UnreadableRun: i-PI knows no such unit for this dimension.
    """
    from ipi.utils.units import unit_to_internal

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # i-PI prints its whole table before it raises
            return float(unit_to_internal(dimension, unit, 1.0))
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise UnreadableRun(f"i-PI knows no unit '{unit}' for the dimension '{dimension}'") from error


@cache
def to_base(dimension: str, unit: str) -> float:
    """Factor from `unit`, as i-PI writes it (empty: atomic units), to the base unit of `dimension`."""
    if dimension in DIMENSIONLESS:
        return 1.0
    if dimension in BASE_UNITS:
        return to_internal(dimension, unit) / to_internal(dimension, BASE_UNITS[dimension][0])
    factor = to_internal(dimension, unit)
    if dimension in DERIVED_UNITS:
        numerator, denominator, _ = DERIVED_UNITS[dimension]
        factor *= to_base(numerator, "") / to_base(denominator, "")
    elif dimension == "momentum":
        factor *= to_base("mass", "") * to_base("velocity", "")
    return factor


def base_unit(dimension: str) -> str:
    """How the base unit of `dimension` is printed."""
    if dimension in BASE_UNITS:
        return BASE_UNITS[dimension][1]
    if dimension in DERIVED_UNITS:
        return DERIVED_UNITS[dimension][2]
    if dimension == "momentum":
        return "amu A/ps"
    return "" if dimension in DIMENSIONLESS else "atomic units"


@cache
def boltzmann() -> float:
    """Boltzmann's constant in eV/K, the one that i-PI itself computes with."""
    return to_internal("temperature", "kelvin") / to_internal("energy", "electronvolt")


@cache
def kinetic_unit() -> float:
    """Energy of 1 amu (A/ps)^2 in eV."""
    return to_base("mass", "") ** -1 * to_base("velocity", "") ** -2 * to_base("energy", "")


@cache
def property_dimensions() -> dict[str, tuple[str, int]]:
    """Dimension and number of columns of every property that i-PI can print; 0 columns: depends on the system."""
    from ipi.engine.properties import Properties

    return {
        name: (str(entry.get("dimension", "undefined")), _columns(entry.get("size", 1)))
        for name, entry in Properties().property_dict.items()
    }


def _columns(size: object) -> int:
    return size if isinstance(size, int) else 0


@cache
def trajectory_dimensions() -> dict[str, str]:
    """Dimension of every trajectory that i-PI can print."""
    from ipi.engine.properties import Trajectories

    return {
        name: str(entry.get("dimension", "undefined")) for name, entry in Trajectories().traj_dict.items()
    }


def spring_wavenumber(n_beads: int, temperature_K: float, mode: int) -> float:
    """Of the springs of a normal mode of a ring polymer, omega_k = 2 P k_B T/hbar sin(pi k/P), in 1/cm."""
    return 2.0 * n_beads * temperature_K * PLANCK_CM_K * math.sin(math.pi * mode / n_beads)
