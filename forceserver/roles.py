"""What a socket wants, in the words that a user writes into the i-PI input.

<parameters>{forces: direct}</parameters>
<parameters>{forces: blended, direct_fraction: 0.25, model: NAME}</parameters>
"""

from __future__ import annotations

from collections.abc import Mapping

from forceserver.errors import UsageError, suggest
from forceserver.structures import DEFAULT_MODEL, ForceRole

FRACTIONS = {"conservative": 0.0, "direct": 1.0}
PARAMETERS = ("forces", "direct_fraction", "model")


def parse_role(parameters: Mapping[str, str], default: ForceRole, models: frozenset[str]) -> ForceRole:
    """The role that the parameters of an `<ffsocket>` ask for; what they leave open is taken from `default`.

    Raises:
        UsageError: a parameter, a kind of forces, a fraction or a model that does not exist.
    """
    for name in parameters:
        if name not in PARAMETERS:
            raise UsageError(
                f"unknown parameter '{name}' in the <parameters> of an <ffsocket>{suggest(name, PARAMETERS)}; "
                f"known: {', '.join(PARAMETERS)}"
            )
    model = parameters.get("model", default.model)
    if model not in models:
        served = ", ".join(sorted(models))
        remedy = f"add --also {model}=MODEL" if model != DEFAULT_MODEL else "remove it"
        raise UsageError(f"an <ffsocket> asks for model '{model}', this server holds: {served}; {remedy}")
    fraction_text = parameters.get("direct_fraction")
    forces = parameters.get("forces")
    if forces is None:
        if fraction_text is not None:
            raise UsageError(
                "direct_fraction stands without 'forces: blended' in the <parameters> of an <ffsocket>"
            )
        return ForceRole(default.direct_fraction, model)
    return ForceRole(parse_forces(forces, fraction_text), model)


def parse_forces(forces: str, fraction_text: str | None) -> float:
    """From "conservative", "direct" or "blended" (with its fraction) to the fraction of direct forces.

    Raises:
        UsageError: anything else.
    """
    if forces in FRACTIONS:
        if fraction_text is not None:
            raise UsageError(
                f"direct_fraction means something with 'forces: blended' only, got 'forces: {forces}'"
            )
        return FRACTIONS[forces]
    if forces != "blended":
        kinds = (*FRACTIONS, "blended")
        raise UsageError(
            f"unknown forces '{forces}'{suggest(forces, kinds)}; wanted one of: {', '.join(kinds)}"
        )
    if fraction_text is None:
        raise UsageError("'forces: blended' needs 'direct_fraction: X' beside it, X between 0 and 1")
    return parse_fraction(fraction_text)


def parse_forces_option(text: str) -> ForceRole:
    """The value of `--forces`: `conservative`, `direct` or `blended:X`.

    Raises:
        UsageError: anything else.
    """
    forces, separator, fraction_text = text.partition(":")
    if forces == "blended" and not separator:
        raise UsageError("--forces blended needs its fraction of direct forces, e.g. blended:0.25")
    return ForceRole(parse_forces(forces, fraction_text if separator else None))


def parse_fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = float("nan")
    if not 0.0 <= fraction <= 1.0:
        raise UsageError(f"the fraction of direct forces must be a number between 0 and 1, got '{text}'")
    return fraction
