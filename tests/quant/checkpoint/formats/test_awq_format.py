"""The AWQ format against a layout written by hand, and reading it."""

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
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from vlpress.quant.checkpoint.formats.awq import pack_columns, unpack_columns
from vlpress.quant.checkpoint.formats.contents import Contents
from vlpress.quant.checkpoint.formats.table import FORMATS
from vlpress.quant.driver.pipeline import check_format, load_quantized, make_plan
from vlpress.quant.methods.affine import QuantizedWeight
from vlpress.quant.recipe.scheme import QuantScheme

pytestmark = pytest.mark.usefixtures("reference_kernel")

AWQ = FORMATS["awq"]
LAYER = "model.layers.0.mlp.down_proj"


def packed_by_hand(weight: QuantizedWeight) -> dict[str, Tensor]:
    """Pack element by element: column c goes to the slot from which AWQ's kernels read it."""
    slot_of_column = [0, 4, 1, 5, 2, 6, 3, 7]

    def words(matrix: Tensor) -> Tensor:
        packed = torch.zeros(len(matrix), matrix.shape[1] // 8, dtype=torch.int64)
        for row in range(len(matrix)):
            for column in range(matrix.shape[1]):
                shift = 4 * slot_of_column[column % 8]
                packed[row, column // 8] += int(matrix[row, column]) << shift
        return torch.where(packed >= 2**31, packed - 2**32, packed).int()

    return {
        "qweight": words(weight.integers.t()),
        "qzeros": words(weight.zero_points.t()),
        "scales": weight.scales.t().half(),
    }


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("rows", "group_size"), [(64, 32), (8, 96), (24, -1)])
def test_layout_by_hand(symmetric: bool, rows: int, group_size: int) -> None:
    weight = made_layer(QuantScheme(4, group_size, symmetric), rows)
    tensors, expected = AWQ.encode(weight, torch.bfloat16), packed_by_hand(weight)
    assert set(tensors) == set(expected)
    for part, tensor in tensors.items():
        assert tensor.dtype == expected[part].dtype
        assert torch.equal(tensor, expected[part])
    assert AWQ.decode(tensors, weight.scheme, "x").equals(weight)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32))
def test_columns_round_trip(rows: int, words: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(16, (rows, 8 * words), generator=generator, dtype=torch.uint8)
    assert torch.equal(unpack_columns(pack_columns(values)), values)


def test_columns_that_do_not_pack_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot pack 12 columns: .* multiple of 8"):
        pack_columns(torch.zeros(2, 12))
    with pytest.raises(ValueError, match="values from 0 to 16 do not fit 4 unsigned bits"):
        pack_columns(torch.arange(17)[None].repeat(1, 8))


@pytest.mark.parametrize("symmetric", [True, False])
def test_folder(tmp_path: Path, symmetric: bool) -> None:
    rule = recipe({"symmetric": symmetric, "ignore": ["model.layers.1.mlp.down_proj"]})
    model, _, out = checkpoint(tmp_path, rule, "awq")
    assert quantization_config(out) == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 32,
        "zero_point": True,
        "symmetric": symmetric,
        "version": "gemm",
        "modules_to_not_convert": [
            "visual",
            "model.visual",
            "lm_head",
            "layers.1.mlp.down_proj",
        ],
    }
    tensors = all_tensors(out)
    shapes = {
        part: (tuple(tensors[f"{LAYER}.{part}"].shape), tensors[f"{LAYER}.{part}"].dtype)
        for part in ("qweight", "qzeros", "scales")
    }
    assert shapes == {
        "qweight": ((128, 8), torch.int32),
        "qzeros": ((4, 8), torch.int32),
        "scales": ((4, 64), torch.float16),
    }
    assert tensors["model.layers.0.self_attn.q_proj.bias"].dtype == torch.float16
    assert not (out / "quantize_config.json").exists()
    assert {w.scheme.symmetric for w in weights_of(out).values()} == {symmetric}
    assert same_logits(model, load_quantized(out, device="cpu"))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"bits": 8}], r"q_proj and 13 more layers have 8 bits; it holds 4 only"),
        (
            [{}, {"targets": ["visual.*.qkv"]}],
            r"visual\.blocks\.0\.attn\.qkv and 1 more layer are outside the decoder",
        ),
        ([{"activations": "dynamic"}], "have int8 activations, which only compressed-tensors"),
        (
            [{"ignore": ["*.down_proj"]}, {"group_size": -1, "targets": ["*layers*.down_proj"]}],
            "it holds one scheme for all layers, and there are int4 g32 sym, int4 per row sym",
        ),
    ],
)
def test_unsupported_schemes_are_refused(steps: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=f"format awq: .*{message}"):
        check_format(make_plan(contents({}).config, recipe(*steps)), "awq")


def test_layers_that_do_not_fit() -> None:
    held = contents(QuantScheme(4, 32))
    ordered = Contents(held.config, held.schemes, reordered={LAYER})
    assert "down_proj has non-contiguous groups (g_idx)" in str(AWQ.why_not(ordered))
    narrow = contents({"model.layers.0.mlp.up_proj": QuantScheme(4, -1)}, intermediate_size=132)
    assert "has out_features that are not a multiple of 8" in str(AWQ.why_not(narrow))
    weight = made_layer(QuantScheme(4, 32))
    weight.scales[0, 0] = 1 + 2.0**-20
    with pytest.raises(ValueError, match="a scale is not an fp16 number"):
        AWQ.encode(weight, torch.float16)


class TestReading:
    """Files of AutoAWQ and its successors."""

    @pytest.mark.parametrize(
        "changes",
        [
            {"symmetric": None, "version": "GEMM"},
            {"symmetric": None, "bits": None, "group_size": None, "w_bit": 4, "q_group_size": 32},
            {"symmetric": None, "version": None, "checkpoint_format": "gemm", "sym": True},
            {"symmetric": None, "modules_to_not_convert": ["visual"], "backend": "autoawq"},
        ],
    )
    def test_keys_of_other_writers(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        _, _, out = checkpoint(tmp_path, recipe({"symmetric": False}), "awq")
        before = weights_of(out)
        edit_config(out, **changes)
        after = weights_of(out)
        assert all(before[name].equals(after[name]) for name in before)

    def test_zero_points_decide_without_our_key(self, tmp_path: Path) -> None:
        """A symmetric file without it reads as an asymmetric one of equal zero points."""
        _, _, out = checkpoint(tmp_path, recipe(), "awq")
        before = weights_of(out)[LAYER]
        edit_config(out, symmetric=None)
        weight = weights_of(out)[LAYER]
        assert not weight.scheme.symmetric
        assert torch.equal(weight.dequantize(), before.dequantize())
        edit_config(out, zero_point=False)
        assert weights_of(out)[LAYER].equals(before)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"version": "gemv"}, "version is 'gemv'; allowed: gemm"),
            ({"bits": 8}, "bits is 8; allowed: 4"),
            ({"bits": None}, "bits is missing"),
            ({"group_size": "128"}, "group_size is '128'; allowed: -1 .* or a whole number"),
            ({"group_size": 0}, "group_size is 0; allowed: -1"),
        ],
    )
    def test_unknown_configurations(
        self, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        _, _, out = checkpoint(tmp_path, recipe(), "awq")
        edit_config(out, **changes)
        with pytest.raises(ValueError, match=message) as caught:
            load_quantized(out, device="cpu")
        assert str(caught.value).startswith(f"{out}: quantization_config: ")

    @pytest.mark.parametrize(
        ("part", "change", "message"),
        [
            ("qzeros", None, r"down_proj\.qzeros is missing"),
            ("qzeros", lambda t: t + 1, "zero point of 9, but the configuration says symmetric"),
            ("scales", lambda t: t[:2].contiguous(), r"scales is torch\.float16 \[2, 64\]; expect"),
            ("qweight", lambda t: t.float(), r"qweight is torch\.float32 \[128, 8\]; it must be"),
            ("g_idx", lambda _: torch.ones(1), r"down_proj\.g_idx is unknown to this model"),
        ],
    )
    def test_damaged_layers(self, tmp_path: Path, part: str, change: Any, message: str) -> None:
        _, _, out = checkpoint(tmp_path, recipe(), "awq")
        tensors = all_tensors(out)
        old = tensors.pop(f"{LAYER}.{part}", None)
        if change is not None:
            tensors[f"{LAYER}.{part}"] = change(old)
        save_file(tensors, out / "model.safetensors")
        with pytest.raises(ValueError, match=message) as caught:
            load_quantized(out, device="cpu")
        assert str(caught.value).startswith(f"{out}: ") and "\n" not in str(caught.value)
