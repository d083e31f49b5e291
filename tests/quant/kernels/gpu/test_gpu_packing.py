"""The layout of the Triton kernels: known values, and the way back."""

from __future__ import annotations

import pytest
import torch
from gpu_weights import Weight
from hypothesis import given
from hypothesis import strategies as st

from vlpress.quant.kernels.gpu import packing


@given(
    bits=st.integers(2, 8),
    tiles=st.integers(1, 3),
    rows=st.integers(1, 130),
    symmetric=st.booleans(),
    group=st.sampled_from([-1, 32, 64]),
)
def test_unpacking_inverts_packing(
    bits: int, tiles: int, rows: int, symmetric: bool, group: int
) -> None:
    weight = Weight(rows, 64 * tiles, group, bits, symmetric)
    integers, scales, zeros = packing.unprepack(weight.packed())
    assert torch.equal(integers, weight.integers)
    assert torch.equal(scales, weight.scales)
    assert torch.equal(zeros, weight.zeros)


def test_words_hold_the_inputs_of_a_fragment() -> None:
    columns = torch.arange(32, dtype=torch.uint8)[None] % 16 ^ 8
    one = torch.ones(1, 1)
    weight = packing.prepack(columns, one, torch.full((1, 1), 8, dtype=torch.uint8), 4)
    # Lane 1 holds inputs 2 and 3 of each 8: in the low half of its word 2, 10, 18 and 26.
    word = int(weight.words[0, 0, 1]) & 0xFFFFFFFF
    assert [word >> (4 * i) & 15 for i in range(8)] == [2, 10, 2, 10, 3, 11, 3, 11]
    order = packing.input_order(32, 8)
    assert order[:4].tolist() == [0, 8, 1, 9] and order[8:12].tolist() == [2, 10, 3, 11]
    assert sorted(order.tolist()) == list(range(32))


def test_rows_are_padded_with_zeros() -> None:
    weight = Weight(50, 64, 32, 4, True).packed()
    assert weight.words.shape == (2, packing.ROWS, 4) and weight.grid.shape == (2, packing.ROWS)
    assert not weight.words[:, 50:].any() and not weight.grid[:, 50:].any()


def test_scales_that_have_no_packed_form() -> None:
    scales = torch.full((2, 1), 1 / 3)
    same, different = torch.full((2, 1), 7), torch.tensor([[7], [8]])
    assert packing.why_not_scales(scales, same) is None
    reason = packing.why_not_scales(scales, different)
    assert reason is not None and "bf16" in reason and "fp16" in reason
    with pytest.raises(ValueError, match="bf16"):
        packing.prepack(torch.zeros(2, 64, dtype=torch.uint8), scales, different.to(torch.uint8), 4)


def test_tiles_divide_groups() -> None:
    assert packing.tile_size(256, 2) == 64
    assert packing.tile_size(96, 1) == 32 and packing.tile_size(96, 6) is None
