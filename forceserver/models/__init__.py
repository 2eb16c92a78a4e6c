"""Models that come with the package, by name: `forceserver run water-pet -i input.xml`.

Each has a folder here with its weights, its card (README.md) and the recipe that made them. Nothing is imported before a model
is loaded, so that the command line can list them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from forceserver.errors import UsageError


@dataclass(frozen=True)
class BundledModel:
    name: str
    scheme: str  # the loader of its file
    summary: str
    file_name: str = "model.pt"

    @property
    def folder(self) -> Path:
        return Path(str(files("forceserver.models"))) / self.name

    @property
    def is_present(self) -> bool:
        return (self.folder / self.file_name).is_file()

    def find(self) -> Path:
        """The file of its weights.

        Raises:
            UsageError: the installation lacks it.
        """
        if not self.is_present:
            raise UsageError(
                f"the bundled model '{self.name}' should be at {self.folder / self.file_name}, and is not: this installation "
                "is not complete. Remedy: install forceserver again, or give the path of a model file"
            )
        return self.folder / self.file_name


BUNDLED: dict[str, BundledModel] = {
    model.name: model
    for model in (
        BundledModel(
            "water-pet",
            "metatomic",
            "PET for liquid water (H, O): both kinds of forces, from one forward pass",
        ),
    )
}
