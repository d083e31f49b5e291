"""Checkpoints of random weights with published widths."""

from __future__ import annotations

from pathlib import Path

import make_model
import pytest
import torch
from common import qwen35_configs

from vlpress.model.config import ModelConfig
from vlpress.model.families import family_of, widths
from vlpress.model.loading import build_model, load_model


@pytest.mark.parametrize(
    ("family", "size", "billions"),
    # What the models' names and cards say, vision tower included.
    [
        ("qwen2", "2b", 2.2),
        ("qwen2", "7b", 8.3),
        ("qwen2", "72b", 73.4),
        ("qwen2_5", "3b", 3.75),
        ("qwen2_5", "7b", 8.3),
        ("qwen2_5", "32b", 33.5),
        ("qwen2_5", "72b", 73.4),
    ],
)
def test_whole_models_have_the_published_number_of_weights(
    family: str, size: str, billions: float
) -> None:
    config = ModelConfig.from_dict(make_model.config_of(family, size))
    count = sum(p.numel() for p in build_model(config).parameters())
    assert count / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ("size", "billions"),
    [("0.8b", 0.85), ("2b", 2.2), ("4b", 4.5), ("9b", 9.4), ("27b", 27.4), ("35b-a3b", 35.1)],
)
def test_qwen3_5_has_the_published_number_of_weights(size: str, billions: float) -> None:
    config = ModelConfig.from_dict(qwen35_configs.config_of(size))
    table = family_of(config)
    modules = table.linears(config), [spec for spec, _ in table.kept(config)]
    specs = [table.embedding(config), *modules[0], *modules[1]]
    assert sum(spec.weights for spec in specs) / 1e9 == pytest.approx(billions, rel=0.02)


def test_norms_of_qwen3_5_multiply_by_one(tmp_path: Path) -> None:
    raw = make_model.small_vocabulary(qwen35_configs.config_of("0.8b", 4))
    raw["text_config"] |= {"hidden_size": 128, "vocab_size": 1280, "intermediate_size": 128}
    raw["vision_config"] |= {"depth": 1, "out_hidden_size": 128}
    values = dict(make_model.tensors(raw, 0))
    layer = "model.language_model.layers.0"
    assert float(values[f"{layer}.input_layernorm.weight"].float().abs().max()) == 0
    assert float(values[f"{layer}.linear_attn.norm.weight"].float().mean()) == 1
    assert float(values["model.visual.merger.norm.weight"].float().mean()) == 1
    assert float(values[f"{layer}.linear_attn.dt_bias"].float().mean()) == 1


def test_written_checkpoint_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(make_model.TEXT, "3b", (256, 512, 2, 2, 1, 1280, True))
    monkeypatch.setattr(make_model, "SHARD_BYTES", 2**20)
    raw = make_model.config_of("qwen2_5", "3b", layers=1, vision_layers=1)
    assert make_model.write(raw, tmp_path, seed=3) > 2**21
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model = load_model(tmp_path, device="cpu")
    assert model.dtype == torch.bfloat16
    assert widths(model.config)["mlp"] == 512 and family_of(model.config).name == "qwen2_5_vl"
    weights = model.model.embed_tokens.weight.float()
    assert float(weights.std()) == pytest.approx(make_model.DEVIATION, rel=0.02)
