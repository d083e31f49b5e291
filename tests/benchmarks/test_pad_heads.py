"""Models with padded heads compute the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pad_heads import pad_axis, pad_heads
from tiny_models import prompts, small_config, small_model, write_small_checkpoint

from vlpress.model.loading import load_model

WIDTH = 128


def test_logits_stay(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_small_checkpoint(source, small_model(small_config("qwen3_5")))
    pad_heads(source, out, WIDTH)
    before, after = (
        load_model(folder, dtype=torch.float32, device="cpu") for folder in (source, out)
    )
    sizes = after.config.text.linear_attention
    assert sizes is not None and (sizes.key_head_dim, sizes.value_head_dim) == (WIDTH, WIDTH)
    with torch.inference_mode():
        for prompt in prompts(before.config):
            expected, padded = before([prompt])[0], after([prompt])[0]
            assert float((padded - expected).abs().max()) <= 1e-3
            assert float(expected.std()) > 0.1


def test_zeros_follow_each_head() -> None:
    rows = torch.arange(1.0, 5.0)[:, None]
    assert pad_axis(rows, 0, 2, 3).flatten().tolist() == [1, 2, 0, 3, 4, 0]
    assert pad_axis(rows.t(), 1, 4, 5).flatten().tolist() == [1, 2, 3, 4, 0]


def test_heads_that_are_wider(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_small_checkpoint(source, small_model(small_config("qwen3_5")))
    with pytest.raises(ValueError, match=r"(?s)16.*32.*24"):
        pad_heads(source, tmp_path / "out", 24)
