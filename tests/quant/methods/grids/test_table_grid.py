"""Scales, rounding and GPTQ on tables of levels."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vlpress.quant.methods.affine import dequantize, round_scales
from vlpress.quant.methods.gptq import gptq
from vlpress.quant.methods.grids.group_scales import SCALES, divisor_of
from vlpress.quant.methods.grids.levels import level_index
from vlpress.quant.methods.grids.table_grid import TableGrid
from vlpress.quant.methods.grids.table_weight import TableWeight
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.recipe.grids import GRIDS, table_grid
from vlpress.quant.recipe.scheme import GridScheme, QuantScheme, TableScheme

SCHEMES = [
    TableScheme("fp8"),
    TableScheme("fp8", 32, 32),
    TableScheme("fp8-e5m2"),
    TableScheme("nvfp4"),
    TableScheme("mxfp4"),
    TableScheme("nf4"),
    TableScheme("ternary", 32),
    TableScheme("pot4", 32),
]
by_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)


def problem(rows: int = 48, columns: int = 128, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and the Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(1000, columns, generator=generator) @ (mix + 0.3 * torch.eye(columns))
    return torch.randn(rows, columns, generator=generator), inputs.t() @ inputs / 1000


def rounded(weight: Tensor, scheme: GridScheme, hessian: Tensor | None = None) -> TableWeight:
    grid = scheme.fit_for_rounding(weight, hessian)
    compressed = grid.compressed(grid.nearest(weight))
    assert isinstance(compressed, TableWeight)
    return compressed


@by_scheme
def test_every_weight_gets_the_nearest_level(scheme: TableScheme) -> None:
    weight, _ = problem()
    compressed = rounded(weight, scheme)
    width = scheme.width(weight.shape[1])
    scales = compressed.row_scales().repeat_interleave(width, dim=1)
    levels = torch.tensor(scheme.table.levels)
    errors = (weight[..., None] - levels * scales[..., None]).abs()
    least = errors.amin(dim=-1)
    assert torch.allclose((weight - compressed.dequantize()).abs(), least, atol=1e-6)
    assert compressed.scales.shape == scheme.scale_shape(*weight.shape)


@by_scheme
def test_gptq_beats_rounding(scheme: TableScheme) -> None:
    weight, hessian = problem()
    result = gptq(weight, hessian, scheme)
    assert result.error < 0.75 * result.rtn_error and result.fallback_rows <= 1
    difference = weight - result.weight.dequantize()
    by_hand = torch.trace(difference @ hessian @ difference.t()) / torch.trace(
        weight @ hessian @ weight.t()
    )
    assert result.final_error == pytest.approx(float(by_hand), rel=2e-3)


@by_scheme
def test_a_search_lowers_the_error_that_it_looks_at(scheme: TableScheme) -> None:
    weight, hessian = problem()
    plain, searched = rounded(weight, scheme), rounded(weight, scheme, hessian)
    errors = [
        float(((weight - w.dequantize()) @ hessian * (weight - w.dequantize())).sum())
        for w in (plain, searched)
    ]
    assert errors[1] <= errors[0] * 1.0001
    if scheme.table.choices == (1.0,):
        assert errors[1] < errors[0]


def test_a_table_of_integers_is_the_integer_grid() -> None:
    """GPTQ with the levels -8 to 7 finds the integers of int4."""
    weight, hessian = problem()
    integers = gptq(weight, hessian, QuantScheme(4, 32))
    table = table_grid("int4", tuple(map(float, range(-8, 8))), 4)
    scheme = TableScheme("nf4", 32)

    class Fixed:
        def fit_for_solver(self, *_: Any, **__: Any) -> TableGrid:
            return TableGrid(integers.weight.scales, None, scheme, len(weight))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GRIDS, "nf4", table)
        result = gptq(weight, hessian, Fixed())
        assert torch.equal(result.weight.indices, integers.weight.integers)
        assert torch.equal(result.weight.dequantize(), integers.weight.dequantize())


def test_nvfp4_scales_are_those_of_compressed_tensors() -> None:
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    schemes = pytest.importorskip("compressed_tensors.quantization.quant_scheme")
    args = schemes.preset_name_to_scheme("NVFP4A16", ["Linear"]).weights
    weight = problem()[0] * 0.02
    groups = weight.reshape(48, -1, 16)
    divisor = helpers.generate_gparam(weight.min(), weight.max())
    assert float(divisor) == divisor_of(float(weight.abs().max()), GRIDS["nvfp4"])
    theirs, _ = helpers.calculate_qparams(groups.amin(-1), groups.amax(-1), args, divisor)
    form = SCALES["e4m3"]
    largest = groups.abs().amax(-1)
    ours = form.round(form.from_range(largest * divisor, GRIDS["nvfp4"]))
    # The library divides before it multiplies: a few scales are rounded to a neighbour.
    assert float((ours == theirs.float()).float().mean()) > 0.99
    assert torch.allclose(ours, theirs.float(), rtol=0.13)


def test_mxfp4_scales_are_those_of_compressed_tensors() -> None:
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    schemes = pytest.importorskip("compressed_tensors.quantization.quant_scheme")
    args = schemes.preset_name_to_scheme("MXFP4A16", ["Linear"]).weights
    exact = torch.tensor([1.0, 1.74, 1.75, 1.76, 3.5, 6.0, 7.0, 8.0, 2.0**-100])
    largest = torch.cat([exact, problem()[0].abs().flatten()])[:, None]
    theirs, _ = helpers.calculate_qparams(-largest, largest, args)
    ours = SCALES["e8m0"].from_range(largest, GRIDS["mxfp4"])
    assert torch.equal(ours, theirs)


def test_dequantized_weights_are_those_of_compressed_tensors() -> None:
    """Of the same indices and scales, bit for bit, in bf16 as in float32."""
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    schemes = pytest.importorskip("compressed_tensors.quantization.quant_scheme")
    weight = problem(128, 256)[0] * 0.02
    for name, scheme in {
        "NVFP4A16": TableScheme("nvfp4"),
        "MXFP4A16": TableScheme("mxfp4"),
        "FP8_DYNAMIC": TableScheme("fp8"),
        "FP8_BLOCK": TableScheme("fp8", 128, 128),
    }.items():
        compressed = rounded(weight, scheme)
        levels = torch.tensor(scheme.table.levels)[compressed.indices.int()]
        for dtype in (torch.bfloat16, torch.float32):
            theirs = forward.dequantize(
                levels.to(dtype),
                compressed.scales.to(dtype),
                args=schemes.preset_name_to_scheme(name, ["Linear"]).weights,
                global_scale=None if compressed.divisor is None else compressed.divisor[None],
                dtype=dtype,
            )
            assert torch.equal(theirs, compressed.dequantize(dtype)), name


def test_four_over_six() -> None:
    """A group of 1, .., 4/6, .. is exact with the scale that maps its largest weight to 4."""
    weight = torch.full((1, 32), 0.0)
    weight[0, :4] = torch.tensor([4.0, 3.0, 2.0, -3.0])
    weight[0, 16:20] = torch.tensor([6.0, 4.0, 3.0, 0.5]) * 16
    compressed = rounded(weight, TableScheme("nvfp4"))
    error = (compressed.dequantize() - weight).abs()
    assert float(error[0, :16].max()) < 0.07 * 4
    scales = compressed.row_scales()[0]
    assert float(weight[0, :4].max() / scales[0]) == pytest.approx(4, rel=0.07)
    assert float(weight[0, 16:20].max() / scales[1]) == pytest.approx(6, rel=0.07)


def test_groups_of_zeros_and_matrices_of_zeros() -> None:
    for scheme in SCHEMES:
        compressed = rounded(torch.zeros(4, 128), scheme)
        assert not bool(compressed.dequantize().any())
        assert bool((compressed.scales > 0).all())
        weight, _ = problem(4)
        weight[:, :64] = 0
        assert not bool(rounded(weight, scheme).dequantize()[:, :64].any())


def test_partial_blocks_of_rows() -> None:
    weight = problem(80)[0]
    scheme = TableScheme("fp8", 64, 64)
    compressed = rounded(weight, scheme)
    assert compressed.scales.shape == (2, 2)
    expected = weight[64:, :64].abs().max() / 448
    assert torch.equal(compressed.scales[1, 0], round_scales(expected))
    assert float((compressed.dequantize() - weight).abs().max()) < 0.07 * float(weight.abs().max())


def test_fused_layers_share_the_scale_of_the_matrix() -> None:
    first, second = problem(16)[0], problem(16, seed=1)[0] * 3
    fused = float(torch.cat([first, second]).abs().max())
    for weight in (first, second):
        grid = TableScheme("nvfp4").fit_for_solver(weight, fused_range=fused)
        divisor = grid.compressed(grid.nearest(weight)).divisor
        assert divisor is not None and float(divisor) == divisor_of(fused, GRIDS["nvfp4"])


def test_large_weights_saturate() -> None:
    """A solver moves weights beyond the range that the scales were chosen for."""
    scheme = TableScheme("fp8")
    grid = scheme.fit_for_solver(torch.ones(2, 32), search=False)
    values = grid.values(grid.nearest(torch.full((2, 32), 9.0)), slice(None))
    assert torch.equal(
        values, torch.full((2, 32), 448.0) * grid.compressed(torch.zeros(2, 32)).scales
    )


def test_broken_weights_are_refused() -> None:
    weight = torch.ones(4, 32)
    weight[1, 3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        TableScheme("nvfp4").fit_for_rounding(weight)
    with pytest.raises(ValueError, match="does not divide into groups of 16"):
        TableScheme("nvfp4").fit_for_rounding(torch.ones(4, 24))


@given(seed=st.integers(0, 1000), exponent=st.integers(-12, 8))
def test_rounding_again_changes_nothing(seed: int, exponent: int) -> None:
    """A matrix that is on a grid stays there, with the scales that it was made with."""
    weight = problem(8, 64, seed)[0] * 2.0**exponent
    for scheme in (TableScheme("fp8"), TableScheme("nvfp4"), TableScheme("mxfp4")):
        once = rounded(weight, scheme)
        grid = TableGrid(once.scales, once.divisor, scheme, 8)
        assert torch.equal(grid.nearest(once.dequantize()), once.indices)


def test_weights_are_compared_and_rebuilt() -> None:
    weight = rounded(problem()[0], TableScheme("nvfp4"))
    again = weight.scheme.weight(weight.tensors())
    assert weight.equals(again) and list(weight.tensors()) == ["indices", "scales", "divisor"]
    assert not weight.equals(replace(weight, scales=weight.scales * 2))
    assert not weight.equals(rtn(problem()[0], QuantScheme(4, 16)))
    static = TableScheme("fp8", activations="static")
    with_scale = rounded(problem()[0], static).with_input_range(224.0)
    assert with_scale.input_scale is not None and float(with_scale.input_scale) == 0.5
    assert weight.with_input_range(3.0) is weight
    active = TableScheme("nvfp4", activations="dynamic")
    divisor = rounded(problem()[0], active).with_input_range(6.0).input_scale
    assert divisor is not None and float(divisor) == 448


def test_int_indices_of_tables_match_dequantization() -> None:
    """`level_index` and the integers of `affine.dequantize` mean the same on an integer table."""
    table = table_grid("int3", tuple(map(float, range(-4, 4))), 3)
    values = torch.arange(-4.0, 4.0)
    indices = level_index(values, table)
    zeros = torch.full((1, 1), 4, dtype=torch.uint8)
    assert torch.equal(dequantize(indices[None], torch.ones(1, 1), zeros)[0], values)
