"""Bytes by part: every tensor counts once, in the part whose module it belongs to."""

from __future__ import annotations

import pytest
from tiny_models import EACH_FAMILY, small_config, small_model

from vlpress.model.byte_parts import bytes_by_part
from vlpress.model.config import ModelConfig
from vlpress.model.part_names import BYTE_PARTS


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", EACH_FAMILY)
def test_parts_are_those_of_the_modules(family: str, tied: bool) -> None:
    model = small_model(small_config(family, tied=tied))
    sizes = [(name, tensor.nbytes) for name, tensor in model.named_parameters()]
    head = 0 if model.lm_head is None else sum(p.nbytes for p in model.lm_head.parameters())
    assert bytes_by_part(model.config, sizes) == {
        "decoder": sum(p.nbytes for p in model.model.layers.parameters()),
        "tower": sum(p.nbytes for p in model.visual.parameters()),
        "embedding": model.model.embed_tokens.weight.nbytes,
        "head": head,
        "mtp": 0,
        "rest": model.model.norm.weight.nbytes,
    }


def test_names_of_quantized_and_unknown_tensors() -> None:
    config = ModelConfig.from_dict(small_config())
    sizes = [
        ("model.layers.11.mlp.up_proj.weight_packed", 1),
        ("visual.merger.mlp.0.weight_scale", 2),
        ("visual.patch_embed.proj.weight", 4),
        ("model.embed_tokens.weight_packed", 8),
        ("lm_head.qweight", 16),
        ("mtp.layers.0.norm.weight", 32),
        ("model.norm.weight", 64),
    ]
    expected = dict(zip(BYTE_PARTS, (1, 6, 8, 16, 0, 96), strict=True))
    assert bytes_by_part(config, sizes) == expected
    with_module = ModelConfig.from_dict(small_config("qwen3_5"))
    counted = bytes_by_part(with_module, sizes)
    assert (counted["mtp"], counted["rest"]) == (32, 64)
