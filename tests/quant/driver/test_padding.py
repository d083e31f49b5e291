import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    DENSE,
    make_random_model,
    make_tiny_config,
    prompts,
    small_config,
    small_model,
    write_checkpoint_folder,
)

from vlpress.model.config import ModelConfig
from vlpress.model.families import family_of
from vlpress.model.loading import load_model
from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.driver.padding import (
    Padding,
    choose_padding,
    pad_model_,
    pad_tensors,
    padded_config,
    padded_layers,
)


def names(config: ModelConfig, *stages: str) -> list[str]:
    return [s.name for s in family_of(config).linears(config) if s.stage in stages]


def published(**widths: int) -> ModelConfig:
    """A config with the widths of published models; no weights are made."""
    raw = small_config(intermediate_size=widths.get("mlp", 128))
    raw["vision_config"]["intermediate_size"] = widths.get("vision_mlp", 128)
    return ModelConfig.from_dict(raw)


def all_paddings(config: ModelConfig, tp: int = 1) -> tuple[Padding, ...]:
    return choose_padding(config, names(config, "vision", "decoder"), tp)


def largest_difference(a: QwenVL, b: QwenVL) -> float:
    """Relative to the largest logit, over text, images, several images and a video."""
    samples = prompts(a.config)
    with torch.no_grad():
        actual, expected = torch.cat(a(samples)), torch.cat(b(samples))
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("before", "tp", "after"),
    [
        ({"vision_mlp": 3420}, 1, 3456),
        ({"vision_mlp": 3420}, 2, 3584),
        ({"vision_mlp": 3456}, 1, None),
        ({"mlp": 29568}, 1, None),
        ({"mlp": 29568}, 2, 29696),
        ({"mlp": 29568}, 8, 29696),
        ({"mlp": 18944}, 4, None),
    ],
)
def test_published_widths(before: dict[str, int], tp: int, after: int | None) -> None:
    actual = [padding.after for padding in all_paddings(published(**before), tp)]
    assert (after in actual) if after else not set(actual) & set(before.values())
    for padding in all_paddings(published(**before), tp):
        assert padding.after % (128 * tp) == 0
        assert 0 < padding.after - padding.before < 128 * tp


def test_only_what_is_quantized_is_padded() -> None:
    config = published(vision_mlp=36, mlp=160)
    assert [p.stage for p in all_paddings(config)] == ["vision", "decoder"]
    assert [p.stage for p in choose_padding(config, names(config, "decoder"))] == ["decoder"]
    assert choose_padding(config, ["visual.blocks.0.attn.qkv", "visual.merger.mlp.0"]) == ()
    one = choose_padding(config, ["visual.blocks.1.mlp.up_proj"])
    # config.json has one width for all blocks
    assert sorted(padded_layers(config, one)) == sorted(
        f"visual.blocks.{block}.mlp.{name}_proj"
        for block in (0, 1)
        for name in ("gate", "up", "down")
    )


def test_reason_names_the_devices() -> None:
    (padding,) = choose_padding(published(vision_mlp=36), ["visual.blocks.0.mlp.up_proj"], 3)
    assert padding.reason == "kernels need a multiple of 128 on each of 3 devices"
    assert padding.to_dict() == {
        "stage": "vision",
        "config_field": "vision_config.intermediate_size",
        "before": 36,
        "after": 384,
        "tp": 3,
    }


@pytest.mark.parametrize("nested", [False, True])
def test_config_keeps_the_source_form(nested: bool) -> None:
    config = make_tiny_config(nested=nested, text={"intermediate_size": 200})
    before = copy.deepcopy(dict(config.raw))
    padded = padded_config(config, all_paddings(config))
    assert (padded.vision.intermediate_size, padded.text.intermediate_size) == (128, 256)
    assert config.raw == before
    expected = copy.deepcopy(before)
    expected["vision_config"]["intermediate_size"] = 128
    (expected["text_config"] if nested else expected)["intermediate_size"] = 256
    assert padded.raw == expected
    assert list(padded.raw) == list(before)
    assert list(padded.raw["vision_config"]) == list(before["vision_config"])


def test_nested_config_that_repeats_a_field_outside() -> None:
    raw = dict(make_tiny_config(nested=True, text={"intermediate_size": 200}).raw)
    config = ModelConfig.from_dict(raw | {"intermediate_size": 200})
    padded = padded_config(config, all_paddings(config))
    assert padded.raw["intermediate_size"] == padded.text.intermediate_size == 256


def test_nothing_to_pad() -> None:
    config = published()
    assert all_paddings(config) == ()
    assert padded_config(config, ()) is config
    model = small_model()
    pad_model_(model, ())
    assert model.config.vision.intermediate_size == 36


def odd_model(family: str, *, nested: bool = False, dtype: str | None = None) -> QwenVL:
    """Of either family, with a decoder that is padded; Qwen2.5-VL's tower is as well."""
    config = make_tiny_config(family, nested=nested, dtype=dtype, text={"intermediate_size": 200})
    return make_random_model(config=config)


@pytest.mark.parametrize("family", DENSE)
def test_float_outputs_stay(family: str) -> None:
    model, original = odd_model(family), odd_model(family)
    paddings = all_paddings(model.config)
    assert [p.stage for p in paddings] == (
        ["decoder"] if family == "qwen2_vl" else ["vision", "decoder"]
    )
    pad_model_(model, paddings)
    assert model.get_parameter("model.layers.0.mlp.down_proj.weight").shape == (128, 256)
    assert largest_difference(model, original) <= 1e-5
    assert all_paddings(model.config) == ()
    assert model.visual.config == model.config.vision
    assert model.model.config == model.config.text


def test_float_outputs_stay_on_the_built_in_model() -> None:
    model = load_model("tiny", device="cpu", dtype="fp32")
    original = load_model("tiny", device="cpu", dtype="fp32")
    pad_model_(model, choose_padding(model.config, names(model.config, "vision")))
    assert model.config.vision.intermediate_size % 128 == 0
    linear = model.get_submodule("visual.blocks.0.mlp.up_proj")
    assert isinstance(linear, torch.nn.Linear)
    assert linear.out_features == model.config.vision.intermediate_size == len(linear.weight)
    assert not any(p.requires_grad for p in model.parameters())
    assert largest_difference(model, original) <= 1e-5


@pytest.mark.parametrize("family", DENSE)
def test_tensors_by_name_are_those_of_the_model(family: str) -> None:
    model = odd_model(family)
    config, paddings = model.config, all_paddings(model.config)
    stored = {name: value.clone() for name, value in model.state_dict().items()}
    grown = pad_tensors(stored, config, paddings)
    pad_model_(model, paddings)
    after = model.state_dict()
    assert {n for n in after if after[n].shape != stored[n].shape} == set(grown)
    for name, tensor in after.items():
        assert torch.equal(tensor, grown.get(name, stored[name]))
    # One tensor at a time gives the same, and the config may be the new one already.
    name = "model.layers.1.mlp.down_proj.weight"
    alone = pad_tensors({name: stored[name]}, model.config, paddings)
    assert torch.equal(alone[name], grown[name])
    assert torch.equal(alone[name][:, :200], stored[name])
    assert not alone[name][:, 200:].any()


def test_wrong_size_is_refused() -> None:
    model = odd_model("qwen2_5_vl")
    paddings = all_paddings(model.config)
    name = "visual.blocks.0.mlp.gate_proj.bias"
    with pytest.raises(ValueError, match=r"gate_proj\.bias is \[7\], .* 92 at dimension 0"):
        pad_tensors({name: torch.zeros(7)}, model.config, paddings)


def visual_inputs(prompt: Prompt) -> dict[str, torch.Tensor]:
    inputs: dict[str, torch.Tensor] = {}
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        visuals = [visual for visual in prompt.visuals if visual.kind == kind]
        if visuals:
            inputs[pixels] = torch.cat([visual.patches for visual in visuals])
            inputs[f"{kind}_grid_thw"] = torch.tensor([visual.grid for visual in visuals])
    return inputs


@pytest.mark.parametrize("nested", [False, True])
def test_transformers_loads_the_padded_float_model(
    family: str, nested: bool, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    original = odd_model(family, nested=nested, dtype="float32")
    model = odd_model(family, nested=nested, dtype="float32")
    pad_model_(model, all_paddings(model.config))
    naming = "new" if nested else "hub"
    folder = write_checkpoint_folder(tmp_path / "padded", model, naming=naming, tokenizer=False)
    assert largest_difference(load_model(folder, device="cpu"), model) == 0
    reference: Any = getattr(transformers, ARCHITECTURES[family])
    loaded, report = reference.from_pretrained(folder, dtype="float32", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for prompt in prompts(model.config):
        with torch.no_grad():
            expected = original([prompt])[0]
            actual = loaded(
                input_ids=prompt.input_ids[None],
                position_ids=prompt.position_ids[:, None],
                **visual_inputs(prompt),
            ).logits[0]
        # The other order of sums in linear attention moves shares of experts.
        bound = 5e-4 if family == "qwen3_5_moe" else 1e-4
        assert float((actual - expected).abs().max()) <= bound * float(expected.abs().max())
