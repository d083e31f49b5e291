"""The deployment format GGUF: one file for the text model and one, mmproj, for the tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....common.progress import Reporter
from ....model.processing.pixel_settings import PixelSettings
from ...config import ExportOptions
from ..source import ExportSource
from . import limits, text, vision
from .naming import why_not_tensors
from .tensors import FloatType
from .tokenizer import tokenizer_keys
from .writer import INSTALL, is_installed, write_gguf

PREFIX = "mmproj-"
"""Begins the name of the file of the tower; llama.cpp looks for it next to the text model."""
_FLOAT_TYPES: dict[str | None, FloatType | None] = {None: None, "f16": "F16", "f32": "F32"}


@dataclass(frozen=True)
class GGUFFormat:
    """See `DeploymentFormat`."""

    name: str = "gguf"
    options: tuple[str, ...] = ("float_type",)
    adapter_advice: str = (
        "convert its folder adapter with convert_lora_to_gguf.py of llama.cpp (--base: the folder "
        "of the original model), and export the weights with --no-adapter"
    )

    def why_not(self, source: ExportSource, options: ExportOptions) -> str | None:
        """See `DeploymentFormat.why_not`."""
        if not is_installed():
            return INSTALL
        if source.config.family not in text.ARCHITECTURES:
            allowed = ", ".join(text.ARCHITECTURES)
            return f"it is of the family {source.config.family}; allowed: {allowed}"
        if source.quantized is not None and (moved := source.quantized.contents().reordered):
            return (
                f"the groups of {min(moved)} and others ({len(moved)} layers) are in another order "
                "(act-order), which GGUF cannot state; quantize again with static groups"
            )
        return (
            why_not_tensors(source, text.naming(source.config))
            or why_not_tensors(source, vision.naming(source.config))
            or limits.why_not_model(source)
        )

    def write(
        self, source: ExportSource, folder: Path, options: ExportOptions, reporter: Reporter
    ) -> Mapping[str, Any]:
        """See `DeploymentFormat.write`."""
        config, name = source.config, Path(options.out).resolve().name
        float_type = _FLOAT_TYPES[options.float_type]
        general = {"general.name": name, "general.type": "model"}
        pixels = PixelSettings.from_folder(source.folder, config.vision)
        text_keys = {
            "general.architecture": text.ARCHITECTURES[config.family],
            **general,
            **text.text_keys(config),
            **tokenizer_keys(source.folder, config),
        }
        vision_keys = {
            "general.architecture": "clip",
            **general,
            "general.type": "mmproj",
            **vision.vision_keys(config, pixels),
        }
        with reporter.stage("text model") as update:
            tensors = text.text_tensors(source, float_type)
            of_text = write_gguf(folder / f"{name}.gguf", text_keys, tensors, update)
        with reporter.stage("vision tower") as update:
            tensors = vision.vision_tensors(source, float_type)
            of_tower = write_gguf(folder / f"{PREFIX}{name}.gguf", vision_keys, tensors, update)
        return {
            "format": self.name,
            "architecture": text_keys["general.architecture"],
            "projector": vision_keys["clip.projector_type"],
            "text": of_text,
            "tower": of_tower,
            "notes": limits.notes(source),
        }
