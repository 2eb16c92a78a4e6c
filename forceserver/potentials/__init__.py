"""Potentials: every kind of model that can be served, behind one interface.

`LOADERS` is the whole registry. A loader is `load(options, *, device, dtype) -> Potential`, with `options` the words
after the scheme (`specification.parse`) and `dtype` None where the user left the precision to the model. Nothing heavy
is imported before a model is loaded, so that the command line can list the schemes without torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, cast

from forceserver.errors import UsageError
from forceserver.models import BUNDLED
from forceserver.potentials.specification import parse

if TYPE_CHECKING:
    import torch

    from forceserver.potentials.interface import Potential

DtypeName = Literal["float32", "float64"]

LOADERS: dict[str, str] = {
    "ase": "forceserver.potentials.ase:load",
    "harmonic": "forceserver.potentials.harmonic:load",
    "lennard_jones": "forceserver.potentials.lennard_jones:load",
    "lj": "forceserver.potentials.lennard_jones:load",
    "metatomic": "forceserver.potentials.metatomic:load",
    "noop": "forceserver.potentials.harmonic:load_noop",
    "qtip4pf": "forceserver.potentials.qtip4pf:load",
}

# Schemes that need more than the core dependencies: the extra that brings it, which has the name of the package.
EXTRAS: dict[str, str] = {"metatomic": "metatomic"}


def load_potential(
    spec: str, *, device: str = "cpu", dtype: DtypeName | None = None, direct_spec: str | None = None
) -> Potential:
    """Load the model that a user named.

    Args:
        spec: MODEL on the command line, e.g. `model.pt`, `water-pet`, `qtip4pf:direct=0.02` or `ase:ase.calculators.emt:EMT`.
        device: a torch device, e.g. `cpu` or `cuda:0`.
        dtype: the floating-point precision; None takes the model's own (float64 for the closed forms).
        direct_spec: a second model, whose direct forces go with the conservative ones of the first.

    Raises:
        UsageError: the model is unknown, an option makes no sense, the device is not there, or a package is missing.
    """
    torch_device = _find_device(device)
    torch_dtype = _find_dtype(dtype)
    potential = _load_one(spec, torch_device, torch_dtype)
    if direct_spec is None:
        return potential
    from forceserver.potentials.pair import PairedPotential

    return PairedPotential(conservative=potential, direct=_load_one(direct_spec, torch_device, torch_dtype))


def require(spec: str) -> None:
    """Refuse, before anything heavy is loaded, a model that cannot be: by its name, or for want of an extra.

    Raises:
        UsageError: as `load_potential`.
    """
    scheme, _ = parse(spec, schemes=LOADERS, bundled=BUNDLED)
    if scheme in EXTRAS and find_spec(EXTRAS[scheme]) is None:
        raise UsageError(
            f"model '{spec}' needs the extra '{EXTRAS[scheme]}', which is not installed. "
            f'Remedy: pip install "forceserver[{EXTRAS[scheme]}]"'
        )


def _load_one(spec: str, device: torch.device, dtype: torch.dtype | None) -> Potential:
    scheme, options = parse(spec, schemes=LOADERS, bundled=BUNDLED)
    module_name, function_name = LOADERS[scheme].split(":")
    try:
        load = getattr(import_module(module_name), function_name)
        return cast("Potential", load(options, device=device, dtype=dtype))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "forceserver":
            raise
        remedy = (
            f'pip install "forceserver[{EXTRAS[scheme]}]"' if scheme in EXTRAS else f"install {error.name}"
        )
        raise UsageError(
            f"model '{spec}' needs the Python package '{error.name}', which is not installed. Remedy: {remedy}"
        ) from error


def _find_device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device must be a torch device such as 'cpu' or 'cuda:0', got '{name}'") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device '{name}' was asked for, but torch sees {torch.cuda.device_count()} CUDA devices here. "
            "Remedy: --device cpu, or a torch built for this machine's GPU"
        )
    return device


def _find_dtype(name: DtypeName | None) -> torch.dtype | None:
    import torch

    known = {None: None, "float32": torch.float32, "float64": torch.float64}
    if name not in known:
        raise UsageError(f"dtype must be 'float32' or 'float64', got '{name}'")
    return known[name]
