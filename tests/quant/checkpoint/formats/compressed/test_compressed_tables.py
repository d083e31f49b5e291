"""FP8, NVFP4 and MXFP4 layers in compressed-tensors checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from format_files import checkpoint, contents, edit_config, quantization_config, same_logits
from safetensors.torch import load_file
from torch import Tensor

from vlpress.model.families import LinearSpec
from vlpress.quant.checkpoint.export import export
from vlpress.quant.checkpoint.formats.contents import Contents
from vlpress.quant.checkpoint.formats.format import refusal
from vlpress.quant.checkpoint.formats.table import FORMATS, choose_format
from vlpress.quant.checkpoint.loading import load_quantized
from vlpress.quant.checkpoint.safetensors_folder.reading import QuantizedCheckpoint
from vlpress.quant.methods.grids.table_weight import TableWeight
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme, TableScheme

SCHEMES = {
    "FP8_DYNAMIC": TableScheme("fp8", activations="dynamic"),
    "FP8_BLOCK": TableScheme("fp8", 32, 32, "dynamic"),
    "NVFP4A16": TableScheme("nvfp4"),
    "NVFP4": TableScheme("nvfp4", activations="dynamic"),
    "MXFP4A16": TableScheme("mxfp4"),
    "MXFP4": TableScheme("mxfp4", activations="dynamic"),
}
"""By the library's names; its blocks are 128 x 128."""
OTHERS = [TableScheme("fp8"), TableScheme("fp8", activations="static")]
LAYER = "model.layers.0.mlp.down_proj"
FORMAT = FORMATS["compressed-tensors"]
ALL = pytest.mark.parametrize("scheme", [*SCHEMES.values(), *OTHERS], ids=lambda s: s.label)


def layer(scheme: TableScheme, rows: int = 64, columns: int = 96) -> TableWeight:
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-6, 3, (rows, 1), generator=generator)
    weight = torch.randn(rows, columns, generator=generator) * 2.0**exponents
    weight[3] = 0
    grid = scheme.fit_for_rounding(weight)
    compressed: TableWeight = grid.compressed(grid.nearest(weight))
    return compressed.with_input_range(20.0)


def steps(*of: dict[str, Any]) -> Recipe:
    return Recipe.from_dict({"name": "test", "step": [{"method": "rtn"} | step for step in of]})


@ALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_layers_round_trip(scheme: TableScheme, dtype: torch.dtype) -> None:
    weight = layer(scheme)
    tensors = FORMAT.encode(weight, dtype)
    decoded = FORMAT.decode(tensors, scheme, LAYER)
    assert decoded.equals(weight)
    spec = LinearSpec(LAYER, 96, 64, False, "decoder", "decoder", 0, "down")
    stored = sum(tensor.nbytes for tensor in tensors.values())
    assert stored == FORMAT.stored_bytes(spec, scheme, dtype)
    for tensor in tensors.values():
        tensor.view(torch.uint8).fill_(1)
    assert decoded.equals(layer(scheme))  # it holds no views of the file


@pytest.mark.parametrize("name", SCHEMES)
def test_the_library_decompresses_the_same_numbers(name: str) -> None:
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    theirs = quantization.preset_name_to_scheme(name, ["Linear"])
    weight = layer(SCHEMES[name])
    if name == "FP8_BLOCK":
        theirs.weights.block_structure = [32, 32]
    tensors = FORMAT.encode(weight, torch.bfloat16)
    storage = compressors.format.infer_module_format(torch.nn.Linear, theirs).value
    config = FORMAT.quantization_config(contents({LAYER: weight.scheme}), lambda n: n)  # type: ignore[attr-defined]
    assert config["format"] == storage
    names = set(
        compressors.BaseCompressor.get_value_from_registry(storage).compression_param_names(theirs)
    )
    # The library leaves out a divisor of the input, which llm-compressor writes and vLLM reads.
    assert set(tensors) - {"input_global_scale"} == names
    compressor = compressors.BaseCompressor.get_value_from_registry(storage)
    unpacked = compressor.decompress(tensors, theirs)["weight"]
    assert torch.equal(unpacked.bfloat16(), weight.dequantize(torch.bfloat16))


@pytest.mark.parametrize("name", ["NVFP4A16", "MXFP4A16", "FP8_DYNAMIC"])
def test_the_library_compresses_to_the_same_bytes(name: str) -> None:
    """Given our scales, of the dequantized weight."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    theirs = quantization.preset_name_to_scheme(name, ["Linear"])
    weight = layer(SCHEMES[name])
    storage = compressors.format.infer_module_format(torch.nn.Linear, theirs).value
    state = {"weight": weight.dequantize(), "weight_scale": weight.scales.clone()}
    if weight.divisor is not None:
        state["weight_global_scale"] = weight.divisor.reshape(1)
    compressor = compressors.BaseCompressor.get_value_from_registry(storage)
    packed = compressor.compress(state, theirs)
    for part, tensor in FORMAT.encode(weight, torch.float32).items():
        bits = packed[part].view(torch.uint8), tensor.view(torch.uint8)
        if part == "weight":  # the library keeps the sign of zero
            bits = bits[0].where(bits[0] != 0x80, 0), bits[1]
        if part == "weight_packed":
            low, high = (bits[0] & 15), (bits[0] >> 4)
            low, high = low.where(low != 8, 0), high.where(high != 8, 0)
            bits = low | (high << 4), bits[1]
        assert torch.equal(*bits), part


@pytest.mark.parametrize("name", SCHEMES)
def test_configurations_of_the_library_are_read(name: str) -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    group = quantization.preset_name_to_scheme(name, ["Linear"])
    config = quantization.QuantizationConfig(
        config_groups={"group_0": group},
        format="float-quantized",
        quantization_status="compressed",
    ).model_dump(mode="json")
    expected = SCHEMES[name]
    if name == "FP8_BLOCK":
        expected = TableScheme("fp8", 128, 128, "dynamic")
    assert FORMAT.settings(config).scheme([LAYER]) == expected  # type: ignore[attr-defined]
    written = FORMAT.quantization_config(contents({LAYER: expected}), lambda n: n)  # type: ignore[attr-defined]
    del written["quant_method"]  # as readers do
    read_by_library = quantization.QuantizationConfig.model_validate(written)
    ours = read_by_library.config_groups["group_0"]
    assert ours.weights.strategy == group.weights.strategy
    assert ours.weights.scale_dtype == group.weights.scale_dtype
    assert (ours.input_activations is None) == (group.input_activations is None)
    if group.input_activations is not None:
        for key in ("strategy", "dynamic", "group_size", "num_bits", "scale_dtype"):
            assert getattr(ours.input_activations, key) == getattr(group.input_activations, key)


def test_one_scale_for_the_whole_matrix_is_read() -> None:
    weight = layer(TableScheme("fp8"))
    tensors = FORMAT.encode(weight, torch.bfloat16)
    tensors["weight_scale"] = torch.tensor([0.25])
    decoded = FORMAT.decode(tensors, weight.scheme, LAYER)
    assert isinstance(decoded, TableWeight) and set(decoded.scales.flatten().tolist()) == {0.25}


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (TableScheme("nf4"), "down_proj has grid nf4: only bitsandbytes reads it"),
        (TableScheme("pot4"), "down_proj has grid pot4: no engine reads it"),
        (TableScheme("ternary"), "down_proj has grid ternary: no engine reads it"),
        (TableScheme("fp8-e5m2"), "down_proj has grid fp8-e5m2: engines read E4M3 .*; use fp8"),
        (TableScheme("fp8", 32), "down_proj has fp8 weights in groups of a row, .*scale_rows"),
    ],
)
def test_what_no_engine_reads_is_refused_by_name(scheme: TableScheme, message: str) -> None:
    held = contents({LAYER: scheme})
    with pytest.raises(ValueError, match=message):
        choose_format(held)
    for name in ("gptq", "gptq_v2", "awq"):
        assert "is of the kind table" in str(refusal(FORMATS[name], held))


@pytest.mark.usefixtures("reference_kernel")
def test_a_checkpoint_mixes_tables_and_integers(tmp_path: Path) -> None:
    rule = steps(
        {"grid": "fp8", "activations": "dynamic", "targets": ["*.down_proj"]},
        {"grid": "nvfp4", "targets": ["*_proj"], "ignore": ["*.down_proj", "*.0.self_attn.*"]},
        {"bits": 4, "group_size": 32, "targets": ["*.0.self_attn.*"]},
    )
    model, report, out = checkpoint(tmp_path, rule, "compressed-tensors")
    config = quantization_config(out)
    assert config["format"] == "mixed-precision"
    assert {group["format"] for group in config["config_groups"].values()} == {
        "float-quantized",
        "nvfp4-pack-quantized",
        "pack-quantized",
    }
    loaded = load_quantized(out, device="cpu")
    assert same_logits(model, loaded)
    files = load_file(out / "model.safetensors")
    assert report.candidate_bytes == sum(tensor.nbytes for tensor in files.values())
    fused = [files[f"model.layers.1.self_attn.{n}_proj.weight_global_scale"] for n in "qkv"]
    assert torch.equal(fused[0], fused[1]) and torch.equal(fused[0], fused[2])
    assert not torch.equal(fused[0], files["model.layers.1.self_attn.o_proj.weight_global_scale"])
    export(out, tmp_path / "copy", "compressed-tensors")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (
        out / "model.safetensors"
    ).read_bytes()
    with pytest.raises(ValueError, match="of the kind table; gptq holds integer"):
        export(out, tmp_path / "gptq", "gptq")


@pytest.mark.usefixtures("reference_kernel")
def test_calibrated_activations_are_written_and_loaded(tmp_path: Path) -> None:
    rule = steps(
        {"grid": "fp8", "activations": "static", "targets": ["*.down_proj"]},
        {"grid": "nvfp4", "activations": "dynamic", "targets": ["*.up_proj", "*.gate_proj"]},
    )
    model, _, out = checkpoint(tmp_path, rule, "compressed-tensors")
    files = load_file(out / "model.safetensors")
    assert files["model.layers.0.mlp.down_proj.input_scale"].shape == (1,)
    shared = [files[f"model.layers.0.mlp.{n}_proj.input_global_scale"] for n in ("up", "gate")]
    assert torch.equal(*shared) and shared[0].dtype == torch.float32
    assert same_logits(model, load_quantized(out, device="cpu"))


def damaged(tensors: dict[str, Tensor], part: str, change: Any) -> dict[str, Tensor]:
    old = tensors.pop(part, None)
    return tensors if change is None else tensors | {part: change(old)}


@pytest.mark.parametrize(
    ("name", "part", "change", "message"),
    [
        ("NVFP4A16", "weight_packed", None, "weight_packed is missing"),
        ("NVFP4A16", "weight_packed", lambda t: t.int(), "weight_packed is torch.int32"),
        ("NVFP4A16", "weight_scale", lambda t: t.float(), "expected torch.float8_e4m3fn"),
        (
            "NVFP4A16",
            "weight_scale",
            lambda t: (t.view(torch.uint8) | 0x80).view(t.dtype),
            "not positive",
        ),
        ("NVFP4A16", "weight_global_scale", None, "weight_global_scale is missing"),
        ("NVFP4A16", "weight_global_scale", lambda t: t * 0, "must be one positive float"),
        ("NVFP4", "input_global_scale", None, "input_global_scale is missing"),
        ("MXFP4A16", "weight_scale", lambda t: t * 0 + 255, "not positive"),
        ("MXFP4A16", "weight_scale", lambda t: t[:, 1:], r"weight_scale is torch.uint8 \[64, 2\]"),
        ("FP8_DYNAMIC", "weight", lambda t: t.float(), "expected a matrix of torch.float8_e4m3fn"),
        ("FP8_DYNAMIC", "weight", lambda t: t.float().to(torch.float8_e5m2), "float8_e5m2"),
        (
            "FP8_DYNAMIC",
            "weight",
            lambda t: (t.view(torch.uint8) | 0x7F).view(t.dtype),
            "has the code .* no number of the grid fp8",
        ),
        ("FP8_BLOCK", "weight_scale", lambda t: t.t(), r"weight_scale is .* \[3, 2\]"),
    ],
)
def test_damaged_layers(name: str, part: str, change: Any, message: str) -> None:
    weight = layer(SCHEMES[name])
    tensors = damaged(FORMAT.encode(weight, torch.bfloat16), part, change)
    with pytest.raises(ValueError, match=message):
        FORMAT.decode(tensors, weight.scheme, LAYER)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"strategy": "group", "group_size": 128},
            "strategy is group with 8 bits; allowed: channel with 8 bits, .*group with 4 bits",
        ),
        ({"num_bits": 6}, "weights.num_bits is 6; allowed: 8, 4"),
        ({"strategy": "block"}, "block_structure is None with strategy block; allowed: two whole"),
        ({"symmetric": False}, "weights.symmetric is False; allowed: true"),
        (
            {"num_bits": 4, "strategy": "tensor_group", "group_size": 32},
            "weights: grid nvfp4 with group_size 32; allowed: 16",
        ),
    ],
)
def test_unknown_weights(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    _, _, out = checkpoint(tmp_path, steps({"grid": "fp8"}), "compressed-tensors")
    groups = quantization_config(out)["config_groups"]
    groups["group_0"]["weights"] |= changes
    edit_config(out, config_groups=groups)
    with pytest.raises(ValueError, match=message) as caught:
        QuantizedCheckpoint(out)
    assert str(caught.value).startswith(f"{out}: quantization_config: config_groups.group_0")


def test_other_activations_are_refused() -> None:
    config = FORMAT.quantization_config(  # type: ignore[attr-defined]
        contents({LAYER: TableScheme("fp8", activations="dynamic")}), lambda n: n
    )
    inputs = config["config_groups"]["group_0"]["input_activations"]
    inputs |= {"strategy": "tensor", "dynamic": True}
    message = "has 8 bits, tensor, dynamic True, .*allowed with fp8 weights: 8 bits, token"
    with pytest.raises(ValueError, match=message):
        FORMAT.settings(config)  # type: ignore[attr-defined]


def test_layers_without_a_scale_of_the_input_are_refused() -> None:
    weight = replace(layer(SCHEMES["NVFP4"]), input_scale=None)
    with pytest.raises(ValueError, match="activations need a scale"):
        FORMAT.encode(weight, torch.bfloat16)
    with pytest.raises(ValueError, match="nvfp4 dynamic activations comes with no input scale"):
        weight.inference_layer(None)


def test_plans_name_a_format_for_grids_that_none_holds() -> None:
    held = Contents(contents({}).config, {LAYER: TableScheme("nf4")})
    spec = LinearSpec(LAYER, 128, 64, False, "decoder", "decoder", 0, "down")
    expected = 64 * 128 // 2 + 64 * 2 * 2
    assert FORMAT.stored_bytes(spec, TableScheme("nf4"), torch.bfloat16) == expected
    assert refusal(FORMAT, held) and refusal(FORMAT, contents(QuantScheme(4, 32))) is None
