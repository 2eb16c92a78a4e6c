"""The file of a metatomic model: reading it, and whether it can be served here.

A model file is a program (TorchScript): load only files that you trust.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from metatomic.torch import AtomisticModel, load_atomistic_model

from forceserver.errors import ModelError, UsageError, one_line

DTYPES = {"float32": torch.float32, "float64": torch.float64}

log = logging.getLogger(__name__)


def read_model(path: Path, extensions: str | None) -> AtomisticModel:
    """Load a model, with its compiled code from the folder `extensions` if it has any.

    Raises:
        UsageError: no such file or folder, or nothing that metatomic can load.
    """
    if not path.is_file():
        raise UsageError(
            f"no model file '{path}'. Wanted the path of a file exported with metatomic, FILE.pt"
        )
    if extensions is not None and not Path(extensions).is_dir():
        raise UsageError(f"metatomic: no directory '{extensions}', wanted by extensions={extensions}")
    try:
        with warnings.catch_warnings():
            # Renamed outputs concern whoever exports models, and TorchScript's future concerns metatomic.
            warnings.filterwarnings("ignore", message=".*deprecated")
            return load_atomistic_model(path, extensions_directory=extensions)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"'{path}' is not a file that metatomic can load: {one_line(error)}. "
            "Wanted a model exported with AtomisticModel.save, for example by `mtt export`"
        ) from error


def choose_dtype(path: Path, model: AtomisticModel, dtype: torch.dtype | None, *, check: bool) -> torch.dtype:
    """The model's own dtype, or a wider one that the user asked for.

    Raises:
        UsageError: a narrower one, or any other than its own when metatomic checks each call.
    """
    name = model.capabilities().dtype
    own = DTYPES[name]
    if dtype is None or dtype == own:
        return own
    if own == torch.float64 or check:
        wanted = _name_dtype(dtype) + (" with check=true" if check else "")
        raise UsageError(
            f"'{path}' was exported in {name} and cannot run in {wanted}. "
            f"Remedy: --dtype {name}, or export it again in {_name_dtype(dtype)}"
        )
    log.info("%s was exported in %s and runs in %s", path, name, _name_dtype(dtype))
    return dtype


def check_device(path: Path, model: AtomisticModel, device: torch.device) -> None:
    """Refuse a device that the model was not exported for, or that is not there.

    Raises:
        UsageError: names the devices of the model.
    """
    supported = model.capabilities().supported_devices
    if device.type not in supported:
        raise UsageError(
            f"'{path}' was exported for {', '.join(supported)} and cannot run on {device.type}. "
            f"Remedy: --device {supported[0]}"
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device cuda was asked for, but torch sees no CUDA device here. Remedy: --device cpu"
        )


def check_inputs(path: Path, model: AtomisticModel) -> None:
    """Refuse a model that wants more than a structure.

    Raises:
        ModelError: names what it wants.
    """
    inputs = model.requested_inputs(use_new_names=True)
    if inputs:
        raise ModelError(
            f"'{path}' wants inputs beyond positions, cell and elements: {', '.join(sorted(inputs))}. "
            "i-PI does not send them, so this model cannot be served"
        )


def _name_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
