"""Layouts are bijections, and their streams are what the docstrings say."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlpress.model.packed.choosing import choose_layout
from vlpress.model.packed.layouts import (
    Bytes,
    Codes,
    Layout,
    NonZeros,
    Plain,
    Planes,
    describe,
    parse_layout,
)
from vlpress.quant.checkpoint.formats.packing import pack

LAYOUTS = [
    Plain(),
    *(Planes(item, rotate) for item in (2, 4, 8) for rotate in (False, True)),
    *(NonZeros(item, True) for item in (2, 4, 8)),
    *(Codes(bits, stride) for bits in (3, 4, 5, 6, 7) for stride in (1, 4)),
]
BLOCK = 2**20


def as_bytes(tensor: torch.Tensor) -> Bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_joined_streams_are_the_block(layout: Layout) -> None:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
    def roundtrip(units: int, seed: int, zeros: float) -> None:
        rng = np.random.default_rng(seed)
        block = rng.integers(0, 256, units * layout.unit, np.uint8)
        block[rng.random(len(block)) < zeros] = 0
        streams = layout.split(block.copy())
        assert np.array_equal(layout.join(streams, len(block)), block)

    roundtrip()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_streams_of_another_size_are_refused(layout: Layout) -> None:
    block = np.arange(8 * layout.unit, dtype=np.uint64).view(np.uint8)[: 8 * layout.unit]
    streams = layout.split(block)
    with pytest.raises(ValueError, match="expected"):
        layout.join([*streams[:-1], streams[-1][:-1]], len(block))
    with pytest.raises(ValueError, match="expected"):
        layout.join([*streams, streams[0]], len(block))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_described_layout_is_parsed(layout: Layout) -> None:
    assert parse_layout(describe(layout)) == layout


@pytest.mark.parametrize(
    "described",
    [
        {},
        {"kind": "huffman"},
        {"kind": "plain", "item": 2},
        {"kind": "planes", "item": 3, "rotate": True},
        {"kind": "planes", "item": 2},
        {"kind": "codes", "bits": 8, "stride": 1},
        {"kind": "codes", "bits": 3, "stride": 0},
        {"kind": "codes", "bits": 3, "stride": 2**40},
    ],
)
def test_an_unknown_layout_is_refused(described: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        parse_layout(described)


def test_bf16_planes_are_mantissa_with_sign_and_exponent() -> None:
    values = torch.tensor([1.0, -1.0, -2.5], dtype=torch.bfloat16)
    low, exponent = Planes(2, True).split(as_bytes(values))
    assert exponent.tolist() == [127, 127, 128]
    # Seven bits of the mantissa, then the sign; -2.5 = -2 * (1 + 1/4).
    assert low.tolist() == [0, 1, 0b0100000_1]


def test_nonzeros_are_a_mask_and_the_planes_of_the_rest() -> None:
    values = torch.tensor([0.0, 1.0, 0.0, -1.0], dtype=torch.bfloat16)
    mask, low, exponent = NonZeros(2, True).split(as_bytes(values))
    assert mask.tolist() == [0b1010]
    assert low.tolist() == [0, 1] and exponent.tolist() == [127, 127]


@pytest.mark.parametrize("bits", [4, 5, 6, 7])
def test_codes_of_packed_rows_are_the_integers(bits: Literal[4, 5, 6, 7]) -> None:
    values = torch.randint(2**bits, (32, 6), generator=torch.Generator().manual_seed(0))
    words = pack(values, bits)
    (codes,) = Codes(bits, 6).split(as_bytes(words))
    assert torch.equal(torch.from_numpy(codes).view(6, 32).t(), values.to(torch.uint8))


def test_codes_of_three_bits_are_two_a_byte() -> None:
    values = torch.randint(8, (64, 5), generator=torch.Generator().manual_seed(0))
    words = pack(values, 3)
    (codes,) = Codes(3, 5).split(as_bytes(words))
    pairs = torch.from_numpy(codes).view(2, 5, 16)
    first, second = pairs & 7, pairs >> 3
    unpacked = torch.stack([first, second], dim=-1).reshape(2, 5, 32)
    assert torch.equal(unpacked.transpose(1, 2).reshape(64, 5), values.to(torch.uint8))


def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def codes(rows: int, columns: int, bits: int) -> torch.Tensor:
    levels = (float(2 ** (bits - 1)) * (1 + normal(rows, columns, dtype=torch.float32) / 3)).round()
    return levels.clamp(0, float(2**bits - 1)).to(torch.int64)


# Fifteen uniform codes, as FP4 has without a negative zero: two of them are 7.8 bits.
FP4 = pack(torch.randint(15, (512, 64), generator=torch.Generator().manual_seed(0)), 4)
SPARSE = normal(256, 256, dtype=torch.bfloat16).clamp(min=0)


@pytest.mark.parametrize(
    ("dtype", "tensor", "expected"),
    [
        ("BF16", normal(256, 256, dtype=torch.bfloat16), Planes(2, True)),
        ("F16", normal(256, 256, dtype=torch.float16), Planes(2, True)),
        ("F32", normal(256, 256, dtype=torch.float32), Planes(4, True)),
        ("BF16", SPARSE, NonZeros(2, True)),
        ("I32", pack(codes(256, 64, 4), 4), Plain()),
        ("I32", pack(codes(256, 64, 8), 8), Plain()),
        ("I32", pack(codes(256, 64, 3), 3), Codes(3, 64)),
        ("I32", pack(codes(256, 64, 5), 5), Codes(5, 64)),
        ("I32", pack(codes(256, 64, 3), 3).t(), Codes(3, 1)),
        ("I8", codes(64, 256, 7).to(torch.int8), Plain()),
        ("F8_E4M3", normal(64, 256, dtype=torch.float8_e4m3fn), Plain()),
        ("U8", FP4.view(torch.uint8), Codes(4, 1)),
        ("BF16", torch.empty(0, dtype=torch.bfloat16), Plain()),
        ("BF16", torch.tensor(1.5, dtype=torch.bfloat16), Plain()),
    ],
    ids=lambda value: str(list(value.shape)) if isinstance(value, torch.Tensor) else str(value),
)
def test_the_layout_suits_the_tensor(dtype: str, tensor: torch.Tensor, expected: Layout) -> None:
    assert choose_layout(dtype, tuple(tensor.shape), as_bytes(tensor), BLOCK) == expected


def test_units_larger_than_a_block_are_not_chosen() -> None:
    words = pack(codes(256, 64, 3), 3)
    assert choose_layout("I32", tuple(words.shape), as_bytes(words), 4 * 3 * 64 - 1) == Plain()
