"""Rotated checkpoints compute the function of their source, in all families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    FAMILIES,
    SLOW_FAMILIES,
    SMALL,
    prompts,
    raw_config,
    small_config,
    small_model,
    write_checkpoint_folder,
)

from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.config import ModelConfig
from vlpress.model.loading import load_model
from vlpress.model.mtp import MultiTokenPredictor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.prepare.context import Context
from vlpress.quant.prepare.rotations.roles import find_roles
from vlpress.quant.prepare.running import prepare_checkpoint
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.steps.rotate import RotateStep

GATED = ("qwen3_5", "qwen3_5_moe")


def rotated(model: QwenVL, folder: Path, step: RotateStep, **form: Any) -> tuple[QwenVL, Path]:
    """Write a model as a checkpoint, rotate it, and load the result."""
    source = write_checkpoint_folder(folder / "source", model, tokenizer=False, **form)
    recipe = Recipe.from_dict({"name": "rotated", "step": [step.to_dict()]})
    prepare_checkpoint(step, source, folder / "rotated", Context(recipe))
    return load_model(folder / "rotated", device="cpu", dtype="fp32"), folder / "rotated"


@torch.no_grad()
def largest_difference(model: QwenVL, other: QwenVL) -> float:
    """Largest difference of logits, relative to the largest logit."""
    samples = prompts(model.config)
    before = torch.cat([model([sample])[0] for sample in samples])
    after = torch.cat([other([sample])[0] for sample in samples])
    assert float(before.std()) > 0.5
    return float((before - after).abs().max() / before.abs().max())


UNTIED = [
    pytest.param(family, False, marks=() if family == "qwen3_vl" else pytest.mark.slow)
    for family in FAMILIES
]
TIED = [
    pytest.param(family, True, marks=pytest.mark.slow if family in SLOW_FAMILIES else ())
    for family in FAMILIES
]


@pytest.mark.parametrize(("family", "tied"), [*TIED, *UNTIED])
def test_the_function_is_unchanged(family: str, tied: bool, tmp_path: Path) -> None:
    model = small_model(small_config(family, tied=tied))
    other, folder = rotated(model, tmp_path, RotateStep(), shards=1 if tied else 3)
    assert largest_difference(model, other) < 1e-4
    assert not other.config.text.tie_word_embeddings
    reader, source = CheckpointReader(folder), CheckpointReader(tmp_path / "source")
    norms = find_roles(other.config, residual=True, values=False).norms
    assert len(norms) == 2 * other.config.text.num_hidden_layers + 1
    for name in norms:
        assert torch.equal(reader.tensor(name) + other.config.text.norm_offset, torch.ones(64))
    changed = {n for n in source.names() if not torch.equal(source.tensor(n), reader.tensor(n))}
    assert changed == set(source.names()) & {
        *find_roles(other.config, residual=True, values=family not in GATED).tensors,
        *norms,
    }
    assert not any("q_norm" in n or ".blocks." in n or "linear_attn.norm" in n for n in changed)


@pytest.mark.parametrize(
    ("r1", "r2", "names"),
    [
        (False, True, {"v_proj.weight", "v_proj.bias", "o_proj.weight"}),
        (True, False, {"mlp.2.weight", "mlp.2.bias", "embed_tokens.weight", "q_proj.weight"}),
    ],
)
def test_each_rotation_alone(r1: bool, r2: bool, names: set[str], tmp_path: Path) -> None:
    model = small_model()
    other, folder = rotated(model, tmp_path, RotateStep(r1=r1, r2=r2))
    assert largest_difference(model, other) < 1e-4
    assert other.config.text.tie_word_embeddings is not r1
    reader, source = CheckpointReader(folder), CheckpointReader(tmp_path / "source")
    changed = {n for n in source.names() if not torch.equal(source.tensor(n), reader.tensor(n))}
    assert {name for name in names if any(n.endswith(name) for n in changed)} == names
    if not r1:
        assert all(n.endswith(tuple(names)) for n in changed)


def test_a_width_without_a_hadamard_matrix(tmp_path: Path) -> None:
    raw = raw_config(
        "qwen3_vl",
        SMALL,
        tied=True,
        dtype="float32",
        text={"hidden_size": 52},
        vision={"out_hidden_size": 52},
    )
    model = small_model(raw)
    other, _ = rotated(model, tmp_path, RotateStep())
    assert largest_difference(model, other) < 1e-4


def test_the_computation_is_in_float64(tmp_path: Path) -> None:
    model = small_model(small_config("qwen3_5")).double()
    source = write_checkpoint_folder(tmp_path / "source", model, tokenizer=False)
    recipe = Recipe.from_dict({"name": "rotated", "step": [{"method": "rotate"}]})
    prepare_checkpoint(RotateStep(), source, tmp_path / "rotated", Context(recipe))
    reader = CheckpointReader(tmp_path / "rotated")
    assert reader.dtype("lm_head.weight") == torch.float64
    # The model itself has norms in float32, so that the weights are compared instead.
    head, embedding = reader.tensor("lm_head.weight"), reader.tensor("model.embed_tokens.weight")
    norm = model.model.norm
    gain = norm.weight + norm.offset
    table = model.model.embed_tokens.weight
    assert torch.allclose(head @ embedding.T, (table * gain) @ table.T, rtol=0, atol=1e-11)


def with_predictor() -> tuple[QwenVL, dict[str, torch.Tensor]]:
    model = small_model(small_config("qwen3_5", mtp_num_hidden_layers=1))
    state = MultiTokenPredictor(model.config.text).state_dict()
    return model, {f"mtp.{name}": value.clone() for name, value in state.items()}


def test_multi_token_prediction_is_refused_or_left_out(tmp_path: Path) -> None:
    model, extra = with_predictor()
    with pytest.raises(ValueError, match=r"multi-token prediction \(mtp\..*drop_mtp = true") as e:
        rotated(model, tmp_path, RotateStep(), extra=extra)
    assert "\n" not in str(e.value) and not (tmp_path / "rotated").exists()
    other, folder = rotated(model, tmp_path, RotateStep(drop_mtp=True), extra=extra)
    assert largest_difference(model, other) < 1e-4
    assert not [n for n in CheckpointReader(folder).names() if n.startswith("mtp.")]
    raw = json.loads((folder / "config.json").read_text())
    assert raw["text_config"]["mtp_num_hidden_layers"] == 0
    with pytest.raises(ValueError, match="drop_mtp is true, but the model has no multi-token"):
        RotateStep(drop_mtp=True).foresee(ModelConfig.from_dict(small_config()), None)


def test_gated_attention_keeps_its_values() -> None:
    config = ModelConfig.from_dict(small_config("qwen3_5"))
    assert "values not rotated (R2): a gate" in RotateStep().foresee(config, None).summary
    with pytest.raises(ValueError, match="nothing is rotated; values of qwen3_5 are bound to a"):
        RotateStep(r1=False).foresee(config, None)
    with pytest.raises(ValueError, match="nothing is rotated; set r1 = true"):
        RotateStep(r1=False, r2=False).foresee(ModelConfig.from_dict(small_config()), None)
