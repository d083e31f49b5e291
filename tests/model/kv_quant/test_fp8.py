"""FP8 keys and values with a scale per layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlpress.model.kv_quant.fp8 import round_fp8


@pytest.mark.parametrize(
    ("value", "scale", "expected"),
    [
        (17.0, 1.0, 16.0),  # halfway between 16 and 18, to the even code
        (19.0, 1.0, 20.0),
        (17.0, 1.5, 16.5),
        (448.0, 1.0, 448.0),
        (460.0, 1.0, 448.0),
        (-1e6, 0.25, -112.0),
        (2.0**-9, 1.0, 2.0**-9),  # the smallest subnormal number
        (2.0**-11, 1.0, 0.0),
    ],
)
def test_values(value: float, scale: float, expected: float) -> None:
    assert float(round_fp8(torch.tensor([value]), scale)[0]) == expected


@given(st.floats(-3000, 3000), st.floats(0.01, 8))
def test_error_is_half_a_step_within_the_range(value: float, scale: float) -> None:
    rounded = float(round_fp8(torch.tensor([value], dtype=torch.float64), scale)[0])
    limit = 448 * scale
    clipped = min(max(value, -limit), limit)
    assert abs(rounded - clipped) <= max(abs(clipped) / 16, scale * 2**-10) * (1 + 1e-5)


def test_what_is_not_finite_stays() -> None:
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0], dtype=torch.bfloat16)
    rounded = round_fp8(values, 0.5)
    assert torch.equal(rounded.isfinite(), values.isfinite()) and rounded.dtype == torch.bfloat16
