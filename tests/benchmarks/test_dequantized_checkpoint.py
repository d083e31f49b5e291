"""Float checkpoints of quantized models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from common.dequantized_checkpoint import save_dequantized
from tiny_models import prompts, small_model, write_small_checkpoint

from vlpress.model.loading import load_model
from vlpress.quant.driver.pipeline import quantize_
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.targets import compressed_layers

KEPT = "model.layers.0.mlp.down_proj"


def recipe(**step: Any) -> Recipe:
    base = {"method": "rtn", "group_size": 16, "ignore": [KEPT]}
    return Recipe.from_dict({"name": "test", "step": [base | step]})


def test_quantized_layers_have_the_values_of_their_levels_and_others_stay(tmp_path: Path) -> None:
    source = write_small_checkpoint(tmp_path / "source", small_model())
    model = load_model(source, device="cpu")
    quantize_(model, recipe(grid="nf4"), prompts(model.config))
    save_dequantized(model, source, tmp_path / "float")
    before, after = load_model(source, device="cpu"), load_model(tmp_path / "float", device="cpu")
    layers = compressed_layers(model)
    assert layers and KEPT not in layers
    for name, value in after.named_parameters():
        layer = layers.get(name.removesuffix(".weight"))
        if layer is None or name.endswith(".bias"):
            assert torch.equal(value, before.get_parameter(name))
        else:
            assert torch.equal(value, layer.quantized().dequantize(value.dtype))
            assert not torch.equal(value, before.get_parameter(name))


def test_rounded_inputs_are_refused(tmp_path: Path) -> None:
    source = write_small_checkpoint(tmp_path / "source", small_model())
    model = load_model(source, device="cpu")
    step = recipe(grid="fp8", group_size=-1, activations="dynamic")
    quantize_(model, step, prompts(model.config))
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_proj"):
        save_dequantized(model, source, tmp_path / "float")
    assert not (tmp_path / "float").exists()
