"""The models that need no download: inside the package, or derived from one that is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class BuiltIn:
    """A model by name; its folder in this package has the same name unless it is derived."""

    name: str
    outliers_of: str | None = None  # the model that `quant` derives it from by `outlier_folder`

    @property
    def is_packaged(self) -> bool:
        """Whether its files belong into the package."""
        return self.outliers_of is None


BUILT_IN = (
    BuiltIn("tiny"),  # Qwen2.5-VL
    BuiltIn("tiny-outliers", outliers_of="tiny"),
    BuiltIn("tiny3"),  # Qwen3-VL
    BuiltIn("tiny3.5"),  # Qwen3.5, which reasons before it answers
)


def find_built_in(name: str | Path) -> BuiltIn | None:
    """Return the built-in model of a name, also one that this installation lacks."""
    return next((model for model in BUILT_IN if model.name == name), None)


def built_in_folder(model: BuiltIn, package: Path = PACKAGE) -> Path | None:
    """Return the folder in the package of a model, or of the one that it is derived from.

    None: this installation lacks it.
    """
    folder = package / (model.outliers_of or model.name)
    return folder if (folder / "config.json").is_file() else None


def built_in_names(package: Path = PACKAGE) -> tuple[str, ...]:
    """Return the names of all built-in models that this installation has."""
    return tuple(each.name for each in BUILT_IN if built_in_folder(each, package))
