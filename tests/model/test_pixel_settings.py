"""Image settings of a checkpoint folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TinyConfig

from vlpress.model.pixel_settings import PixelSettings


def settings_from(folder: Path, tiny_config: TinyConfig, raw: dict[str, Any]) -> PixelSettings:
    (folder / "preprocessor_config.json").write_text(json.dumps(raw))
    return PixelSettings.from_folder(folder, tiny_config().vision)


def test_settings_of_both_generations(tmp_path: Path, tiny_config: TinyConfig) -> None:
    old = settings_from(tmp_path, tiny_config, {"min_pixels": 3136, "max_pixels": 12845056})
    new = settings_from(
        tmp_path, tiny_config, {"size": {"shortest_edge": 3136, "longest_edge": 12845056}}
    )
    assert old == new == PixelSettings(3136, 12845056)
    changed = PixelSettings.from_folder(tmp_path, tiny_config().vision, max_pixels=50176)
    assert (changed.min_pixels, changed.max_pixels) == (3136, 50176)
    (tmp_path / "preprocessor_config.json").unlink()
    nested = {"image_processor": {"size": {"shortest_edge": 784, "longest_edge": 1568}}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    settings = PixelSettings.from_folder(tmp_path, tiny_config().vision)
    assert (settings.min_pixels, settings.max_pixels) == (784, 1568)


def test_settings_that_cannot_be_followed(tmp_path: Path, tiny_config: TinyConfig) -> None:
    with pytest.raises(FileNotFoundError, match=r"no preprocessor_config\.json"):
        PixelSettings.from_folder(tmp_path, tiny_config().vision)
    with pytest.raises(ValueError, match="patch_size 16 is not supported; this model needs 14"):
        settings_from(tmp_path, tiny_config, {"patch_size": 16})
    with pytest.raises(ValueError, match="do_normalize False is not supported"):
        settings_from(tmp_path, tiny_config, {"do_normalize": False})
    with pytest.raises(ValueError, match="min_pixels 9000 and max_pixels 4000"):
        settings_from(tmp_path, tiny_config, {"min_pixels": 9000, "max_pixels": 4000})
