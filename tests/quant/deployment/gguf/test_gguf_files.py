"""Whole exports, as the package gguf reads them: names, types and numbers of every tensor."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf_files import exportable, quantized, read_file
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlpress.quant.api import export
from vlpress.quant.deployment.gguf.tensors import why_not_layers
from vlpress.quant.deployment.source import ExportSource
from vlpress.quant.methods.affine import QuantizedWeight

ARCHITECTURES = {
    "qwen2_vl": gguf.MODEL_ARCH.QWEN2VL,
    "qwen2_5_vl": gguf.MODEL_ARCH.QWEN2VL,
    "qwen3_vl": gguf.MODEL_ARCH.QWEN3VL,
    "qwen3_vl_moe": gguf.MODEL_ARCH.QWEN3VLMOE,
}
FAMILIES = tuple(ARCHITECTURES)
DENSE = tuple(family for family in FAMILIES if family != "qwen3_vl_moe")
TOWER = {"bits": 8, "group_size": -1, "targets": ["visual.blocks.*.attn.*"]}


def exported(checkpoint: Path, **options: Any) -> tuple[dict[str, Any], Path, Path]:
    """Description, text model and mmproj of an export to the folder `NAME` next to a checkpoint."""
    out = checkpoint.parent / "NAME"
    described = export(checkpoint=checkpoint, out=out, format="gguf", **options)
    assert {path.name for path in out.iterdir()} == {
        *("NAME.gguf", "mmproj-NAME.gguf", "export.json", "work.json")
    }
    return described, out / "NAME.gguf", out / "mmproj-NAME.gguf"


def dequantized(source: ExportSource, name: str) -> Tensor:
    weight = source.weight(name)
    return weight.float() if isinstance(weight, Tensor) else weight.dequantize()


def expected_text(source: ExportSource, family: str) -> dict[str, Tensor]:
    """All tensors of a text model under the names that the package gguf gives to the hub's."""
    names = gguf.get_tensor_name_map(ARCHITECTURES[family], source.config.text.num_hidden_layers)
    tensors: dict[str, Tensor] = {}
    experts: dict[str, list[Tensor]] = {}
    for name, spec in source.layers.items():
        if spec.part == "tower":
            continue
        if spec.expert is None:
            tensors[f"{name}.weight"] = dequantized(source, name)
        else:
            base = name.replace(f".experts.{spec.expert}.", ".experts.")
            experts.setdefault(f"{base}.weight", []).append(dequantized(source, name))
    tensors |= {name: torch.stack(each) for name, each in experts.items()}
    for name in source.reader.names():
        is_text = not name.startswith("visual.") and ".experts." not in name
        if is_text and name.rpartition(".")[2] in ("weight", "bias") and name not in tensors:
            tensors[name] = source.tensor(name).float()
    renamed = {}
    for name, tensor in tensors.items():
        base, _, leaf = name.rpartition(".")
        renamed[f"{names.get_name(base)}.{leaf}"] = tensor
    return renamed


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_of_a_text_model_is_the_checkpoints(family: str, tmp_path: Path) -> None:
    steps = (
        {"ignore": ["model.layers.1.*"]},
        {"bits": 8, "group_size": -1, "targets": ["model.layers.1.*"]},
    )
    checkpoint = quantized(family, tmp_path, *steps, format="compressed-tensors")
    described, text, _ = exported(checkpoint)
    _, tensors, types = read_file(text)
    expected = expected_text(ExportSource(checkpoint), family)
    assert set(tensors) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), name
    assert types["blk.0.attn_q.weight"] == "Q4_0" and types["blk.1.attn_q.weight"] == "Q8_0"
    assert types["token_embd.weight"] == types["output.weight"] == "BF16"
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "F32"
    assert sum(each["tensors"] for each in described["text"].values()) == len(tensors)


@pytest.mark.parametrize("family", DENSE)
def test_every_number_of_a_tower_is_the_checkpoints(family: str, tmp_path: Path) -> None:
    checkpoint = quantized(family, tmp_path, TOWER, format="compressed-tensors")
    _, _, mmproj = exported(checkpoint)
    source = ExportSource(checkpoint)
    vision = source.config.vision
    _, tensors, types = read_file(mmproj)
    map_ = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, vision.depth)
    is_qwen3 = family.startswith("qwen3")
    for name in [f"{layer}.weight" for layer in source.schemes] + source.reader.names():
        base, _, leaf = name.rpartition(".")
        if not name.startswith("visual.") or leaf not in ("weight", "bias"):
            continue
        is_quantized = base in source.schemes and leaf == "weight"
        value = dequantized(source, base) if is_quantized else source.tensor(name).float()
        if base == "visual.patch_embed.proj" and leaf == "weight":
            parts = {"v.patch_embd.weight": value[:, :, 0], "v.patch_embd.weight.1": value[:, :, 1]}
        elif base.endswith("attn.qkv") and not is_qwen3:
            of_block = base.split(".")[2]
            thirds = zip("qkv", value.chunk(3), strict=True)
            parts = {f"v.blk.{of_block}.attn_{x}.{leaf}": third for x, third in thirds}
        elif "deepstack_merger_list" in base:
            index, module = base.split(".")[2:]
            block = vision.deepstack_visual_indexes[int(index)]
            module = module.replace("linear_", "")
            parts = {f"v.deepstack.{block}.{module}.{leaf}": value}
        elif base.startswith("visual.merger") and is_qwen3:
            of_merger = {"norm": "v.post_ln", "linear_fc1": "mm.0", "linear_fc2": "mm.2"}
            parts = {f"{of_merger[base.split('.')[2]]}.{leaf}": value}
        else:
            parts = {f"{map_.get_name(base)}.{leaf}": value}
        for new, tensor in parts.items():
            assert torch.equal(tensors.pop(new), tensor), (name, new)
    assert not tensors
    assert types["v.blk.0.attn_out.weight"] == "Q8_0"
    assert types["v.patch_embd.weight"] == "F32"
    assert types["mm.0.weight"] == "BF16"


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_state_the_sizes_of_the_model(family: str, tmp_path: Path) -> None:
    model, checkpoint = exportable(family, tmp_path / "float", tied=True)
    described, text, mmproj = exported(checkpoint)
    keys, tensors, _ = read_file(text)
    config, arch = model.config.text, keys["general.architecture"]
    assert arch == gguf.MODEL_ARCH_NAMES[ARCHITECTURES[family]] == described["architecture"]
    assert "output.weight" not in tensors  # tied
    assert keys[f"{arch}.block_count"] == config.num_hidden_layers
    assert keys[f"{arch}.attention.head_count_kv"] == config.num_key_value_heads
    assert keys[f"{arch}.rope.dimension_sections"] == [*config.mrope_section, 0]
    assert keys[f"{arch}.vocab_size"] == config.vocab_size == len(tensors["token_embd.weight"])
    assert keys["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16
    if family.startswith("qwen3"):
        deepstack = model.config.vision.deepstack_visual_indexes
        assert keys[f"{arch}.n_deepstack_layers"] == len(deepstack)
    if family == "qwen3_vl_moe":
        assert keys[f"{arch}.expert_count"] == 6 and keys[f"{arch}.expert_used_count"] == 2
    keys, _, _ = read_file(mmproj)
    vision = model.config.vision
    assert keys["general.architecture"] == "clip" and keys["general.type"] == "mmproj"
    assert keys["clip.vision.feed_forward_length"] == vision.intermediate_size
    assert keys["clip.vision.projection_dim"] == vision.out_hidden_size == config.hidden_size
    projectors = {"qwen2_vl": "qwen2vl_merger", "qwen2_5_vl": "qwen2.5vl_merger"}
    assert keys["clip.projector_type"] == projectors.get(family, "qwen3vl_merger")
    assert keys.get("clip.vision.n_wa_pattern") == (2 if family == "qwen2_5_vl" else None)
    if family.startswith("qwen3"):
        is_deepstack = keys["clip.vision.is_deepstack_layers"]
        assert [i for i, each in enumerate(is_deepstack) if each] == list(deepstack)
        assert keys["clip.vision.image_size"] == 7 * 16


def test_a_padded_width_is_carried(tmp_path: Path) -> None:
    """The tower's MLP is 92 wide: the quantized checkpoint has it padded, and so has the file."""
    tower = {"bits": 8, "group_size": -1, "targets": ["visual.*"]}
    checkpoint = quantized("qwen2_5_vl", tmp_path, tower, format="compressed-tensors")
    _, _, mmproj = exported(checkpoint)
    keys, tensors, types = read_file(mmproj)
    assert keys["clip.vision.feed_forward_length"] == 128
    assert types["v.blk.0.ffn_down.weight"] == "Q8_0"
    assert tensors["v.blk.0.ffn_down.weight"].shape == (64, 128)


def test_a_quantized_embedding_and_head(tmp_path: Path) -> None:
    steps = ({"bits": 8, "targets": ["embedding"]}, {"bits": 4, "targets": ["head"]})
    checkpoint = quantized("qwen2_5_vl", tmp_path, *steps, format="compressed-tensors")
    _, text, _ = exported(checkpoint)
    _, tensors, types = read_file(text)
    source = ExportSource(checkpoint)
    assert (types["token_embd.weight"], types["output.weight"]) == ("Q8_0", "Q4_0")
    assert torch.equal(tensors["token_embd.weight"], dequantized(source, "model.embed_tokens"))
    assert torch.equal(tensors["output.weight"], dequantized(source, "lm_head"))


def test_asymmetric_layers_take_the_smaller_exact_type(tmp_path: Path) -> None:
    step = {"symmetric": False, "group_size": 64}
    checkpoint = quantized("qwen2_vl", tmp_path, step, format="compressed-tensors")
    _, text, _ = exported(checkpoint)
    _, tensors, types = read_file(text)
    source = ExportSource(checkpoint)
    for block in range(source.config.text.num_hidden_layers):
        weight = source.weight(f"model.layers.{block}.mlp.down_proj")
        assert isinstance(weight, QuantizedWeight)
        name = f"blk.{block}.ffn_down.weight"
        least = -weight.scales * weight.zero_points
        is_exact = torch.equal(least.half().float(), least)
        assert types[name] == ("Q4_1" if is_exact else "Q5_0")
        assert torch.equal(tensors[name], weight.dequantize())


def test_float_types(tmp_path: Path) -> None:
    model, checkpoint = exportable("qwen2_5_vl", tmp_path / "float")
    wide, text, mmproj = exported(checkpoint, float_type="f32")
    _, tensors, types = read_file(text)
    assert set(types.values()) == {"F32"} == set(read_file(mmproj)[2].values())
    assert torch.equal(tensors["output.weight"], model.state_dict()["lm_head.weight"].float())
    assert list(wide["text"]) == ["F32"]
    # bf16 has numbers of which fp16 loses bits, those below 2**-17.
    with pytest.raises(ValueError, match=r"\.weight: F16 .*--float-type"):
        export(checkpoint=checkpoint, out=tmp_path / "half", format="gguf", float_type="f16")
    assert not (tmp_path / "half").exists()


def test_weights_in_fp16_stay_in_fp16(tmp_path: Path) -> None:
    model, checkpoint = exportable("qwen2_vl", tmp_path / "float", dtype=torch.float16)
    for options in ({}, {"float_type": "f16", "overwrite": True}):
        _, text, _ = exported(checkpoint, **options)
        _, tensors, types = read_file(text)
        assert types["output.weight"] == "F16" and types["output_norm.weight"] == "F32"
        assert torch.equal(tensors["output.weight"], model.state_dict()["lm_head.weight"].float())


def test_the_description_has_files_and_notes(tmp_path: Path) -> None:
    step = {"bits": 8, "group_size": -1, "activations": "dynamic"}
    checkpoint = quantized("qwen2_5_vl", tmp_path, step, format="compressed-tensors")
    described, text, _ = exported(checkpoint)
    stored = json.loads((text.parent / "export.json").read_text())
    assert described == {"export": str(text.parent), **stored}
    assert stored["files"]["NAME.gguf"] == {
        "bytes": text.stat().st_size,
        "sha256": hashlib.sha256(text.read_bytes()).hexdigest(),
    }
    notes = "\n".join(stored["notes"])
    assert "int8 per row sym + int8 dynamic activations" in notes
    # Exported again: finished already, and the same.
    assert export(checkpoint=checkpoint, out=text.parent, format="gguf") == described


def test_groups_in_another_order_are_refused(tmp_path: Path) -> None:
    checkpoint = quantized("qwen2_vl", tmp_path, {}, format="gptq")
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.down_proj.g_idx"
    tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.down_proj.*static groups"):
        export(checkpoint=checkpoint, out=tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()


def test_a_layer_without_a_type_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    step = {"group_size": 16, "targets": ["*.o_proj"]}
    checkpoint = quantized("qwen2_vl", tmp_path, step, format="compressed-tensors")
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.o_proj: int4 g16 sym"):
        export(checkpoint=checkpoint, out=tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()


def test_experts_that_are_only_partly_quantized(tmp_path: Path) -> None:
    """The plan of vlpress does not make such checkpoints."""
    source = ExportSource(quantized("qwen3_vl_moe", tmp_path, {}, format="compressed-tensors"))
    experts = [f"model.layers.0.mlp.experts.{number}.gate_proj" for number in range(6)]
    assert why_not_layers(source, experts) is None
    assert source.quantized is not None
    del source.quantized.schemes[experts[4]]
    reason = why_not_layers(source, experts)
    assert reason is not None and experts[0] in reason and f"{experts[4]} is not" in reason


def test_without_the_package_one_line_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, checkpoint = exportable("qwen2_vl", tmp_path / "float")
    monkeypatch.setattr("vlpress.quant.deployment.gguf.format.is_installed", lambda: False)
    with pytest.raises(ValueError, match=r"vlpress\[gguf\]"):
        export(checkpoint=checkpoint, out=tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["qwen3_5", pytest.param("qwen3_5_moe", marks=pytest.mark.slow)])
def test_linear_attention_has_the_order_and_the_values_of_llamacpp(
    family: str, tmp_path: Path
) -> None:
    """Two key heads with two value heads each: llama.cpp counts value heads 0, 2, 1, 3."""
    step = {"targets": ["*.in_proj_qkv", "*.in_proj_z", "*.out_proj"]}
    checkpoint = quantized(family, tmp_path, step, format="compressed-tensors")
    described, text, mmproj = exported(checkpoint)
    keys, tensors, types = read_file(text)
    source = ExportSource(checkpoint)
    arch = "qwen35" if family == "qwen3_5" else "qwen35moe"
    assert keys["general.architecture"] == arch == described["architecture"]
    assert keys[f"{arch}.ssm.time_step_rank"] == 4 and keys[f"{arch}.ssm.group_count"] == 2
    assert keys[f"{arch}.ssm.inner_size"] == 128 and keys[f"{arch}.ssm.state_size"] == 32
    assert keys[f"{arch}.full_attention_interval"] == 2
    assert keys[f"{arch}.rope.dimension_count"] == 32

    def heads(values: Tensor) -> Tensor:
        return torch.cat([values.chunk(4)[head] for head in (0, 2, 1, 3)])

    path = "model.layers.0.linear_attn"
    qkv = dequantized(source, f"{path}.in_proj_qkv")
    assert types["blk.0.attn_qkv.weight"] == types["blk.0.ssm_out.weight"] == "Q4_0"
    assert torch.equal(tensors["blk.0.attn_qkv.weight"], torch.cat([qkv[:128], heads(qkv[128:])]))
    gate = dequantized(source, f"{path}.in_proj_z")
    assert torch.equal(tensors["blk.0.attn_gate.weight"], heads(gate))
    out = dequantized(source, f"{path}.out_proj")
    assert torch.equal(tensors["blk.0.ssm_out.weight"], heads(out.t()).t())
    for name, stored in (
        ("ssm_beta.weight", "in_proj_b.weight"),
        ("ssm_alpha.weight", "in_proj_a.weight"),
        ("ssm_dt.bias", "dt_bias"),
    ):
        values = source.tensor(f"{path}.{stored}").float()
        assert torch.equal(tensors[f"blk.0.{name}"], heads(values)), name
    logarithm = source.tensor(f"{path}.A_log").float()
    assert torch.equal(tensors["blk.0.ssm_a"], heads(-logarithm.exp()))
    kernel = source.tensor(f"{path}.conv1d.weight").float()[:, 0]
    expected = torch.cat([kernel[:128], heads(kernel[128:])])
    assert torch.equal(tensors["blk.0.ssm_conv1d.weight"], expected)
    for name, stored in (
        ("blk.0.attn_norm", "model.layers.0.input_layernorm"),
        ("blk.1.post_attention_norm", "model.layers.1.post_attention_layernorm"),
        ("blk.1.attn_q_norm", "model.layers.1.self_attn.q_norm"),
        ("output_norm", "model.norm"),
    ):
        values = source.tensor(f"{stored}.weight").float()
        assert torch.equal(tensors[f"{name}.weight"], values + 1), name
    plain = source.tensor(f"{path}.norm.weight").float()
    assert torch.equal(tensors["blk.0.ssm_norm.weight"], plain)
    if family == "qwen3_5_moe":
        switch = tensors["blk.0.ffn_gate_inp_shexp.weight"]
        gate = source.tensor("model.layers.0.mlp.shared_expert_gate.weight").float()
        assert torch.equal(switch, gate[0])
        assert keys[f"{arch}.expert_shared_feed_forward_length"] == 64
    keys, _, _ = read_file(mmproj)
    assert keys["clip.projector_type"] == "qwen3vl_merger"
    assert not any(keys["clip.vision.is_deepstack_layers"])
