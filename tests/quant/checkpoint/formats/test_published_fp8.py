"""FP8 checkpoints in the form of Qwen3.5's published ones: blocks of 128, `mtp.*` in FP8 too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import prompts, small_config, small_model, write_checkpoint_folder
from torch import Tensor

from vlpress.model.expert_linear import expert_layers
from vlpress.model.families import family_of
from vlpress.model.loading import load_model
from vlpress.model.mtp import MultiTokenPredictor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.api import inspect_checkpoint
from vlpress.quant.checkpoint.export import export
from vlpress.quant.checkpoint.loading import load_quantized, open_model
from vlpress.quant.checkpoint.safetensors_folder.reading import QuantizedCheckpoint
from vlpress.quant.checkpoint.verify import first_tokens

pytestmark = pytest.mark.usefixtures("reference_kernel")

KEPT = ("lm_head", "model.embed_tokens", "mtp.fc", "visual", "in_proj_a", "in_proj_b", "conv1d")
"""Parts of the names that `modules_to_not_convert` lists; routers and norms have no matrix."""


def wide_model(family: str) -> QwenVL:
    text: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 2, "linear_value_head_dim": 64}
    text |= {"mtp_num_hidden_layers": 1}
    if family.endswith("_moe"):
        text |= {"moe_intermediate_size": 128, "shared_expert_intermediate_size": 128}
    raw = small_config(family, tied=False, **text) | {"torch_dtype": "bfloat16"}
    raw["vision_config"]["out_hidden_size"] = 128
    return small_model(raw, dtype=torch.bfloat16)


def blocks_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a matrix in blocks of 128 by the definition: levels in E4M3, and one factor a block."""
    rows, columns = weight.shape
    levels = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    factors = torch.empty(-(-rows // 128), columns // 128)
    for r in range(factors.shape[0]):
        for c in range(factors.shape[1]):
            at = slice(128 * r, 128 * r + 128), slice(128 * c, 128 * c + 128)
            factors[r, c] = (weight[at].abs().max() / 448).bfloat16()
            levels[at] = (weight[at] / factors[r, c]).to(torch.float8_e4m3fn)
    return levels, factors


def dequantized(levels: Tensor, factors: Tensor) -> Tensor:
    expanded = factors.repeat_interleave(128, 0)[: len(levels)].repeat_interleave(128, 1)
    return levels.float() * expanded


def write_published(folder: Path, family: str) -> dict[str, Tensor]:
    """Write a checkpoint with such tensors and keys; returns the dequantized weights by layer."""
    model = wide_model(family)
    torch.manual_seed(7)
    module = MultiTokenPredictor(model.config.text).bfloat16()
    carried = {f"mtp.{name}": torch.randn_like(p) for name, p in module.state_dict().items()}
    write_checkpoint_folder(folder, model, naming="new", tokenizer=False, extra=carried)
    file = folder / "model.safetensors"
    stored, expected = load_file(file), {}
    # Experts are stored one by one.
    for root, owner in (("model.language_model.", model.model), ("mtp.", module)):
        for tensor, layers in expert_layers(owner, "").items():
            stacked = stored.pop(f"{root}{tensor}")
            for path, layer in layers.items():
                stored[f"{root}{path}.weight"] = layer.slice.view(stacked).contiguous()
    kept = []
    for name in sorted(name for name, value in stored.items() if value.dim() >= 2):
        owner_name = name.removesuffix(".weight")
        is_gate = owner_name.endswith(("mlp.gate", "shared_expert_gate"))
        if is_gate or any(part in owner_name for part in KEPT):
            kept.append(owner_name)
            continue
        levels, factors = blocks_of(stored[name].float())
        stored[name], stored[f"{owner_name}.weight_scale_inv"] = levels, factors.bfloat16()
        canonical = owner_name.replace("model.language_model.", "model.")
        expected[canonical] = dequantized(levels, factors)
    save_file(stored, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": [*kept, "mtp.norm", "model.language_model.norm"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return expected


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_read_as_a_model_and_exported(family: str, tmp_path: Path) -> None:
    expected = write_published(tmp_path / "fp8", family)
    checkpoint = QuantizedCheckpoint(tmp_path / "fp8")
    checkpoint.check()
    assert set(checkpoint.schemes) == set(expected)
    assert "mtp.layers.0.self_attn.q_proj" in expected and "mtp.fc" not in expected
    for name, weight in expected.items():
        assert torch.equal(checkpoint.weight(name).dequantize(), weight), name
    of_decoder = {s.name for s in family_of(checkpoint.config).linears(checkpoint.config)}
    assert {name for name in of_decoder if name.startswith("model.")} == set(checkpoint.layers)
    model = load_quantized(tmp_path / "fp8", device="cpu", dtype="fp32")
    sample = prompts(model.config)
    tokens = first_tokens(tmp_path / "fp8", sample[1], 2, device="cpu")
    assert len(tokens) == 2
    assert inspect_checkpoint(tmp_path / "fp8")["parts"]["mtp"] > 0
    export(tmp_path / "fp8", tmp_path / "ct", "compressed-tensors")
    other = QuantizedCheckpoint(tmp_path / "ct")
    for name, weight in expected.items():
        assert torch.equal(other.weight(name).dequantize(), weight), name
    again = open_model(tmp_path / "ct", device="cpu", dtype="fp32")
    with torch.no_grad():
        for ours, theirs in zip(model(sample), again(sample), strict=True):
            assert torch.equal(ours, theirs)


def test_weights_without_rounded_inputs_are_those_of_the_float_model(tmp_path: Path) -> None:
    """The logits are those of a float model with the dequantized weights, up to the inputs."""
    expected = write_published(tmp_path / "fp8", "qwen3_5")
    model = load_quantized(tmp_path / "fp8", device="cpu", dtype="fp32")
    plain = wide_model("qwen3_5").float()
    for name, weight in expected.items():
        if not name.startswith("mtp."):
            plain.get_parameter(f"{name}.weight").data.copy_(weight)
    sample = prompts(model.config)
    with torch.no_grad():
        actual, reference = torch.cat(model(sample)), torch.cat(plain(sample))
    assert float((actual - reference).norm() / reference.norm()) < 0.2
    with pytest.raises(ValueError, match="is quantized \\(fp8\\)"):
        load_model(tmp_path / "fp8", device="cpu")
