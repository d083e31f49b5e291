"""Blocks of GGUF against the package gguf's own reading of them, and against bytes by hand."""

from __future__ import annotations

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from format_files import made_layer, made_table_layer
from hypothesis import given, settings
from hypothesis import strategies as st

from vlpress.quant.compressed_weight import CompressedWeight
from vlpress.quant.deployment.gguf.carriers import (
    INTEGER_CARRIERS,
    MXFP4,
    Q4_1,
    Carrier,
    choose_carrier,
    difference_range,
    encode,
    fits_q4_1,
    may_fit_q4_1,
)
from vlpress.quant.methods.affine import QuantizedWeight
from vlpress.quant.recipe.scheme import QuantScheme, Scheme, TableScheme

K = 256
BY_NAME = {carrier.name: carrier for carrier in (*INTEGER_CARRIERS, Q4_1, MXFP4)}

CHOICES = [
    (QuantScheme(bits=4, group_size=32), "Q4_0"),
    (QuantScheme(bits=4, group_size=128), "Q4_0"),
    (QuantScheme(bits=4, group_size=-1), "Q4_0"),
    (QuantScheme(bits=4, group_size=64, symmetric=False), "Q5_0"),
    (QuantScheme(bits=3, group_size=64), "Q4_0"),
    (QuantScheme(bits=3, group_size=64, symmetric=False), "Q4_0"),
    (QuantScheme(bits=2, group_size=64), "Q4_0"),
    (QuantScheme(bits=2, group_size=32), "Q4_0"),
    (QuantScheme(bits=2, group_size=64, symmetric=False), "Q4_0"),
    (QuantScheme(bits=5, group_size=64), "Q5_0"),
    (QuantScheme(bits=6, group_size=64), "Q8_0"),
    (QuantScheme(bits=7, group_size=64, symmetric=False), "Q8_0"),
    (QuantScheme(bits=8, group_size=128), "Q8_0"),
    (QuantScheme(bits=8, group_size=-1, activations="dynamic"), "Q8_0"),
]


def chosen(*schemes: Scheme, in_features: int = K) -> Carrier:
    carrier = choose_carrier(schemes, in_features)
    assert isinstance(carrier, Carrier), carrier
    return carrier


def read_by_gguf(blocks: np.ndarray, carrier: Carrier) -> torch.Tensor:
    kind = gguf.GGMLQuantizationType[carrier.name]
    return torch.from_numpy(gguf.quants.dequantize(blocks, kind))


@pytest.mark.parametrize(("scheme", "name"), CHOICES)
def test_the_smallest_type_that_holds_the_scheme_holds_every_weight(
    scheme: QuantScheme, name: str
) -> None:
    weight, carrier = made_layer(scheme, columns=K), chosen(scheme)
    weight = replace(weight, scales=weight.scales * torch.tensor([[1.0], [-1.0]]).repeat(32, 1))
    blocks = encode(weight, carrier)
    assert carrier.name == name
    assert blocks.shape == (64, K // carrier.block * carrier.nbytes)
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (carrier.block, carrier.nbytes)
    assert torch.equal(read_by_gguf(blocks, carrier), weight.dequantize())


@given(data=st.data(), bits=st.integers(2, 8), symmetric=st.booleans())
@settings(max_examples=60, deadline=None)
def test_random_integers_are_read_back_bit_for_bit(
    data: st.DataObject, bits: int, symmetric: bool
) -> None:
    group = data.draw(st.sampled_from([32, 64, 128, -1]))
    scheme = QuantScheme(bits=bits, group_size=group, symmetric=symmetric)
    if bits == 8 and not symmetric:
        return
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    groups = scheme.groups(K)
    # Numbers of bf16 that fp16 holds too, of either sign.
    scales = torch.randn(5, groups, generator=seed).bfloat16().float().clamp(-4, 4)
    scales[scales.abs() < 2.0**-10] = 1.0
    zeros = torch.full((5, groups), scheme.midpoint)
    if not symmetric:
        zeros = torch.randint(0, scheme.max_level + 1, (5, groups), generator=seed)
    weight = QuantizedWeight(
        torch.randint(0, scheme.max_level + 1, (5, K), generator=seed).to(torch.uint8),
        scales,
        zeros.to(torch.uint8),
        scheme,
    )
    carrier = chosen(scheme)
    smaller = [Q4_1] if may_fit_q4_1(scheme) and fits_q4_1(weight) else []
    for each in (carrier, *smaller):
        assert torch.equal(read_by_gguf(encode(weight, each), each), weight.dequantize())


def test_blocks_by_hand() -> None:
    """ggml-common.h: d in fp16, then elements j and j + 16 in the low and high half of byte j."""
    scheme = QuantScheme(bits=4, group_size=32)
    integers = torch.arange(32, dtype=torch.uint8).remainder(16)[None]
    scale = torch.tensor([[0.5]])
    weight = QuantizedWeight(integers, scale, torch.tensor([[8]], dtype=torch.uint8), scheme)
    halves = [0x00, 0x38]
    assert encode(weight, BY_NAME["Q4_0"])[0].tolist() == [*halves, *(17 * i for i in range(16))]
    q8 = encode(weight, BY_NAME["Q8_0"])[0]
    assert q8[:2].tolist() == halves
    assert q8[2:].view(np.int8).tolist() == [i % 16 - 8 for i in range(32)]
    q5 = encode(weight, BY_NAME["Q5_0"])[0]  # 8 to 23: the high bit of the upper halves is set
    assert q5[:6].tolist() == [*halves, 0x00, 0xFF, 0x00, 0xFF]
    asymmetric = replace(weight, zero_points=torch.tensor([[2]], dtype=torch.uint8))
    q4_1 = encode(asymmetric, Q4_1)[0]
    assert q4_1[:4].view("<f2").tolist() == [0.5, -1.0]


@pytest.mark.parametrize("zero_point", range(16))
def test_q4_1_is_chosen_where_its_least_value_is_exact(zero_point: int) -> None:
    """A scale of 8 significant bits times a zero point: up to 8 it always fits into fp16's 11."""
    scheme = QuantScheme(bits=4, group_size=32, symmetric=False)
    scales = torch.arange(128, 256).float()[:, None] / 2048  # every significand of bf16
    weight = QuantizedWeight(
        torch.zeros(128, 32, dtype=torch.uint8),
        scales,
        torch.full((128, 1), zero_point, dtype=torch.uint8),
        scheme,
    )
    fits = zero_point in (*range(9), 10, 12, 14)
    assert may_fit_q4_1(scheme) and fits_q4_1(weight) == fits
    carrier = Q4_1 if fits else chosen(scheme, in_features=32)
    assert torch.equal(read_by_gguf(encode(weight, carrier), carrier), weight.dequantize())


def test_mxfp4_has_the_numbers_of_its_codes_and_exponents() -> None:
    scheme = TableScheme(grid="mxfp4")
    weight, carrier = made_table_layer(scheme, columns=K), chosen(scheme)
    assert carrier == MXFP4
    assert torch.equal(read_by_gguf(encode(weight, carrier), carrier), weight.dequantize())


def test_experts_of_different_schemes_share_the_type_that_holds_all() -> None:
    four, eight = QuantScheme(bits=4, group_size=32), QuantScheme(bits=8, group_size=64)
    carrier = chosen(four, eight)
    assert carrier.name == "Q8_0"
    weights: list[CompressedWeight] = [made_layer(each, columns=K) for each in (four, eight)]
    for weight in weights:
        assert torch.equal(read_by_gguf(encode(weight, carrier), carrier), weight.dequantize())


@pytest.mark.parametrize(
    ("scheme", "in_features", "message"),
    [
        (QuantScheme(bits=4, group_size=16), 256, "groups of 16"),
        (QuantScheme(bits=4, group_size=48), 96, "groups of 48"),
        (QuantScheme(bits=4, group_size=-1), 48, "48 input features"),
        (QuantScheme(bits=8, group_size=32, symmetric=False), 256, "int8 g32 asym"),
        (TableScheme(grid="fp8"), 256, "fp8"),
        (TableScheme(grid="nvfp4"), 256, "nvfp4"),
        (TableScheme(grid="nf4", group_size=64), 256, "nf4"),
    ],
)
def test_schemes_without_a_type_are_named(scheme: Scheme, in_features: int, message: str) -> None:
    reason = choose_carrier([scheme], in_features)
    assert isinstance(reason, str) and message in reason


def test_scales_that_fp16_does_not_hold_are_refused() -> None:
    weight = made_layer(QuantScheme(bits=4, group_size=32), columns=K)
    scales = weight.scales.clone()
    scales[7, 3] = 1.00390625  # 1 + 2**-8: nine significant bits are fine, but not so far below
    scales[9, 2] = 2.0**-26
    with pytest.raises(ValueError, match=r"1\.49012e-08"):
        encode(replace(weight, scales=scales), BY_NAME["Q4_0"])


@pytest.mark.parametrize("bits", range(2, 9))
def test_range_of_differences(bits: int) -> None:
    symmetric = QuantScheme(bits=bits, group_size=32)
    assert difference_range(symmetric) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    asymmetric = replace(symmetric, symmetric=False)
    assert difference_range(asymmetric) == (1 - 2**bits, 2**bits - 1)
