"""The compiled kernels with weights that are levels of a table, against `reference.py`."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlpress.quant.kernels import cpu, cpu_layout, library, reference
from vlpress.quant.methods.grids.levels import code_levels
from vlpress.quant.recipe.grids import E4M3, GRIDS, Grid

AVAILABLE = [name for name in library.NAMES if not isinstance(library.find_kernels(name), str)]
if not AVAILABLE:  # test_cpu.py fails where they must be built
    pytest.skip(f"{library.find_kernels()}", allow_module_level=True)
# As in test_cpu.py, where the shapes are the same: out_features, in_features, group size.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}
SHAPES = [(64, 64, 32), (96, 128, 64), (100, 256, 128), (17, 72, -1), (1, 8, -1), (130, 2048, -1)]
SHAPES += [(70, 2048, 1024), (66, 2560, 640), (80, 192, 16), (65, 48, 16)]
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 60)
KERNELS = pytest.mark.parametrize("name", AVAILABLE)


def kernels(name: str) -> library.Kernels:
    table = library.find_kernels(name)
    assert not isinstance(table, str)
    return table


class Weight:
    """A random weight of codes for the kernels and the reference."""

    def __init__(
        self, grid: str, rows: int, columns: int, group: int, *, divisor: float = 0.0, seed: int = 0
    ) -> None:
        random = torch.Generator().manual_seed(seed)
        groups = 1 if group == -1 else columns // group
        self.grid, self.divisor = GRIDS[grid], divisor
        self.bits = 4 if self.grid.bits <= 4 else 8
        self.levels = cpu_layout.Levels(code_levels(self.grid, self.bits), mantissa(self.grid))
        codes = torch.tensor(self.grid.codes, dtype=torch.uint8)
        self.codes = codes[torch.randint(len(codes), (rows, columns), generator=random)]
        self.scales = (torch.rand(rows, groups, generator=random) + 0.1).bfloat16().float()
        self.bias = torch.randn(rows, generator=random)

    def tiles(self) -> cpu_layout.TiledWeight:
        return cpu_layout.prepack_codes(
            self.codes, self.scales, self.levels, self.bits, self.divisor
        )

    def product(self, name: str, bias: bool = True) -> cpu.CpuLinear:
        return cpu.CpuLinear([self.tiles()], [self.bias if bias else None], kernels(name))

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        packed = reference.prepack(self.codes, self.bits)
        scales = self.scales / self.divisor if self.divisor else self.scales
        return reference.dequantize_levels(packed, scales, self.levels.values, self.bits, dtype)

    def expected(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.dequantized(), self.bias)


def mantissa(grid: Grid) -> int:
    return 0 if grid.format is None else grid.format.mantissa


def inputs(rows: int, columns: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype == dtype
    error = (actual.float() - expected).abs().max() / expected.abs().max()
    assert float(error) < TOLERANCE[dtype]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matches_the_reference(grid: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        weight = Weight(grid, *shape, divisor=3.0 if grid == "nvfp4" else 0.0)
        products = [weight.product(name) for name in AVAILABLE]
        for rows in ROWS:
            x = inputs(rows, shape[1], dtype)
            expected = weight.expected(x)
            for product in products:
                check(product(x)[0], expected, dtype)


@pytest.mark.skipif("avx2" not in AVAILABLE, reason="the order belongs to AVX2")
@pytest.mark.parametrize("streams", [1, 4])
def test_orders_of_reading_match_the_reference(streams: int) -> None:
    loaded = library.require_library()
    before = loaded.vlpress_set_memory_streams(streams)
    try:
        for grid, shape in itertools.product(("fp8", "nvfp4", "mxfp4", "nf4"), SHAPES):
            weight = Weight(grid, *shape)
            for rows, dtype in itertools.product((1, 3), (torch.float32, torch.bfloat16)):
                x = inputs(rows, shape[1], dtype)
                check(weight.product("avx2")(x)[0], weight.expected(x), dtype)
    finally:
        loaded.vlpress_set_memory_streams(before)


@KERNELS
@pytest.mark.parametrize("grid", GRIDS)
def test_every_code_is_exact(name: str, grid: str) -> None:
    """A one-hot input gives exactly the dequantized weights, in all paths of a kernel."""
    weight = Weight(grid, 70, 512, 64, divisor=7.0 if grid == "nvfp4" else 0.0)
    codes = torch.tensor(weight.grid.codes, dtype=torch.uint8)
    weight.codes = codes[torch.arange(70 * 512).reshape(70, 512) % len(codes)]
    product = weight.product(name, bias=False)
    positions = torch.arange(0, 512, 5)
    eye = torch.eye(512)[positions]
    exact = weight.dequantized().t()[positions]
    assert torch.equal(product(eye)[0], exact)
    for rows in (1, 3, 8):
        assert torch.equal(product(eye[:rows])[0], exact[:rows])
    rounded = weight.dequantized(torch.bfloat16).t()[positions]
    assert torch.equal(product(eye.bfloat16())[0], rounded)
    for rows in (1, 8):
        assert torch.equal(product(eye[:rows].bfloat16())[0], exact[:rows].bfloat16())


@KERNELS
def test_subnormal_codes_are_exact_where_torch_flushes_subnormal_numbers(name: str) -> None:
    weight = Weight("fp8", 64, 64, -1)
    weight.codes = torch.arange(8, dtype=torch.uint8).repeat(64, 8)
    weight.scales.fill_(1.0)
    expected = torch.arange(8) * 2.0**-9
    supported = torch.set_flush_denormal(True)
    try:
        for rows in (1, 40):
            out = weight.product(name, bias=False)(torch.eye(64)[:rows])[0]
            assert torch.equal(out[:8, 0], expected[: min(rows, 8)])
        tiny = torch.tensor(2.0**-126)
        assert not supported or float(tiny * 0.5) == 0  # the caller's mode is restored
    finally:
        torch.set_flush_denormal(False)


@settings(max_examples=30)
@given(st.floats(2.0**-60, 2.0**60, width=32))
def test_divided_scales_are_correctly_rounded(divisor: float) -> None:
    """As `scales / divisor` in float32, for all positive E4M3 numbers."""
    weight = Weight("nvfp4", len(E4M3.magnitudes) - 1, 16, 16, divisor=divisor)
    weight.scales = torch.tensor(E4M3.magnitudes[1:])[:, None]
    weight.codes.fill_(2)  # the level 1
    expected = weight.scales[:, 0] / torch.tensor(divisor)
    for name in AVAILABLE:
        for dtype in (torch.float32, torch.bfloat16):
            out = weight.product(name, bias=False)(torch.eye(16)[:1].to(dtype))[0][0]
            assert torch.equal(out, expected.to(dtype))


@KERNELS
@pytest.mark.parametrize("grid", ["fp8", "fp8-e5m2", "nvfp4", "nf4"])
def test_values_that_are_not_finite_stay_in_their_row(name: str, grid: str) -> None:
    weight = Weight(grid, 64, 64, 32)
    product = weight.product(name)
    for dtype in (torch.float32, torch.bfloat16):
        x = inputs(3, 64, dtype)
        x[1, 5] = torch.nan
        out = product(x)[0]
        assert bool(out[1].isnan().all()) and bool(out[[0, 2]].isfinite().all())
        assert bool(product(x[1:2])[0].isnan().all())
        x[1, 5] = torch.inf
        assert not bool(product(x)[0][1].isfinite().any())
        assert not bool(product(x[1:2])[0].isfinite().any())


@KERNELS
def test_large_and_small_inputs(name: str) -> None:
    for grid in ("fp8", "nvfp4"):
        weight = Weight(grid, 70, 256, 32)
        for factor in (2.0**-40, 2.0**60):
            for rows in (1, 3, 40):
                x = inputs(rows, 256, torch.float32) * factor
                weight.bias = torch.zeros(70)
                check(weight.product(name)(x)[0], weight.expected(x), torch.float32)


@KERNELS
@pytest.mark.parametrize("grid", ["nvfp4", "ternary"])
def test_sums_of_whole_inputs_are_exact(name: str, grid: str) -> None:
    """With scales that are powers of two, for groups of few inputs and odd numbers of groups."""
    random = torch.Generator().manual_seed(2)
    for group, groups in itertools.product((8, 16, 24, 32, 48), (1, 2, 3, 4, 7)):
        weight = Weight(grid, 70, group * groups, group)
        weight.scales = 2.0 ** torch.randint(-2, 2, weight.scales.shape, generator=random)
        x = torch.randint(-127, 128, (3, group * groups), generator=random).bfloat16()
        # Much larger inputs, of every other group, which zeros are multiplied with.
        weight.codes[:, :: 2 * group] = weight.levels.values.eq(0).nonzero()[0, 0]
        x[1:, :: 2 * group] = 2.0**14
        exact = (x.double() @ weight.dequantized().double().t()).to(torch.bfloat16)
        product = weight.product(name, bias=False)
        assert torch.equal(product(x)[0], exact)
        for row in range(3):
            assert torch.equal(product(x[row : row + 1])[0], exact[row : row + 1])


@KERNELS
@pytest.mark.parametrize("grid", ["nvfp4", "ternary"])
def test_extreme_sums_do_not_overflow(name: str, grid: str) -> None:
    """The largest levels times inputs that all are the largest of their binade."""
    for group in (16, 32, 48, 64):
        weight = Weight(grid, 64, 2 * group, group)
        weight.scales.fill_(1.0)
        levels = weight.levels.values.nan_to_num()
        ends = torch.tensor([int(levels.argmin()), int(levels.argmax())], dtype=torch.uint8)
        weight.codes = ends[torch.arange(64 * 2 * group).reshape(64, -1) % 7 % 2]
        product = weight.product(name, bias=False)
        signs = weight.dequantized()[:1].sign()
        for x in (signs * 255 / 128, -signs * 255 * 2.0**52, torch.ones_like(signs) * 255 / 128):
            exact = x.double() @ weight.dequantized().double().t()
            assert torch.equal(product(x.bfloat16())[0], exact.to(torch.bfloat16))


@KERNELS
def test_scales_that_fp16_does_not_hold(name: str) -> None:
    for group in (16, 32):
        weight = Weight("nvfp4", 70, 96, group, divisor=3.0)
        weight.scales *= 1 + 2.0**-20
        assert weight.tiles().scales.dtype == torch.float32
        for rows, dtype in itertools.product((1, 3), (torch.float32, torch.bfloat16)):
            x = inputs(rows, 96, dtype)
            check(weight.product(name)(x)[0], weight.expected(x), dtype)


def test_a_code_without_a_level_is_refused() -> None:
    for grid, code in (("fp8", 0x7F), ("fp8-e5m2", 0xFC), ("pot4", 0)):
        weight = Weight(grid, 64, 64, -1)
        weight.codes[3, 4] = code
        assert int(weight.dequantized().isnan().sum()) == 1
        with pytest.raises(ValueError, match=f"code {code} has no level"):
            weight.tiles()


@pytest.mark.parametrize("grid", GRIDS)
def test_unprepack_inverts_prepack(grid: str) -> None:
    weight = Weight(grid, 70, 128, 32)
    codes, scales, _ = cpu_layout.unprepack(weight.tiles())
    assert torch.equal(codes, weight.codes) and torch.equal(scales, weight.scales)


@KERNELS
def test_several_weights_in_one_call(name: str) -> None:
    weights = [Weight("nvfp4", n, 128, 16, divisor=float(n), seed=n) for n in (64, 17, 200)]
    fused = cpu.CpuLinear([w.tiles() for w in weights], [w.bias for w in weights], kernels(name))
    for rows in (1, 40):
        x = inputs(rows, 128, torch.bfloat16)
        for weight, actual in zip(weights, fused(x), strict=True):
            assert torch.equal(actual, weight.product(name)(x)[0])


def test_reasons_for_unsupported_weights() -> None:
    assert cpu_layout.why_not_codes(64, 8, 1, 253, 3) is None
    assert cpu_layout.why_not_codes(64, 4, 4, 15, 1, 2688.0) is None
    for arguments, value in (
        ((64, 8, 1, 17, 0), "17"),
        ((64, 8, 1, 255, 4), "255"),
        ((64, 4, 4, 15, 1, 2.0**101), "2.5353e"),
        ((60, 4, 1, 15, 1), "60"),
    ):
        assert value in str(cpu_layout.why_not_codes(*arguments))
