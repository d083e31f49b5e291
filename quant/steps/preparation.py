"""What a preparation is: a change of the whole float checkpoint before it is quantized.

A preparation reads a float checkpoint folder and writes another one of the same family, which the
following steps of the recipe take for their source. It may change the config, as by removing
channels. It is a subclass of `Preparation` and a row of `PREPARATIONS` (`table.py`). As in
`step.py`, torch is imported inside functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...common.validation import validated
from .step import plain_fields

if TYPE_CHECKING:
    from ...model.carried import CarriedTensors
    from ...model.config import ModelConfig
    from ..prepare.context import Context


@dataclass(frozen=True)
class Foreseen:
    """What a preparation will do, known before any weights are read."""

    config: ModelConfig
    """Of the checkpoint that it writes; its parameters give the bytes."""
    summary: str
    """One line for the plan: what is changed, and what is left out by rule."""


@validated
class Preparation(ABC):
    """A change of the whole float checkpoint; it adds its own options as fields."""

    method: ClassVar[str]
    """Name in recipes."""
    changes_tokens: ClassVar[bool] = False
    """Whether texts become other tokens."""

    @property
    def uses_samples(self) -> bool:
        """Whether calibration samples are needed."""
        return False

    @property
    def why_not_alone(self) -> str:
        """Why a recipe without a step that quantizes cannot have it; empty if it can."""
        return ""

    @abstractmethod
    def foresee(self, config: ModelConfig, folder: Path | None) -> Foreseen:
        """Say what would be done to a model, without reading its weights.

        Args:
            config: of the checkpoint before this step.
            folder: of the recipe's source, for its side files; None: not known, as for a plan of a
                config alone. Earlier preparations of the recipe have not run yet.

        Raises:
            ValueError: the model does not allow it, or it would change nothing.
        """

    def foresee_carried(self, config: ModelConfig, carried: CarriedTensors) -> CarriedTensors:
        """Return the carried tensors of the checkpoint that it writes, by default the same.

        Args:
            config: of the checkpoint before this step.
            carried: of the checkpoint before this step.
        """
        return carried

    @abstractmethod
    def prepare(self, source: Path, destination: Path, context: Context) -> Mapping[str, Any]:
        """Write the changed checkpoint.

        The same input and options give the same bytes.

        Args:
            source: folder of a float checkpoint, which is not written to.
            destination: existing empty folder; it becomes an ordinary float checkpoint with the
                config that `foresee` returned. See `rewrite_checkpoint`.
            context: samples, settings, progress.

        Returns:
            JSON values for the record in `vlpress.json`, without times and paths.

        Raises:
            ValueError: the checkpoint is damaged or does not allow it.
        """

    def identify_files(self) -> dict[str, Any]:
        """Return JSON values that change with the contents of files that options name, if any do.

        Raises:
            FileNotFoundError: a file does not exist.
        """
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which `read_step` reads."""
        return {"method": self.method, **plain_fields(self)}
