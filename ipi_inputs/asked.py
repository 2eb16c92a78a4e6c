"""The values that a user gives to an edit, checked, as the text that goes into the input."""

from __future__ import annotations

from math import isfinite
from numbers import Integral, Real

from ipi_inputs.document import InputError


def whole(name: str, number: object, smallest: int) -> str:
    """A whole number, at least so large."""
    if isinstance(number, bool) or not isinstance(number, Integral) or number < smallest:
        raise InputError(f"{name}: wanted a whole number, at least {smallest}, got {number!r}")
    return str(number)


def finite(name: str, number: object) -> str:
    """Any number."""
    if isinstance(number, bool) or not isinstance(number, Real) or not isfinite(number):
        raise InputError(f"{name}: wanted a number, got {number!r}")
    return f"{float(number):.10g}"


def positive(name: str, number: object) -> str:
    """A number above zero."""
    text = finite(name, number)
    if float(text) <= 0:
        raise InputError(f"{name}: wanted a positive number, got {number!r}")
    return text


def fraction(name: str, text: str) -> str:
    """The text of a number between 0 and 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise InputError(f"{name}: wanted blended:X with X between 0 and 1, got X = '{text}'")
    return f"{number:.10g}"
