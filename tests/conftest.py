"""Models that several test modules load, made once in a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from model_factory import Recipe


@pytest.fixture(scope="session")
def pair_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], Path]:
    """The file of a pair potential with a closed form and a direct head, exported through metatomic."""
    pytest.importorskip("metatomic.torch")
    from model_factory import save_pair_model

    folder = tmp_path_factory.mktemp("pair_models")

    @cache
    def make(recipe: Recipe) -> Path:
        return save_pair_model(recipe, folder / f"pair-{len(list(folder.iterdir()))}.pt")

    return make


@pytest.fixture(scope="session")
def metatrain_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The file of a tiny metatrain model with random weights and both heads: (architecture, dtype) to path."""
    pytest.importorskip("metatrain")
    from model_factory import save_metatrain_model

    folder = tmp_path_factory.mktemp("metatrain_models")

    @cache
    def make(architecture: str, dtype: str = "float64") -> Path:
        return save_metatrain_model(architecture, folder / f"{architecture}-{dtype}.pt", dtype=dtype)

    return make
