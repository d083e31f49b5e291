"""Models for which llama.cpp would compute something else are refused, differences are noted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf_files import INTERLEAVED, exportable

from vlpress.model.processing.pixel_settings import PixelSettings
from vlpress.quant.api import export
from vlpress.quant.deployment.gguf.limits import notes, unplaced_angle, why_not_model
from vlpress.quant.deployment.source import ExportSource

YARN = {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 1024}


def sections(*values: int, **more: Any) -> dict[str, Any]:
    rope = {**INTERLEAVED["rope_scaling"], **more, "mrope_section": list(values)}
    return {"rope_scaling": rope}


@pytest.mark.parametrize(
    ("family", "text", "vision", "message"),
    [
        ("qwen2_5_vl", {}, {"window_size": 56}, "window_size is 56"),
        ("qwen2_5_vl", {}, {"fullatt_block_indexes": [0, 3]}, "fullatt_block_indexes are 0, 3"),
        ("qwen2_5_vl", {}, {"intermediate_size": 64}, "both 64"),
        ("qwen2_vl", {}, {"mlp_ratio": 1}, "both 64"),
        ("qwen3_vl", sections(12, 10, 10), {}, r"mrope_section \[12, 10, 10\]"),
        ("qwen3_vl", sections(11, 11, 10, **YARN), {}, "YaRN"),
        ("qwen3_5", {"linear_key_head_dim": 16}, {}, "linear_key_head_dim is 16"),
    ],
)
def test_refused_models(
    tmp_path: Path, family: str, text: dict[str, Any], vision: dict[str, Any], message: str
) -> None:
    _, folder = exportable(family, tmp_path / "model", text=text, vision=vision)
    with pytest.raises(ValueError, match=message):
        export(checkpoint=folder, out=tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_accepted_models(tmp_path: Path, family: str) -> None:
    _, folder = exportable(family, tmp_path / "model")
    assert why_not_model(ExportSource(folder)) is None


def test_every_block_with_full_attention(tmp_path: Path) -> None:
    _, folder = exportable(
        "qwen2_5_vl", tmp_path / "model", vision={"fullatt_block_indexes": [0, 1, 2, 3]}
    )
    assert why_not_model(ExportSource(folder)) is None


def test_the_published_sections_leave_two_slow_frequencies_without_a_position(
    tmp_path: Path,
) -> None:
    """[24, 20, 20]: pairs 61 and 62 of 64; the faster one turns by 5e6 ** (-61 / 64) a token."""
    text = {"head_dim": 128, "rope_theta": 5e6, "max_position_embeddings": 262144}
    _, folder = exportable(
        "qwen3_vl", tmp_path / "model", text={**text, **sections(24, 20, 20), "rope_theta": 5e6}
    )
    source = ExportSource(folder)
    assert unplaced_angle(source.config) == pytest.approx(262144 * 5e6 ** (-61 / 64), rel=1e-4)
    assert why_not_model(source) is None
    assert any("0.11" in note for note in notes(source))


def test_pixels_that_are_not_divided_by_255(tmp_path: Path) -> None:
    _, folder = exportable("qwen2_vl", tmp_path / "model")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rescale_factor": 0.5}))
    reason = why_not_model(ExportSource(folder))
    assert reason is not None and "rescale_factor is 0.5" in reason


def test_pixel_bounds_are_noted_in_tokens(tmp_path: Path) -> None:
    _, folder = exportable("qwen2_vl", tmp_path / "model")
    source = ExportSource(folder)
    pixels = PixelSettings.from_folder(folder, source.config.vision)
    least, most = pixels.min_pixels // 28**2, pixels.max_pixels // 28**2
    assert any(f"({least} and {most})" in note for note in notes(source))
