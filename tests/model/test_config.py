"""Configs of both generations become the same sizes; unusable ones are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import NESTED_ONLY, TinyConfig

from vlpress.model.config import ModelConfig, read_checkpoint_json
from vlpress.model.sizes import ExpertSizes, YarnScaling


def test_flat_and_nested_files_give_equal_configs(tiny_config: TinyConfig, family: str) -> None:
    flat = tiny_config(family, dtype="bfloat16")
    nested = tiny_config(family, nested=True, dtype="bfloat16")
    assert "text_config" in nested.raw
    assert ("text_config" in flat.raw) == (family in NESTED_ONLY)
    assert "rope_parameters" not in flat.raw.get("text_config", flat.raw)
    assert flat == nested
    assert flat.dtype is torch.bfloat16


def test_published_qwen2_5_vl_fields() -> None:
    config = ModelConfig.from_dict(
        {
            "model_type": "qwen2_5_vl",
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "vision_config": {
                "hidden_size": 1280,
                "out_hidden_size": 2048,
                "intermediate_size": 3420,
                "in_chans": 3,
                "tokens_per_second": 2,
            },
        }
    )
    vision, text = config.vision, config.text
    assert (vision.depth, vision.num_heads, vision.head_dim) == (32, 16, 80)
    assert (vision.patch_dim, vision.merge_unit, vision.pixel_factor) == (1176, 4, 28)
    assert [i for i in range(32) if vision.has_full_attention(i)] == [7, 15, 23, 31]
    assert (text.head_dim, text.tie_word_embeddings) == (128, True)
    assert config.image_token_id == 151655


def test_qwen2_vl_reads_width_and_ratio() -> None:
    vision = ModelConfig.from_dict(
        {
            "model_type": "qwen2_vl",
            "hidden_size": 1536,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vision_config": {"embed_dim": 1280, "mlp_ratio": 4, "hidden_size": 1536},
        }
    ).vision
    assert (vision.hidden_size, vision.intermediate_size) == (1280, 5120)
    assert vision.out_hidden_size == 1536
    assert not vision.is_windowed and vision.has_full_attention(0)


def test_tie_flag_inside_text_config_counts(tiny_config: TinyConfig) -> None:
    raw = dict(tiny_config(nested=True, tied=True).raw)
    raw["tie_word_embeddings"] = False
    assert ModelConfig.from_dict(raw).text.tie_word_embeddings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is not supported; allowed: qwen2_vl"),
        ({"vision_config": None}, "vision_config is None; allowed: a table"),
        ({"vision_config": 3}, "vision_config is 3; allowed: a table"),
        (
            {"hidden_size": "wide"},
            "hidden_size is .wide.; allowed: a whole number from 1",
        ),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; allowed: silu"),
        ({"torch_dtype": "int8"}, "dtype 'int8' is not supported; allowed: float32"),
        ({"num_key_value_heads": 3}, "4 attention heads are not a multiple of 3"),
        ({"num_attention_heads": 3}, "not num_attention_heads 3 x head_dim"),
        ({"use_sliding_window": True, "max_window_layers": 1}, "use_sliding_window is true"),
        (
            {"rope_scaling": {"type": "yarn", "mrope_section": [4, 6, 6]}},
            "rope_scaling.type is 'yarn'; allowed: default, mrope",
        ),
        ({"rope_scaling": {"mrope_section": [4, 4, 4]}}, "adds up to 12; it must be half"),
        ({"rope_scaling": {"mrope_section": [8, 8]}}, r"mrope_section is \[8, 8\]; allowed: 3"),
        ({"rope_scaling": "mrope"}, "rope_scaling is 'mrope'; allowed"),
        ({"rope_scaling": {"rope_theta": None}}, "rope_scaling.rope_theta is None; allowed"),
        ({"rope_theta": 0}, "rope_theta is 0; allowed: a number above 0"),
        ({"head_dim": True}, "head_dim is True; allowed"),
        ({"image_token_id": 2**20}, "image_token_id is 1048576; allowed: .* from 0 to"),
        ({"hidden_size": 256, "head_dim": 64}, "128 output features, .* is 256"),
    ],
)
def test_refuses_unusable_fields(
    tiny_config: TinyConfig, changes: dict[str, Any], message: str
) -> None:
    raw = {**tiny_config().raw, **changes}
    if changes.get("head_dim") == 64:
        raw["rope_scaling"] = {"mrope_section": [8, 12, 12]}
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(raw)


def test_refuses_vision_sizes_that_do_not_fit(tiny_config: TinyConfig) -> None:
    with pytest.raises(ValueError, match="vision width 64 does not split into 5 heads"):
        tiny_config(vision={"num_heads": 5})
    with pytest.raises(ValueError, match="window_size 20 is smaller than one merged patch"):
        tiny_config(vision={"window_size": 20})


def test_a_file_larger_than_any_of_a_model(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**28 + 1)  # takes no room on the disk
    with pytest.raises(ValueError, match=str(2**28 + 1)):
        read_checkpoint_json(path)


def test_files_that_are_missing_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json; give a folder"):
        ModelConfig.from_folder(tmp_path)
    path = tmp_path / "config.json"
    path.write_text('{"model_type": ')
    with pytest.raises(ValueError, match="not valid JSON"):
        ModelConfig.from_folder(tmp_path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="holds a list, not an object"):
        read_checkpoint_json(path)


def test_published_qwen3_vl_fields() -> None:
    rope = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
    text = {
        "model_type": "qwen3_vl_text",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 5000000,
        "rope_scaling": rope,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    vision = {
        "model_type": "qwen3_vl",
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "out_hidden_size": 2560,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    raw = {"model_type": "qwen3_vl", "text_config": text, "vision_config": vision}
    config = ModelConfig.from_dict({**raw, "tie_word_embeddings": True})
    assert (config.text.head_dim, config.text.qkv_bias, config.text.qk_norm) == (128, False, True)
    assert (config.text.rope_theta, config.text.mrope_section) == (5e6, (24, 20, 20))
    assert config.text.tie_word_embeddings and config.dtype is torch.bfloat16
    assert (config.vision.patch_dim, config.vision.pixel_factor) == (1536, 32)
    assert (config.vision.position_side, config.vision.num_heads) == (48, 16)
    assert config.vision.deepstack_visual_indexes == (5, 11, 17)
    # The flag of text_config is a default that does not apply.
    assert not ModelConfig.from_dict(raw).text.tie_word_embeddings


def test_published_fields_of_experts() -> None:
    rope = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
    text = {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rope_scaling": rope,
    }
    vision = {"out_hidden_size": 2048}
    raw = {"model_type": "qwen3_vl_moe", "text_config": text, "vision_config": vision}
    config = ModelConfig.from_dict(raw)
    assert config.text.experts == ExpertSizes(128, 8, 768, input_major=True)
    assert not config.text.tie_word_embeddings and config.text.qk_norm
    # Missing fields are those of transformers' class.
    fewer = {"text_config": {"rope_scaling": {"mrope_section": [24, 20, 20]}}}
    default = ModelConfig.from_dict(raw | fewer).text
    assert default.experts == ExpertSizes(60, 4, 1408, input_major=True)
    assert (default.num_hidden_layers, default.head_dim) == (24, 128)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"norm_topk_prob": False}, "norm_topk_prob is False; allowed: true"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step is 2; allowed: 1"),
        ({"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]; allowed: \[\]"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok 7 exceeds num_experts 6"),
        ({"num_experts": 0}, "num_experts is 0; allowed: .*from 1"),
    ],
)
def test_refused_experts(tiny_config: TinyConfig, text: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        tiny_config("qwen3_vl_moe", text=text)
    assert str(error.value).startswith("config.json: ") and "\n" not in str(error.value)


def test_yarn_of_qwen3_vl(tiny_config: TinyConfig) -> None:
    section = dict(tiny_config("qwen3_vl").raw["text_config"]["rope_scaling"])
    yarn = {"rope_type": "yarn", "factor": 3, "original_max_position_embeddings": 262144}
    config = tiny_config("qwen3_vl", text={"rope_scaling": section | yarn})
    assert config.text.yarn == YarnScaling(3.0, 262144)
    scales = {"mscale": 0.7, "mscale_all_dim": 1}
    config = tiny_config("qwen3_vl", text={"rope_scaling": section | yarn | scales})
    assert config.text.yarn == YarnScaling(3.0, 262144, mscale=0.7, mscale_all_dim=1)
    assert tiny_config("qwen3_vl").text.yarn is None


ROPE = {"mrope_section": [12, 10, 10]}


@pytest.mark.parametrize(
    ("text", "vision", "message"),
    [
        ({"attention_bias": True}, {}, "attention_bias is True; allowed: false"),
        ({"rope_scaling": ROPE | {"rope_type": "llama3"}}, {}, "'llama3'; allowed: .*yarn"),
        ({"rope_scaling": ROPE | {"rope_type": "yarn"}}, {}, "it needs factor and original"),
        (
            {"rope_scaling": ROPE | {"mrope_interleaved": False}},
            {},
            "mrope_interleaved is False; allowed: True",
        ),
        ({"rope_scaling": {"mrope_section": [8, 12, 12]}}, {}, r"\[8, 12, 12\].*every third of 32"),
        ({"rope_scaling": ROPE | {"mscale": 0}}, {}, "mscale is 0; allowed: .* above 0"),
        ({"head_dim": 32}, {}, "adds up to 32; it must be half of head_dim 32"),
        ({}, {"num_position_embeddings": 50}, "50 is not a square"),
        ({}, {"deepstack_visual_indexes": [1, 4]}, r"\[1, 4\]; allowed: .* from 0 to 3"),
        ({}, {"deepstack_visual_indexes": [2, 1]}, r"\[2, 1\]; allowed: ascending"),
        ({}, {"hidden_act": "silu"}, "hidden_act is 'silu'; allowed: gelu_pytorch_tanh"),
        ({"num_hidden_layers": 1}, {}, "2 deepstack_visual_indexes for 1 decoder layers"),
    ],
)
def test_refuses_what_qwen3_vl_does_not_implement(
    tiny_config: TinyConfig, text: dict[str, Any], vision: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        tiny_config("qwen3_vl", text=text, vision=vision)
    assert str(error.value).startswith("config.json: ") and "\n" not in str(error.value)


def test_forms_of_qwen3_vl_that_are_refused(tiny_config: TinyConfig) -> None:
    raw = dict(tiny_config("qwen3_vl").raw)
    del raw["text_config"]
    with pytest.raises(ValueError, match="text_config is None; allowed: a table"):
        ModelConfig.from_dict(raw)
