"""The Triton kernels against `reference.py`: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from vlpress.quant.kernels import gpu, reference, triton_float, triton_integer
from vlpress.quant.kernels.triton_tuning import (
    FLOAT,
    FLOAT_DEFAULT,
    INTEGER,
    INTEGER_DEFAULT,
    MIN_BLOCK,
    Blocks,
    float_blocks,
    integer_blocks,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter truncates bf16 where a GPU rounds.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
SMALL = Blocks(16, 32, 32)


class Weight:
    """A random weight in the layout of the reference."""

    def __init__(self, rows: int, columns: int, group: int, bits: int, symmetric: bool) -> None:
        random = torch.Generator().manual_seed(rows + bits)
        groups = 1 if group == -1 else columns // group
        integers = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=random)
        self.bits = bits
        self.packed = reference.prepack(integers, bits).to(DEVICE)
        self.scales = (torch.rand(rows, groups, generator=random) + 0.1).to(DEVICE)
        self.zeros = torch.full((rows, groups), 1 << (bits - 1), dtype=torch.uint8, device=DEVICE)
        self.bias = None
        if not symmetric:
            self.zeros = torch.randint(
                0, 2**bits, (rows, groups), dtype=torch.uint8, generator=random
            ).to(DEVICE)
            self.bias = torch.randn(rows, generator=random).to(DEVICE)

    @property
    def grid(self) -> tuple[Tensor, Tensor, Tensor, int, Tensor | None]:
        return self.packed, self.scales, self.zeros, self.bits, self.bias


def inputs(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.Generator().manual_seed(rows)
    return torch.randn(rows, columns, generator=random).to(DEVICE, dtype)


def check(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    error = (actual.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert float(error) < TOLERANCE[expected.dtype]


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


@pytest.mark.parametrize(
    ("bits", "symmetric", "rows", "columns", "group"),
    [pytest.param(*c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES],
)
def test_matches_the_reference(
    rows: int, columns: int, group: int, bits: int, symmetric: bool
) -> None:
    weight = Weight(rows, columns, group, bits, symmetric)
    for tokens, dtype in ((1, torch.float32), (17, torch.float32), (3, torch.bfloat16)):
        x = inputs(tokens, columns, dtype)
        actual = triton_float.weight_only_linear(x, *weight.grid, blocks=SMALL)
        check(actual, reference.weight_only_linear(x, *weight.grid))
        actual = triton_integer.integer_linear(x, *weight.grid, blocks=SMALL)
        check(actual, reference.integer_linear(x, *weight.grid))


@pytest.mark.parametrize("splits", [2, 3, 5])
def test_splits_of_the_inputs_add_up(splits: int) -> None:
    weight = Weight(40, 192, 64, 4, False)
    x = inputs(5, 192)
    blocks = Blocks(16, 32, 32, splits=splits)
    actual = triton_float.weight_only_linear(x, *weight.grid, blocks=blocks)
    check(actual, reference.weight_only_linear(x, *weight.grid))


@pytest.mark.parametrize("tokens", [1, 20, 70])
def test_blocks_of_the_tables(tokens: int) -> None:
    weight = Weight(33, 256, 128, 4, True)
    x = inputs(tokens, 256)
    check(
        triton_float.weight_only_linear(x, *weight.grid),
        reference.weight_only_linear(x, *weight.grid),
    )
    check(triton_integer.integer_linear(x, *weight.grid), reference.integer_linear(x, *weight.grid))


def test_views_and_leading_dimensions() -> None:
    weight = Weight(33, 64, 32, 4, True)
    whole = inputs(6, 200)
    for x in (whole[:, 7:71], whole[::2, :64], whole[:, :64].reshape(2, 3, 64), whole[:0, :64]):
        actual = triton_float.weight_only_linear(x, *weight.grid, blocks=SMALL)
        expected = reference.weight_only_linear(x, *weight.grid)
        assert actual.shape == expected.shape
        if expected.numel():
            check(actual, expected)


def test_quantized_activations_match_the_reference() -> None:
    x = inputs(7, 96) * 3
    x[2] = 0
    x[3, 5] = float("nan")
    for scale in (None, torch.tensor(0.01, device=DEVICE)):
        levels, scales = triton_integer.quantize_activations(x, scale)
        expected_levels, expected_scales = reference.quantize_activations(x, scale)
        assert torch.equal(levels, expected_levels)
        per_token = expected_scales.reshape(-1).expand(7)
        assert torch.equal(scales.nan_to_num(-1), per_token.nan_to_num(-1))


def test_static_input_scale() -> None:
    weight = Weight(20, 64, -1, 8, True)
    x, scale = inputs(3, 64), torch.tensor(0.02, device=DEVICE)
    actual = triton_integer.integer_linear(x, *weight.grid, scale, blocks=SMALL)
    check(actual, reference.integer_linear(x, *weight.grid, None, scale))


def test_triton_linear() -> None:
    weight = Weight(40, 64, 32, 4, False)
    product, x = gpu.TritonLinear(*weight.grid), inputs(2, 64)
    check(product(x)[0], reference.weight_only_linear(x, *weight.grid))
    check(product(x, 0.0)[0], reference.integer_linear(x, *weight.grid))
    scale = torch.tensor(0.02, device=DEVICE)
    check(product(x, 0.02)[0], reference.integer_linear(x, *weight.grid, None, scale))
    with pytest.raises(RuntimeError, match="no gradient"):
        product(x.requires_grad_())


def test_reasons_for_unsupported_weights() -> None:
    assert gpu.why_not(128, 4) is None
    assert gpu.why_not(96, 12) == "groups of 8 inputs; the Triton kernels take multiples of 16"
    index = torch.zeros(128, dtype=torch.int32)
    assert gpu.why_not(128, 4, index) == "its inputs are in the order of a group index"


def test_blocks_divide_the_group() -> None:
    assert Blocks(16, 64, 128).within(64).k == 64
    assert Blocks(16, 64, 128).within(96).k == 32
    assert Blocks(16, 64, 32, splits=3).split_size(256) == 96


def test_tables_hold_blocks_for_tensor_cores() -> None:
    tables = [*FLOAT, *INTEGER, (1 << 30, FLOAT_DEFAULT), (1 << 30, INTEGER_DEFAULT)]
    for limit, blocks in tables:
        assert limit > 0 and min(blocks.m, blocks.n, blocks.k) >= MIN_BLOCK
        assert all(size & (size - 1) == 0 for size in (blocks.m, blocks.n, blocks.k, blocks.warps))
    assert [limit for limit, _ in FLOAT] == sorted(limit for limit, _ in FLOAT)
    assert float_blocks(1, 64, 64) == FLOAT[0][1] and float_blocks(4096, 1, 1) == FLOAT_DEFAULT
    assert integer_blocks(1, 1, 1) == INTEGER[0][1]
