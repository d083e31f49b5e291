"""The Triton kernels against `reference.py`: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu_weights import DEVICE, Weight, inputs, relative_error
from torch import Tensor

pytest.importorskip("triton")

from vlpress.quant.kernels import reference
from vlpress.quant.kernels.gpu import packing
from vlpress.quant.kernels.gpu.byte_products import byte_product
from vlpress.quant.kernels.gpu.float_products import float_product
from vlpress.quant.kernels.gpu.token_quantization import quantize_tokens
from vlpress.quant.kernels.gpu.tuning import Blocks
from vlpress.quant.methods.grids.activation_rounding import rounded_activations
from vlpress.quant.recipe.scheme import TableScheme

# Sums of unscaled levels differ from products of rounded weights by the rounding of bf16, 2**-9 of
# each product, and the interpreter truncates bf16 where a GPU rounds.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
FEW = Blocks(16, 32, processors=1)
MANY = Blocks(16, 64, persistent=True, processors=1, band=2)
SHAPES = [(64, 64, 32), (50, 128, 64), (17, 96, -1)]
# Every width of integers with every shape once, symmetric and not.
QUICK = [
    (bits, symmetric, *shape)
    for i, bits in enumerate((3, 4, 8))
    for j, shape in enumerate(SHAPES)
    for symmetric in (True, False)
    if symmetric == ((i + j) % 2 == 0)
]
CASES = [(bits, s, *shape) for bits in (3, 4, 8) for s in (True, False) for shape in SHAPES]


def integer_product(
    x: Tensor, weight: Weight, blocks: Blocks, scale: Tensor | None = None
) -> Tensor:
    packed = weight.packed()
    levels = quantize_tokens(x, torch.int8, scale, order=packed.kind, tile=packed.tile)
    return byte_product(*levels, packed, x.dtype, weight.bias, blocks)


@pytest.mark.parametrize(
    ("bits", "symmetric", "rows", "columns", "group"),
    [pytest.param(*c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES],
)
def test_matches_the_reference(
    rows: int, columns: int, group: int, bits: int, symmetric: bool
) -> None:
    weight = Weight(rows, columns, group, bits, symmetric)
    packed = weight.packed()
    for tokens, dtype, blocks in (
        (1, torch.float32, FEW),
        (17, torch.float32, MANY),
        (3, torch.bfloat16, FEW),
        (18, torch.bfloat16, MANY),
    ):
        x = inputs(tokens, columns, dtype)
        actual = float_product(x, packed, weight.bias, blocks=blocks)
        expected = reference.weight_only_linear(x, *weight.reference)
        assert relative_error(actual, expected) < TOLERANCE[dtype]
        actual = integer_product(x, weight, blocks)
        expected = reference.integer_linear(x, *weight.reference)
        if group == -1 and dtype == torch.float32:
            assert torch.equal(actual, expected)
        assert relative_error(actual, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("splits", [2, 3])
def test_splits_of_the_inputs_add_up(splits: int) -> None:
    blocks = replace(FEW, splits=splits)
    for group in (64, -1):
        weight = Weight(40, 192, group, 4, False)
        x = inputs(5, 192)
        actual = float_product(x, weight.packed(), weight.bias, blocks=blocks)
        expected = reference.weight_only_linear(x, *weight.reference)
        assert relative_error(actual, expected) < TOLERANCE[torch.float32]
        actual = integer_product(x, weight, blocks)
        expected = reference.integer_linear(x, *weight.reference)
        assert relative_error(actual, expected) < TOLERANCE[torch.float32]
        # Counters are reset: a second product with the same workspace gives the same bits.
        assert torch.equal(integer_product(x, weight, blocks), actual)
        assert group == 64 or torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_exact(dtype: torch.dtype) -> None:
    """With one-hot inputs, products are the dequantized weights, in both forms of the kernel."""
    for bits in (4, 8):
        weight = Weight(16, 64, 32, bits, False)
        x = torch.eye(64, device=DEVICE, dtype=dtype)
        expected = reference.dequantize(*weight.reference[:4], torch.float32).t()
        few = float_product(x, weight.packed(), dtype=torch.float32, blocks=FEW)
        assert torch.equal(few, expected)
        many = float_product(x, weight.packed(), dtype=torch.float32, blocks=MANY)
        assert relative_error(many, expected) < 2.0**-7  # bf16, truncated by the interpreter


def test_scales_beyond_16_bits() -> None:
    weight = Weight(16, 64, 32, 4, True)
    weight.scales /= 3
    packed = weight.packed()
    assert packed.scale_dtype == torch.float32 and not packed.exact_dtypes
    x = inputs(3, 64)
    expected = reference.weight_only_linear(x, *weight.reference)
    for blocks in (FEW, MANY):
        actual = float_product(x, packed, blocks=blocks)
        assert relative_error(actual, expected) < TOLERANCE[torch.float32]


def test_fp8_products() -> None:
    scheme = TableScheme("fp8", activations="dynamic")
    random = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 256, (20, 96), dtype=torch.uint8, generator=random)
    codes[codes % 128 == 127] = 0  # NaN
    codes = codes.to(DEVICE)
    scales = (torch.rand(20, 1, generator=random) + 0.1).to(DEVICE)
    weight = packing.prepack_e4m3(codes, scales)
    dequantized = codes.view(torch.float8_e4m3fn).float() * scales
    x = inputs(5, 96)
    for blocks in (FEW, MANY, replace(FEW, splits=2)):
        actual = float_product(x, weight, blocks=blocks)
        assert relative_error(actual, x @ dequantized.t()) < TOLERANCE[torch.float32]
        levels = quantize_tokens(
            x, torch.float8_e4m3fn, levels="e4m3", order="bytes", tile=weight.tile
        )
        actual = byte_product(*levels, weight, x.dtype, None, blocks)
        expected = rounded_activations(x, scheme) @ dequantized.t()
        assert relative_error(actual, expected) < TOLERANCE[torch.float32]


def test_quantized_tokens_match_the_reference() -> None:
    x = inputs(7, 96) * 3
    x[2] = 0
    x[3, 5] = float("nan")
    for scale in (None, torch.tensor(0.01, device=DEVICE)):
        levels, scales = quantize_tokens(x, torch.int8, scale)
        expected_levels, expected_scales = reference.quantize_activations(x, scale)
        assert torch.equal(levels, expected_levels)
        per_token = expected_scales.reshape(-1).expand(7)
        assert torch.equal(scales.nan_to_num(-1), per_token.nan_to_num(-1))


@pytest.mark.parametrize("width", [4, 8])
def test_tokens_in_the_order_of_the_words(width: int) -> None:
    x = inputs(2, 64)
    levels, _ = quantize_tokens(x, torch.int8)
    kind = {4: "nibbles", 8: "bytes"}[width]
    ordered, _ = quantize_tokens(x, torch.int8, order=kind, tile=32)
    order = packing.input_order(32, width)
    if width == 4:
        # Registers of int8 hold the low nibbles of a word, then the high ones of 16 inputs later.
        order = order.reshape(4, 4, 2).permute(2, 0, 1).flatten()
    assert torch.equal(ordered.reshape(2, 2, 32), levels.reshape(2, 2, 32)[..., order])


def test_e4m3_tokens_match_rounded_activations() -> None:
    x = inputs(6, 96) * 3
    x[1] = 0
    x[2, :50] *= 2.0**-12  # subnormal levels
    x[3] = float("inf")
    for scheme, scale in (
        (TableScheme("fp8", activations="dynamic"), None),
        (TableScheme("fp8", activations="static"), torch.tensor(0.01)),
    ):
        expected = rounded_activations(x, scheme, scale)
        on_device = None if scale is None else scale.to(DEVICE)
        for dtype in (torch.bfloat16, torch.float8_e4m3fn):
            levels, scales = quantize_tokens(x, dtype, on_device, levels="e4m3")
            actual = levels.float() * scales[:, None]
            rows = [0, 1, 2, 4, 5] if dtype == torch.float8_e4m3fn else slice(None)
            torch.testing.assert_close(actual[rows], expected[rows], rtol=0, atol=0, equal_nan=True)
