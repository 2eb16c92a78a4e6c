"""The scripts in the folder of water-pet as modules: the folder's name is none that Python can import."""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import TYPE_CHECKING

from ase import Atoms

from forceserver.models import BUNDLED

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = BUNDLED["water-pet"].folder


def script(name: str) -> Path:
    return FOLDER / f"{name}.py"


def import_script(name: str) -> ModuleType:
    """A fresh module, so that a test may change its constants."""
    spec = spec_from_file_location(f"water_pet_{name}", script(name))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


@cache
def few_frames(n_frames: int) -> tuple[Atoms, ...]:
    """Labelled boxes of 32 molecules, hardly moved from a lattice."""
    dataset = import_script("make_dataset")
    dataset.MELTING = dataset.RELAXING = 2
    dataset.N_REPLICAS = 2
    dataset.CONDITIONS = {32: dataset.CONDITIONS[32][:3]}
    return tuple(dataset.make_frames(n_frames, 4, 32))
