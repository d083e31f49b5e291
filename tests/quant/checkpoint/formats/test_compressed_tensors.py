"""The compressed-tensors format against its own library, and its configuration."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from format_files import (
    checkpoint,
    contents,
    edit_config,
    made_layer,
    quantization_config,
    recipe,
    same_logits,
    weights_of,
)
from gptq_files import all_tensors
from safetensors.torch import save_file
from tiny_models import small_config
from torch import Tensor

from vlpress.quant.checkpoint.formats.compressed_tensors import CompressedTensors
from vlpress.quant.checkpoint.formats.format import integers_of
from vlpress.quant.driver.pipeline import check_format, load_quantized, make_plan
from vlpress.quant.recipe.scheme import QuantScheme

pytestmark = pytest.mark.usefixtures("reference_kernel")

library = pytest.importorskip("compressed_tensors")
from compressed_tensors.compressors import BaseCompressor  # noqa: E402
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme  # noqa: E402

CT = CompressedTensors()
SCHEMES = [
    *(QuantScheme(bits, 32) for bits in range(2, 9)),
    *(QuantScheme(bits, 32, symmetric=False) for bits in range(2, 9)),
    QuantScheme(8, -1),
    QuantScheme(4, -1, symmetric=False),
    QuantScheme(8, -1, activations="dynamic"),
    QuantScheme(8, -1, activations="static"),
    QuantScheme(4, 32, activations="dynamic"),
]


def decompressed_by_library(tensors: dict[str, Tensor], scheme: QuantScheme) -> Tensor:
    """Decompress a layer's tensors with the library."""
    described = CT.quantization_config(contents(scheme), lambda name: name)
    (group,) = QuantizationConfig(**described).config_groups.values()
    assert isinstance(group, QuantizationScheme)
    compressor = BaseCompressor.get_value_from_registry(described["format"])
    weight: Tensor = compressor.decompress(tensors, group)["weight"]
    return weight


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
@pytest.mark.parametrize("shape", [(64, 96), (36, 96)])
def test_the_library_reads_the_same_numbers(scheme: QuantScheme, shape: tuple[int, int]) -> None:
    weight = made_layer(scheme, *shape)
    tensors = CT.encode(weight, torch.float32)
    assert torch.equal(decompressed_by_library(tensors, scheme), weight.dequantize())
    assert CT.decode(tensors, scheme, "x").equals(weight)


@pytest.mark.parametrize("scheme", SCHEMES[:14], ids=lambda scheme: scheme.label)
def test_the_library_packs_the_same_words(scheme: QuantScheme) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    weight = made_layer(scheme, 36, 96)
    tensors = CT.encode(weight, torch.bfloat16)
    signed = (weight.integers.int() - scheme.midpoint).to(torch.int8)
    assert torch.equal(tensors["weight_packed"], pack_to_int32(signed, scheme.bits))
    assert tensors["weight_shape"].tolist() == [36, 96]
    if not scheme.symmetric:
        signed = (weight.zero_points.int() - scheme.midpoint).to(torch.int8)
        packed = pack_to_int32(signed, scheme.bits, packed_dim=0)
        assert torch.equal(tensors["weight_zero_point"], packed)


def test_scales_have_the_checkpoints_dtype_or_a_wider_one() -> None:
    weight = made_layer(QuantScheme(4, 32))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert CT.encode(weight, dtype)["weight_scale"].dtype == dtype
    weight.scales[0, 0] = 1 + 2.0**-10
    assert CT.encode(weight, torch.bfloat16)["weight_scale"].dtype == torch.float16
    weight.scales[0, 0] = 1 + 2.0**-20
    tensors = CT.encode(weight, torch.bfloat16)
    assert tensors["weight_scale"].dtype == torch.float32
    assert CT.decode(tensors, weight.scheme, "x").equals(weight)


def test_weights_and_activations_of_int8(tmp_path: Path) -> None:
    rule = recipe({"bits": 8, "group_size": -1, "activations": "dynamic"})
    model, report, out = checkpoint(tmp_path, rule, "compressed-tensors")
    tensors = all_tensors(out)
    name = "model.layers.0.self_attn.k_proj"
    assert {key.removeprefix(name + ".") for key in tensors if key.startswith(name)} == {
        "weight",
        "weight_scale",
        "bias",
    }
    weight = weights_of(out)[name]
    assert tensors[f"{name}.weight"].dtype == torch.int8
    assert torch.equal(tensors[f"{name}.weight"].int() + 128, weight.integers.int())
    assert tensors[f"{name}.weight_scale"].shape == (32, 1)
    assert tensors[f"{name}.weight_scale"].dtype == torch.bfloat16
    assert tensors[f"{name}.bias"].dtype == torch.bfloat16  # as the source has it
    assert same_logits(model, load_quantized(out, device="cpu"))
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert json.loads((out / "vlpress.json").read_text())["size"]["candidate_bytes"] == size
    assert report.plan.format == "compressed-tensors" and report.candidate_bytes == size


def test_one_scheme_is_one_group(tmp_path: Path) -> None:
    _, _, out = checkpoint(tmp_path, recipe({"symmetric": False}), "compressed-tensors")
    config = quantization_config(out)
    assert config == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": [
            *(
                f"visual.blocks.{block}.{linear}"
                for block in range(2)
                for linear in (
                    "attn.qkv",
                    "attn.proj",
                    "mlp.gate_proj",
                    "mlp.up_proj",
                    "mlp.down_proj",
                )
            ),
            "visual.merger.mlp.0",
            "visual.merger.mlp.2",
            "lm_head",
            r"re:.*visual\..*",
            "re:.*lm_head.*",
        ],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": False,
                    "strategy": "group",
                    "group_size": 32,
                    "dynamic": False,
                    "actorder": None,
                },
                "input_activations": None,
                "output_activations": None,
            }
        },
    }
    assert not (out / "quantize_config.json").exists()


MIXED = recipe(
    {"ignore": ["*.down_proj", "model.layers.1.self_attn.o_proj"]},
    {
        "bits": 8,
        "group_size": -1,
        "activations": "dynamic",
        "targets": ["model.layers.*.down_proj"],
    },
    {"bits": 8, "group_size": -1, "targets": ["visual.merger.*"]},
)


def schemes_found(config: dict[str, Any], names: dict[str, str]) -> dict[str, set[int]]:
    """Return the indices of matching groups by layer, by the rules that engines share."""
    groups_by_layer: dict[str, set[int]] = {}
    for layer, name in names.items():

        def hit(target: str, name: str = name) -> bool:
            if target.startswith("re:"):
                return re.match(target[3:], name) is not None
            return target in (name, "Linear")

        groups = config["config_groups"].values()
        hits = {i for i, group in enumerate(groups) if any(map(hit, group["targets"]))}
        groups_by_layer[layer] = set() if any(map(hit, config["ignore"])) else hits
    return groups_by_layer


def test_several_schemes_match_under_every_naming(tmp_path: Path) -> None:
    model, _, out = checkpoint(tmp_path, MIXED, "compressed-tensors")
    config = quantization_config(out)
    assert config["format"] == "mixed-precision"
    formats = [group["format"] for group in config["config_groups"].values()]
    assert formats == ["pack-quantized", "pack-quantized", "int-quantized"]
    layers = list(contents({}).linears)
    newer = {
        name: "model." + name
        if name.startswith("visual.")
        else name.replace("model.layers", "model.language_model.layers")
        for name in layers
    }
    expected = {
        name: {1}
        if "merger" in name
        else {2}
        if name.endswith("down_proj") and "layers" in name
        else set()
        if "visual" in name or name == "model.layers.1.self_attn.o_proj"
        else {0}
        for name in layers
    }
    for names in ({name: name for name in layers}, newer):
        assert schemes_found(config, names) == expected
    assert same_logits(model, load_quantized(out, device="cpu"))


def test_names_of_the_ignored_are_those_of_the_file(tmp_path: Path) -> None:
    _, _, out = checkpoint(tmp_path, recipe(), "compressed-tensors", nested=True)
    ignore = quantization_config(out)["ignore"]
    assert "model.visual.blocks.0.attn.qkv" in ignore
    assert "visual.blocks.0.attn.qkv" not in ignore


def test_an_untied_head_can_be_quantized(tmp_path: Path) -> None:
    rule = recipe({}, {"bits": 8, "targets": ["lm_head"]})
    raw = small_config(tied=False)
    model, _, out = checkpoint(tmp_path, rule, "compressed-tensors", raw=raw)
    config = quantization_config(out)
    assert config["config_groups"]["group_1"]["targets"] == ["re:.*lm_head.*"]
    assert not any("lm_head" in entry for entry in config["ignore"])
    assert same_logits(model, load_quantized(out, device="cpu"))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            {"bits": 8, "activations": "dynamic", "symmetric": False},
            "have int8 activations and an asymmetric weight, which no engine",
        ),
    ],
)
def test_unsupported_schemes_are_refused(step: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_format(make_plan(contents({}).config, recipe(step)), "compressed-tensors")


def rewrite(out: Path, change: Any) -> None:
    tensors = all_tensors(out)
    save_file(change(tensors) or tensors, out / "model.safetensors")


LAYER = "model.layers.0.mlp.down_proj"


class TestReading:
    """Files of llm-compressor and older versions of the library."""

    def test_targets_by_name_expression_and_class(self, tmp_path: Path) -> None:
        _, _, out = checkpoint(tmp_path, MIXED, "compressed-tensors")
        before = weights_of(out)
        groups = quantization_config(out)["config_groups"]
        down = [f"model.language_model.layers.{block}.mlp.down_proj" for block in range(2)]
        groups["group_0"]["targets"] = ["Linear"]
        groups["group_2"]["targets"] = down
        edit_config(out, config_groups=groups)
        after = weights_of(out)
        assert all(before[name].equals(after[name]) for name in before)
        groups["group_0"]["targets"] = ["re:.*self_attn.*"]
        edit_config(out, config_groups=groups)
        with pytest.raises(ValueError, match=r"no target of config_groups matches .*gate_proj"):
            weights_of(out)

    def test_a_single_group_holds_for_renamed_layers(self, tmp_path: Path) -> None:
        _, _, out = checkpoint(tmp_path, recipe(), "compressed-tensors")
        groups = quantization_config(out)["config_groups"]
        groups["group_0"]["targets"] = ["re:old_name.*"]
        edit_config(out, config_groups=groups)
        assert len(weights_of(out)) == 14

    def test_keys_of_other_versions(self, tmp_path: Path) -> None:
        _, _, out = checkpoint(tmp_path, recipe(), "compressed-tensors")
        before = weights_of(out)
        groups = quantization_config(out)["config_groups"]
        groups["group_0"]["weights"] |= {
            "actorder": "static",
            "observer": "minmax",
            "observer_kwargs": {},
            "block_structure": None,
            "scale_dtype": None,
            "zp_dtype": "torch.int8",
        }
        groups["group_0"]["format"] = "pack-quantized"
        extra = {"version": "0.9.4", "sparsity_config": {}, "transform_config": {}}
        edit_config(out, config_groups=groups, **extra)
        after = weights_of(out)
        assert all(before[name].equals(after[name]) for name in before)

    def test_order_of_groups(self, tmp_path: Path) -> None:
        """actorder=group of earlier versions: `weight_g_idx` as GPTQ's `g_idx`."""
        _, _, out = checkpoint(tmp_path, recipe(), "compressed-tensors")
        before = weights_of(out)[LAYER]
        order = torch.randperm(128, generator=torch.Generator().manual_seed(0)) // 32
        rewrite(out, lambda t: t.update({f"{LAYER}.weight_g_idx": order.int()}))
        weight = weights_of(out)[LAYER]
        columns = weight.column_groups().long()
        assert torch.equal(columns, order)
        expected = (before.integers.float() - 8) * before.scales[:, order]
        assert torch.equal(weight.dequantize(), expected)

    def test_zero_points_unpacked_and_redundant(self, tmp_path: Path) -> None:
        _, _, out = checkpoint(tmp_path, recipe({"symmetric": False}), "compressed-tensors")
        before = weights_of(out)
        signed = (before[LAYER].zero_points.int() - 8).to(torch.int8)
        rewrite(out, lambda t: t.update({f"{LAYER}.weight_zero_point": signed}))
        assert before[LAYER].equals(weights_of(out)[LAYER])
        _, _, out = checkpoint(tmp_path / "sym", recipe(), "compressed-tensors")
        zeros = torch.zeros(64, 4, dtype=torch.int8)
        rewrite(out, lambda t: t.update({f"{LAYER}.weight_zero_point": zeros}))
        assert set(weights_of(out)[LAYER].zero_points.flatten().tolist()) == {8}
        rewrite(out, lambda t: t.update({f"{LAYER}.weight_zero_point": zeros + 1}))
        with pytest.raises(ValueError, match="zero point of 9, but the configuration says symm"):
            weights_of(out)

    def test_one_scale_per_tensor_and_fp16_scales(self, tmp_path: Path) -> None:
        rule = recipe({"bits": 8, "group_size": -1, "activations": "dynamic"})
        _, _, out = checkpoint(tmp_path, rule, "compressed-tensors")
        groups = quantization_config(out)["config_groups"]
        groups["group_0"]["weights"]["strategy"] = "tensor"
        edit_config(out, config_groups=groups)
        scale = torch.tensor([0.125], dtype=torch.float16)
        rewrite(out, lambda t: t.update({f"{LAYER}.weight_scale": scale}))
        assert set(weights_of(out)[LAYER].scales.flatten().tolist()) == {0.125}

    def test_packed_weights_with_int8_activations(self, tmp_path: Path) -> None:
        _, _, out = checkpoint(tmp_path, recipe(), "compressed-tensors")
        groups = quantization_config(out)["config_groups"]
        groups["group_0"]["input_activations"] = {
            "num_bits": 8,
            "type": "int",
            "strategy": "token",
            "symmetric": True,
            "dynamic": True,
        }
        edit_config(out, config_groups=groups)
        assert {w.scheme.label for w in weights_of(out).values()} == {
            "int4 g32 sym + int8 dynamic activations"
        }

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"format": "marlin-24"}, "format is 'marlin-24'; allowed: pack-quant"),
            ({"quantization_status": "frozen"}, "quantization_status is 'frozen'; allowed: comp"),
            ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme.type is missing; it is requ"),
            ({"transform_config": {"config_groups": {}}}, "transform_config is .*; allowed: null"),
            ({"sparsity_config": {"format": "sparse-24"}}, "sparsity_config.format is 'sparse-24'"),
            ({"config_groups": {}}, "config_groups is {}; allowed: at least 1"),
            (
                {"config_groups": {"W4A16": ["Linear"]}},
                r"config_groups.W4A16 is \['Linear'\]; allow",
            ),
        ],
    )
    def test_unknown_configurations(
        self, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        _, _, out = checkpoint(tmp_path, recipe(), "compressed-tensors")
        edit_config(out, **changes)
        with pytest.raises(ValueError, match=message) as caught:
            load_quantized(out, device="cpu")
        assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{out}: quant")

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            ("weights", None, "config_groups.group_0.weights is None; allowed: a table"),
            ("weights.type", "uint", "weights.type is 'uint'; allowed: int, float"),
            ("weights.strategy", "block", "weights.strategy is 'block'; allowed: group, channel"),
            ("weights.num_bits", 16, "weights.num_bits is 16; allowed: .* from 2 to 8"),
            ("weights.group_size", None, "weights.group_size is None; allowed: -1"),
            ("weights.group_size", "32", "weights.group_size is '32'; allowed: -1"),
            ("output_activations", {"num_bits": 8}, "output_activations is .*; allowed: null"),
            ("targets", ["re:("], r"targets\[0\]: 're:\(' is not a valid expression"),
            ("targets", [3], r"targets\[0\] is 3; allowed: a string"),
            ("input_activations", [8], r"input_activations is \[8\]; allowed: a table"),
            ("format", "mxfp6-pack-quantized", "format is 'mxfp6-pack-quantized'"),
            (
                "input_activations",
                {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": False},
                "input_activations: dynamic is False .* allowed: symmetric int8, dynamic per token",
            ),
            (
                "input_activations",
                {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
                | {"symmetric": False},
                "input_activations.symmetric is False; allowed: .*symmetric int8",
            ),
        ],
    )
    def test_unknown_groups(self, tmp_path: Path, path: str, value: Any, message: str) -> None:
        _, _, out = checkpoint(tmp_path, recipe(), "compressed-tensors")
        groups = quantization_config(out)["config_groups"]
        *keys, last = path.split(".")
        section = groups["group_0"]
        for key in keys:
            section = section[key]
        section[last] = value
        edit_config(out, config_groups=groups)
        with pytest.raises(ValueError, match=message):
            load_quantized(out, device="cpu")

    @pytest.mark.parametrize(
        ("part", "change", "message"),
        [
            ("weight_scale", lambda t: t[:, :2].contiguous(), r"weight_scale is .* \[64, 2\]; exp"),
            ("weight_packed", lambda t: t[:8].contiguous(), r"weight_packed is .* \[8, 16\]; expe"),
            ("weight_packed", None, r"down_proj\.weight is missing; the checkpoint is incomplete"),
            ("weight_shape", None, r"down_proj\.weight_shape is missing"),
            ("weight_shape", lambda t: t + 32, "weight_packed is"),
            (
                "weight_g_idx",
                lambda _: torch.full((128,), 9),
                r"weight_g_idx runs from 9 to 9, b",
            ),
            ("extra", lambda _: torch.ones(1), r"down_proj\.extra is unknown to this model"),
        ],
    )
    def test_damaged_layers(self, tmp_path: Path, part: str, change: Any, message: str) -> None:
        _, _, out = checkpoint(tmp_path, recipe(), "compressed-tensors")

        def damage(tensors: dict[str, Tensor]) -> None:
            key = f"{LAYER}.{part}"
            old = tensors.pop(key, None)
            if change is not None:
                tensors[key] = change(old)

        rewrite(out, damage)
        with pytest.raises(ValueError, match=message) as caught:
            load_quantized(out, device="cpu")
        assert str(caught.value).startswith(f"{out}: ") and "\n" not in str(caught.value)


class TestStaticActivations:
    scheme = QuantScheme(8, -1, activations="static")

    def test_the_input_scale_is_stored(self) -> None:
        weight = made_layer(self.scheme)
        tensors = CT.encode(weight, torch.bfloat16)
        assert tensors["input_scale"].tolist() == [0.0390625]
        assert tensors["input_scale"].dtype == torch.bfloat16
        weight = integers_of(CT.decode(tensors, self.scheme, "x"))
        assert weight.input_scale is not None and weight.input_scale.dim() == 0
        (group,) = CT.quantization_config(contents(self.scheme), str)["config_groups"].values()
        assert group["input_activations"] == {
            "num_bits": 8,
            "type": "int",
            "symmetric": True,
            "strategy": "tensor",
            "group_size": None,
            "dynamic": False,
        }

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"input_scale": None}, "x.input_scale is missing"),
            ({"input_scale": torch.ones(2)}, r"x.input_scale is torch.float32 \[2\]; it must be"),
            ({"input_scale": torch.zeros(1)}, "it must be one positive float"),
            ({"input_zero_point": torch.ones(1)}, "input_zero_point is not 0"),
        ],
    )
    def test_bad_scales(self, changes: dict[str, Tensor | None], message: str) -> None:
        tensors = CT.encode(made_layer(self.scheme), torch.float32) | changes
        with pytest.raises(ValueError, match=message):
            CT.decode({k: v for k, v in tensors.items() if v is not None}, self.scheme, "x")

    def test_a_redundant_zero_point_is_ignored(self) -> None:
        tensors = CT.encode(made_layer(self.scheme), torch.float32)
        tensors["input_zero_point"] = torch.zeros(1, dtype=torch.int8)
        assert CT.decode(tensors, self.scheme, "x").equals(made_layer(self.scheme))


def test_integers_beyond_the_width_are_refused() -> None:
    scheme = QuantScheme(4, 32, activations="dynamic")
    tensors = CT.encode(made_layer(scheme), torch.float32)
    assert int(tensors["weight"].min()) == -8 and int(tensors["weight"].max()) == 7
    tensors["weight"][0, 0] = 8
    with pytest.raises(ValueError, match=r"x\.weight runs from -8 to 8, which is more than 4 bits"):
        CT.decode(tensors, scheme, "x")
    with pytest.raises(ValueError, match=r"x\.weight is torch\.float32 .* int8 matrix"):
        CT.decode(tensors | {"weight": tensors["weight"].float()}, scheme, "x")
