"""FP8 in blocks, as Qwen publishes it, and with one scale per tensor."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from format_files import checkpoint, contents, edit_config, quantization_config, same_logits
from safetensors.torch import load_file, save_file

from vlpress.quant.checkpoint.export import export
from vlpress.quant.checkpoint.formats.format import refusal
from vlpress.quant.checkpoint.formats.table import FORMATS, choose_format, format_of
from vlpress.quant.checkpoint.loading import load_quantized
from vlpress.quant.checkpoint.safetensors_folder.reading import QuantizedCheckpoint
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme, Scheme, TableScheme

LAYER = "model.layers.0.mlp.down_proj"
BLOCKS = TableScheme("fp8", 32, 32, "dynamic")
RECIPE = Recipe.from_dict({"step": [{"method": "rtn", **BLOCKS.to_dict()}]})


def test_a_layer_by_hand() -> None:
    """The factor of a block is stored as `weight_scale_inv`; its levels are E4M3."""
    scheme = TableScheme("fp8", 2, 2, "dynamic")
    tensors = {
        "weight": torch.tensor([[1.0, -2.0, 448.0, 0.0], [0.5, 3.5, -448.0, 0.0]]).to(
            torch.float8_e4m3fn
        ),
        "weight_scale_inv": torch.tensor([[0.5, 0.25]]),
    }
    weight = FORMATS["fp8"].decode(tensors, scheme, "x").dequantize()
    assert weight.tolist() == [[0.5, -1.0, 112.0, 0.0], [0.25, 1.75, -112.0, 0.0]]


@pytest.mark.usefixtures("reference_kernel")
def test_a_checkpoint_is_written_read_and_converted(tmp_path: Path) -> None:
    model, report, out = checkpoint(tmp_path, RECIPE, "fp8")
    config = quantization_config(out)
    assert config["quant_method"] == "fp8" and config["weight_block_size"] == [32, 32]
    assert "visual.merger.mlp.0" in config["modules_to_not_convert"]
    files = load_file(out / "model.safetensors")
    assert files[f"{LAYER}.weight"].dtype == torch.float8_e4m3fn
    assert files[f"{LAYER}.weight_scale_inv"].shape == (2, 4)
    assert report.candidate_bytes == sum(tensor.nbytes for tensor in files.values())
    assert same_logits(model, load_quantized(out, device="cpu"))
    export(out, tmp_path / "ct", "compressed-tensors")
    assert same_logits(model, load_quantized(tmp_path / "ct", device="cpu"))
    export(tmp_path / "ct", tmp_path / "back", "fp8")
    back = tmp_path / "back" / "model.safetensors"
    assert back.read_bytes() == (out / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("reference_kernel")
def test_scales_in_float32_of_other_writers_stay_exact(tmp_path: Path) -> None:
    _, _, out = checkpoint(tmp_path, RECIPE, "fp8")
    files = load_file(out / "model.safetensors")
    scales = {name: tensor for name, tensor in files.items() if name.endswith("weight_scale_inv")}
    save_file(
        files | {name: tensor.float() * 1.0001 for name, tensor in scales.items()},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    weight = QuantizedCheckpoint(out).weight(LAYER)
    name = f"{LAYER}.weight_scale_inv"
    assert torch.equal(weight.tensors()["scales"], scales[name].float() * 1.0001)
    loaded = load_quantized(out, device="cpu").get_submodule(LAYER)
    assert torch.equal(loaded.to(torch.bfloat16).quantized().scales, weight.tensors()["scales"])  # type: ignore[operator]


def test_published_configurations_are_read() -> None:
    """The keys of Qwen3-VL's FP8 models."""
    config: dict[str, Any] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "modules_to_not_convert": ["lm_head", "model.visual.merger.linear_fc1"],
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    format = format_of(config)
    assert format.name == "fp8"
    assert format.settings(config).scheme([LAYER]) == TableScheme("fp8", 128, 128, "dynamic")


@pytest.mark.usefixtures("reference_kernel")
@pytest.mark.parametrize("part", ["weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_scale_per_tensor(
    tmp_path: Path, part: str, activations: str, shape: tuple[int, ...]
) -> None:
    """A folder with the tensors and keys that AutoFP8 wrote."""
    _, _, out = checkpoint(tmp_path, RECIPE, "fp8")
    files, expected = load_file(out / "model.safetensors"), {}
    for name in [name for name in files if name.endswith(".weight_scale_inv")]:
        owner = name.removesuffix(".weight_scale_inv")
        factor = float(files.pop(name).float().max())
        files[f"{owner}.{part}"] = torch.full(shape, factor)
        if activations == "static":
            files[f"{owner}.input_scale"] = torch.full(shape, 0.03125)
        expected[owner] = files[f"{owner}.weight"].float() * factor
    save_file(files, out / "model.safetensors", metadata={"format": "pt"})
    edit_config(out, weight_block_size=None, activation_scheme=activations)
    read = QuantizedCheckpoint(out)
    read.check()
    assert set(read.schemes) == set(expected)
    for name, dequantized in expected.items():
        weight = read.weight(name)
        assert weight.scheme == TableScheme("fp8", -1, activations=activations)  # type: ignore[arg-type]
        assert torch.equal(weight.dequantize(), dequantized)
        scale = weight.tensors().get("input_scale")
        assert (None if scale is None else float(scale)) == (
            0.03125 if activations == "static" else None
        )
    model = load_quantized(out, device="cpu")
    export(out, tmp_path / "ct", "compressed-tensors")
    assert same_logits(model, load_quantized(tmp_path / "ct", device="cpu"))


def test_two_factors_of_a_tensor_are_refused() -> None:
    tensors = {
        "weight": torch.ones(4, 4).to(torch.float8_e4m3fn),
        "weight_scale": torch.tensor(1.0),
        "weight_scale_inv": torch.tensor(1.0),
    }
    with pytest.raises(ValueError, match="x has both weight_scale_inv and weight_scale"):
        FORMATS["fp8"].decode(tensors, TableScheme("fp8", activations="dynamic"), "x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_block_size": [128]}, r"weight_block_size is \[128\]; allowed: a list of two"),
        ({"activation_scheme": "static"}, "activation_scheme is 'static'; allowed: dynamic"),
        ({"fmt": "e5m2"}, "fmt is 'e5m2'; allowed: e4m3"),
    ],
)
def test_other_configurations_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    _, _, out = checkpoint(tmp_path, RECIPE, "fp8")
    edit_config(out, **changes)
    with pytest.raises(ValueError, match=message):
        QuantizedCheckpoint(out)
    assert json.loads((out / "config.json").read_text())


@pytest.mark.parametrize(
    ("schemes", "message"),
    [
        ({LAYER: QuantScheme(4, 32)}, "is of the kind integer; fp8 holds table"),
        ({LAYER: TableScheme("nvfp4")}, "has the scheme nvfp4 g16; fp8 holds blocks of fp8"),
        ({LAYER: TableScheme("fp8", activations="dynamic")}, "has the scheme fp8 per row"),
        (
            {LAYER: BLOCKS, "model.layers.1.mlp.down_proj": TableScheme("fp8", 64, 64, "dynamic")},
            "several block sizes .*; use compressed-tensors",
        ),
    ],
)
def test_other_contents_are_refused(schemes: dict[str, Scheme], message: str) -> None:
    held = contents(schemes)
    with pytest.raises(ValueError, match=message):
        choose_format(held, "fp8")
    assert refusal(FORMATS["fp8"], contents({LAYER: BLOCKS})) is None
