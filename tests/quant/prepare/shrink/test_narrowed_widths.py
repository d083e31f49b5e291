import copy
from typing import Any

import pytest
from tiny_models import make_tiny_config, small_config

from vlpress.model.config import ModelConfig
from vlpress.quant.prepare.shrink.widths import choose_widths, foresee_widths
from vlpress.quant.steps.shrink import ShrinkStep


def step(keep: float, **options: Any) -> ShrinkStep:
    return ShrinkStep(width="mlp", keep=keep, **options)


def published(mlp: int, vision_mlp: int = 3420) -> ModelConfig:
    raw = small_config(intermediate_size=mlp)
    raw["vision_config"]["intermediate_size"] = vision_mlp
    return ModelConfig.from_dict(raw)


@pytest.mark.parametrize(
    ("before", "keep", "multiple", "after"),
    [
        (11008, 0.875, 128, 9600),
        (18944, 0.875, 128, 16512),
        (18944, 0.875, 256, 16384),
        (768, 0.875, 32, 672),
        (768, 0.875, 128, 640),
        (10, 0.7, 1, 7),
        (3420, 1.0, 128, 3420),
        (1024, 0.9999, 128, 896),
    ],
)
def test_width_is_the_largest_multiple_within_the_share(
    before: int, keep: float, multiple: int, after: int
) -> None:
    (width,) = choose_widths(published(before), step(keep, multiple=multiple))
    assert (width.before, width.after) == (before, after)
    assert after <= keep * before + 1e-6


def test_parts_have_their_own_fields() -> None:
    config = published(1024, 3420)
    foreseen = foresee_widths(config, step(0.75, targets=("decoder", "tower")))
    assert foreseen.config.text.intermediate_size == 768
    assert foreseen.config.vision.intermediate_size == 2560
    assert foreseen.summary == (
        "MLP channels: vision 3420 to 2560, decoder 1024 to 768 (by wanda, refitted)"
    )
    tower = foresee_widths(config, step(0.75, targets=("tower",), refit=False, score="random"))
    assert tower.config.text.intermediate_size == 1024
    assert tower.summary == "MLP channels: vision 3420 to 2560 (by random, not refitted)"


@pytest.mark.parametrize("nested", [False, True])
def test_config_keeps_its_form(nested: bool) -> None:
    config = make_tiny_config(nested=nested)
    before = copy.deepcopy(dict(config.raw))
    narrower = foresee_widths(config, step(0.5)).config
    assert config.raw == before
    expected = copy.deepcopy(before)
    (expected["text_config"] if nested else expected)["intermediate_size"] = 128
    assert narrower.raw == expected
    assert list(narrower.raw) == list(before)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("qwen3_vl_moe", {}, "the MLPs of the decoder are experts"),
        ("qwen3_5_moe", {}, "the MLPs of the decoder are experts"),
        ("qwen2_vl", {"targets": ("tower",)}, "config.json of qwen2_vl has no field for the inner"),
        (
            "qwen2_5_vl",
            {"multiple": 256},
            "keep 0.5 leaves 64 of 128 channels in the MLPs of decoder, fewer than multiple 256",
        ),
    ],
)
def test_models_without_such_a_width_are_refused(
    family: str, options: dict[str, Any], message: str
) -> None:
    config = ModelConfig.from_dict(small_config(family))
    with pytest.raises(ValueError, match=message):
        choose_widths(config, step(0.5, **options))
