"""What a user asked for, and the one definition of every default of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BUILTIN_MODELS = ("tiny", "tiny-outliers")


@dataclass(frozen=True)
class Settings:
    """How a model is opened and its images are read."""

    device: str = "auto"
    dtype: str = "auto"
    min_pixels: int | None = None
    """Bounds of an image's area after resizing, in pixels; None = the checkpoint's own."""
    max_pixels: int | None = None
    seed: int | None = None
    """Of the calibration draw, the choice that a limit makes, and sampling; None: 0, or what the
    recipe says."""
    activations: Literal["recipe", "int8"] = "recipe"
    """int8 rounds the inputs of layers too whose weights alone are quantized."""
    head: Literal["recipe", "w8a16", "w4a16"] = "recipe"
    """Rounds the output head in memory, which a checkpoint cannot hold beside a tied embedding."""
    kv_cache: Literal["model", "int8"] = "model"
    """int8 keeps keys and values rounded while an answer is generated."""
    threads: int | None = None
    """CPU threads; None: torch's default. Applied by `common.threads.use_threads`."""


@dataclass(frozen=True)
class Calibration:
    """Where calibration samples come from, and where their activations wait."""

    source: str | None = None
    """None: the built-in drawings."""
    samples: int | None = None
    """None: as many as the recipe says."""
    memory: float = 0.25
    """GiB of activations that are kept in memory as well as in files."""
    skip_bad: int = 0
    """Samples that cannot be used and that others take the place of; one more is an error."""

    @property
    def budget(self) -> int:
        """The same in bytes."""
        return round(self.memory * 2**30)
