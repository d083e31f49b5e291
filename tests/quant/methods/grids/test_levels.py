"""Rounding to levels: parity with ml_dtypes, torch and compressed-tensors, and by brute force."""

import json
import math
from typing import Any

import paths
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vlpress.quant.methods.grids.levels import (
    code_to_index,
    index_to_code,
    level_index,
    level_values,
    round_to_levels,
)
from vlpress.quant.recipe.grids import GRIDS, Grid

GOLDEN: dict[str, Any] = json.loads((paths.GOLDEN / "grids.json").read_text())
DTYPES = {"fp8": torch.float8_e4m3fn, "fp8-e5m2": torch.float8_e5m2}


def codes_of(x: Tensor, grid: Grid) -> Tensor:
    return index_to_code(level_index(round_to_levels(x, grid), grid), grid)


@pytest.mark.parametrize("name", ["fp8", "fp8-e5m2", "nvfp4"])
def test_levels_and_rounding_are_those_of_ml_dtypes(name: str) -> None:
    grid, golden = GRIDS[name], GOLDEN[name]
    numbers = {int(code): value for code, value in golden["numbers"].items()}
    assert {code: numbers[code] for code in grid.codes} == dict(
        zip(grid.codes, grid.levels, strict=True)
    )
    assert len(numbers) == len(grid.levels) + 1  # both zeros
    rounded = round_to_levels(torch.tensor(golden["inputs"]), grid)
    assert rounded.tolist() == [numbers[code] for code in golden["codes"]]
    minus_zero = 1 << (grid.bits - 1)
    expected = [0 if code == minus_zero else code for code in golden["codes"]]
    assert codes_of(torch.tensor(golden["inputs"]), grid).tolist() == expected


@pytest.mark.parametrize("name", DTYPES)
def test_rounding_equals_torchs_conversion(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-12, 9, (100_000,), generator=generator)
    x = torch.randn(100_000, generator=generator) * 2.0**exponents
    x = x.clamp(-GRIDS[name].largest, GRIDS[name].largest)
    assert torch.equal(round_to_levels(x, GRIDS[name]), x.to(DTYPES[name]).float())


def test_fp4_rounding_equals_compressed_tensors() -> None:
    quant_args = pytest.importorskip("compressed_tensors.quantization.quant_args")
    halves = torch.arange(-32, 33) / 4.0  # ties and numbers beyond the last level
    x = torch.cat([halves, torch.nextafter(halves, halves + 1), torch.randn(1000) * 3])
    expected = quant_args.FP4_E2M1_DATA.cast_to_fp4(x.clone())
    assert torch.equal(round_to_levels(x, GRIDS["nvfp4"]), expected)


def nearest_by_hand(value: float, grid: Grid) -> float:
    distances = [abs(value - level) for level in grid.levels]
    hits = [i for i, distance in enumerate(distances) if distance == min(distances)]
    even = [i for i in hits if grid.codes[i] % 2 == 0]
    return grid.levels[even[0] if len(hits) > 1 else hits[0]]


@pytest.mark.parametrize("name", [n for n, grid in GRIDS.items() if n != "nf4"])
@given(values=st.lists(st.floats(-500, 500, width=32), min_size=1, max_size=20))
def test_rounding_finds_the_nearest_level(name: str, values: list[float]) -> None:
    """With ties to the even code; all differences are exact in float64."""
    grid = GRIDS[name]
    expected = [nearest_by_hand(value, grid) for value in values]
    assert round_to_levels(torch.tensor(values), grid).tolist() == expected


def test_nf4_rounds_at_the_middles() -> None:
    grid = GRIDS["nf4"]
    levels = torch.tensor(grid.levels, dtype=torch.float64)
    for low, high, middle in zip(
        grid.levels, grid.levels[1:], (levels[1:] + levels[:-1]) / 2, strict=False
    ):
        around = torch.tensor([float(middle) - 1e-6, float(middle) + 1e-6])
        assert round_to_levels(around, grid).tolist() == pytest.approx([low, high])


@pytest.mark.parametrize("name", GRIDS)
def test_positions_and_codes_round_trip(name: str) -> None:
    grid = GRIDS[name]
    indices = torch.arange(len(grid.levels), dtype=torch.uint8)
    values = level_values(indices, grid)
    assert torch.equal(round_to_levels(values, grid), values)
    assert torch.equal(level_index(values, grid), indices)
    codes = index_to_code(indices, grid)
    assert codes.tolist() == list(grid.codes)
    assert torch.equal(code_to_index(codes, grid, "x"), indices)


@pytest.mark.parametrize("name", GRIDS)
def test_zero_infinity_and_nan(name: str) -> None:
    grid = GRIDS[name]
    x = torch.tensor([0.0, -0.0, math.inf, -math.inf, 1e30, math.nan])
    rounded = round_to_levels(x, grid)
    ends = [grid.levels[-1], grid.levels[0], grid.levels[-1]]
    assert rounded[:5].tolist() == [0, 0, *ends]
    assert bool(rounded[5].isnan())
    assert level_index(rounded[:2], grid).tolist() == [grid.zero] * 2


def test_a_negative_zero_is_read_as_zero_and_nan_is_refused() -> None:
    fp8, fp4 = GRIDS["fp8"], GRIDS["nvfp4"]
    zeros = code_to_index(torch.tensor([0, 128], dtype=torch.uint8), fp8, "x")
    assert zeros.tolist() == [fp8.zero] * 2
    assert code_to_index(torch.tensor([8], dtype=torch.uint8), fp4, "x").tolist() == [fp4.zero]
    for nan in (0x7F, 0xFF):
        with pytest.raises(ValueError, match=f"w has the code {nan}, .* grid fp8; .* damaged"):
            code_to_index(torch.tensor([3, nan], dtype=torch.uint8), fp8, "w")
