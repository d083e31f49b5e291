"""Reading GPTQ checkpoints of vlpress and of other writers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gptq_files import all_tensors, export, packed_by_hand, recipe
from safetensors.torch import save_file
from tiny_models import prompts

from vlpress.quant.checkpoint.formats.format import integers_of
from vlpress.quant.checkpoint.formats.table import FORMATS
from vlpress.quant.driver.pipeline import is_quantized, load_quantized, open_model
from vlpress.quant.methods.affine import QuantizedWeight
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.targets import quantized_layers

pytestmark = pytest.mark.usefixtures("reference_kernel")

V1 = FORMATS["gptq"]


def test_open_model_distinguishes_the_kinds(tmp_path: Path) -> None:
    _, _, source, out = export(tmp_path, recipe())
    assert is_quantized(out)
    assert not is_quantized(source)
    assert len(quantized_layers(open_model(out, device="cpu"))) == 14
    assert quantized_layers(open_model(source, device="cpu", dtype="fp32")) == {}
    assert open_model(out, device="cpu", dtype=torch.float32).dtype == torch.float32
    with pytest.raises(ValueError, match="dtype 'int8' is unknown"):
        load_quantized(out, device="cpu", dtype="int8")
    with pytest.raises(ValueError, match="is not quantized; load it with load_model"):
        load_quantized(source)


def edit(out: Path, **changes: Any) -> None:
    raw = json.loads((out / "config.json").read_text())
    raw["quantization_config"] |= changes
    (out / "config.json").write_text(json.dumps(raw))


def test_reads_v2(tmp_path: Path) -> None:
    model, _, _, out = export(tmp_path, recipe())
    tensors = all_tensors(out)
    for name in tensors:
        if name.endswith("qzeros"):
            tensors[name] += 0x11111111
            assert int(tensors[name][0, 0]) & 0xFFFFFFFF == 0x88888888
    save_file(tensors, out / "model.safetensors")
    edit(out, checkpoint_format="gptq_v2")
    with torch.no_grad():
        samples = prompts(model.config)
        for expected, logits in zip(
            model(samples), load_quantized(out, device="cpu")(samples), strict=True
        ):
            assert torch.equal(expected, logits)


def test_reads_act_order_of_other_writers(tmp_path: Path) -> None:
    """desc_act: groups follow the solving order, so `g_idx` is not monotonic."""
    model, _, _, out = export(tmp_path, recipe())
    name = "model.layers.0.mlp.down_proj"
    tensors = all_tensors(out)
    weight = quantized_layers(model)[name].quantized()
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    shuffled = QuantizedWeight(
        weight.integers,
        weight.scales,
        weight.zero_points,
        weight.scheme,
        weight.column_groups()[order],
    )
    tensors |= {
        f"{name}.{part}": tensor for part, tensor in V1.encode(shuffled, torch.float16).items()
    }
    save_file(tensors, out / "model.safetensors")
    edit(out, desc_act=True, static_groups=False)
    layer = quantized_layers(load_quantized(out, device="cpu"))[name]
    assert layer.group_index is not None
    assert torch.equal(layer.quantized().dequantize(), shuffled.dequantize())
    assert not torch.equal(layer.quantized().dequantize(), weight.dequantize())


def test_loaded_layers_outlive_their_file(tmp_path: Path) -> None:
    """No tensor of a layer may be a view of the file."""
    *_, out = export(tmp_path, recipe(method="rtn"), dtype=torch.float16)
    name = "model.layers.0.self_attn.q_proj"
    tensors = all_tensors(out)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    tensors[f"{name}.g_idx"] = tensors[f"{name}.g_idx"][order]
    save_file(tensors, out / "model.safetensors")
    loaded = load_quantized(out, device="cpu")
    (out / "model.safetensors").write_bytes(b"")
    layer = quantized_layers(loaded)[name]
    assert layer.group_index is not None and layer.bias is not None
    assert torch.equal(layer.group_index, tensors[f"{name}.g_idx"])
    assert torch.equal(layer.bias, tensors[f"{name}.bias"])
    assert all(bool(torch.isfinite(part).all()) for part in loaded.state_dict().values())


def test_reads_zero_points_that_wrapped() -> None:
    weight = rtn(torch.rand(32, 32), QuantScheme(4, 32, symmetric=False))
    assert set(weight.zero_points.flatten().tolist()) == {0}
    with pytest.raises(ValueError, match="a zero point is 0"):
        V1.encode(weight, torch.float16)
    tensors = packed_by_hand(rtn(torch.rand(32, 32), QuantScheme(4, 32)))
    tensors["qzeros"].fill_(-1)  # 0 - 1 in every nibble
    decoded = integers_of(V1.decode(tensors, weight.scheme, "x"))
    assert set(decoded.zero_points.flatten().tolist()) == {0}


def test_missing_g_idx_and_empty_bias_are_accepted(tmp_path: Path) -> None:
    model, _, _, out = export(tmp_path, recipe())
    tensors = {n: t for n, t in all_tensors(out).items() if not n.endswith("g_idx")}
    name = "model.layers.0.self_attn.o_proj.bias"
    tensors[name] = torch.zeros(64, dtype=torch.float16)
    save_file(tensors, out / "model.safetensors")
    loaded = load_quantized(out, device="cpu")
    with torch.no_grad():
        sample = prompts(model.config)[:1]
        assert torch.equal(model(sample)[0], loaded(sample)[0])
    tensors[name] = torch.ones(64, dtype=torch.float16)
    save_file(tensors, out / "model.safetensors")
    with pytest.raises(ValueError, match=r"o_proj\.bias is not zero"):
        load_quantized(out, device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "hqq"}, "quant_method is 'hqq'; allowed: gptq, compressed-tensors, "),
        ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; allowed: gptq"),
        ({"bits": None}, "bits is None; allowed: 2, 3, 4, 8"),
        ({"bits": 5}, "quantization_config: bits is 5; allowed: 2, 3, 4, 8"),
        ({"bits": True}, "bits is True; allowed: 2, 3, 4, 8"),
        ({"group_size": 0}, "group_size is 0; allowed: -1"),
        ({"pack_dtype": "int16"}, "pack_dtype is 'int16'"),
        ({"dynamic": {"+:(": {}}}, r"dynamic\['\+:\('\]: .* not a valid expression"),
        ({"dynamic": {".*down_proj": {"bits": 5}}}, r"\['.\*down_proj'\].bits is 5; .* 2, 3, 4, 8"),
        ({"dynamic": {".*down_proj": 3}}, r"dynamic\['.\*down_proj'\] is 3; allowed: a table"),
        ({"dynamic": [1]}, r"dynamic is \[1\]; allowed: a table"),
        ({"bits": 8}, r"qzeros is torch.int32 \[2, 8\]; expected torch.int32 \[1, 16\]"),
        ({"group_size": 64}, r"qzeros is torch.int32 \[2, 8\]; expected torch.int32 \[1, 8\]"),
    ],
)
def test_unknown_configurations_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    *_, out = export(tmp_path, recipe(method="rtn"))
    edit(out, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_quantized(out, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qzeros", None, r"down_proj\.qzeros is missing"),
        ("g_idx", lambda t: t + 3, r"g_idx runs from 3 to 6, but there are 4 groups"),
        ("scales", lambda t: t[:2].contiguous(), r"scales is torch\.float16 \[2, 64\]; expected"),
        ("qweight", lambda t: t.float(), r"qweight is torch\.float32"),
        ("extra", lambda t: torch.ones(1), r"down_proj\.extra is unknown to this model"),
    ],
)
def test_damaged_layers_are_refused(tmp_path: Path, name: str, change: Any, message: str) -> None:
    *_, out = export(tmp_path, recipe(method="rtn"))
    tensors = all_tensors(out)
    key = f"model.layers.0.mlp.down_proj.{name}"
    if change is None:
        del tensors[key]
    else:
        tensors[key] = change(tensors.get(key))
    save_file(tensors, out / "model.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        load_quantized(out, device="cpu")
    assert str(caught.value).startswith(f"{out}: ")


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    *_, out = export(tmp_path, recipe(method="rtn"))
    raw = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(raw | {"num_hidden_layers": 1}))
    with pytest.raises(ValueError, match="has no such layer"):
        load_quantized(out, device="cpu")
    (out / "config.json").write_text(json.dumps(raw | {"intermediate_size": 160}))
    with pytest.raises(ValueError, match="they belong to different models"):
        load_quantized(out, device="cpu")


def test_types_and_keys_of_other_writers(tmp_path: Path) -> None:
    """`scales` in bf16, `g_idx` as int64, and the keys that GPTQModel adds."""
    model, _, _, out = export(tmp_path, recipe(method="rtn"))
    tensors = all_tensors(out)
    for name in tensors:
        if name.endswith("scales"):
            tensors[name] = tensors[name].bfloat16()
        if name.endswith("g_idx"):
            tensors[name] = tensors[name].long()
    save_file(tensors, out / "model.safetensors")
    extra = {"method": "gptq", "format": "gptq", "pack_dtype": "int32", "meta": {"mse": 0.0}}
    edit(out, **extra)
    with torch.no_grad():
        sample = prompts(model.config)[:1]
        assert torch.equal(model(sample)[0], load_quantized(out, device="cpu")(sample)[0])


def test_zero_points_that_contradict_the_configuration_are_refused(tmp_path: Path) -> None:
    """A v1 file declared as v2: every zero point is read one too small."""
    *_, out = export(tmp_path, recipe(method="rtn"))
    edit(out, checkpoint_format="gptq_v2")
    message = r"q_proj has a zero point of 7, but .* symmetric, which means 8; correct sym or check"
    with pytest.raises(ValueError, match=message):
        load_quantized(out, device="cpu")
