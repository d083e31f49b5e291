from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from format_files import made_layer
from hypothesis import given
from hypothesis import strategies as st
from onnx_exports import unpack_bytes

from vlpress.quant.deployment.onnx.blocks import (
    BlockWeight,
    choose_block_size,
    encode_blocks,
    pack_bytes,
)
from vlpress.quant.recipe.scheme import QuantScheme


def parts(encoded: BlockWeight, columns: int) -> tuple[npt.NDArray[np.uint8], ...]:
    """Integers [N, K] and zero points [N, B] by the definition of MatMulNBits."""
    rows, blocks = encoded.scales.shape
    codes = unpack_bytes(encoded.codes.numpy(), encoded.bits)
    zero_points = unpack_bytes(encoded.zero_points.numpy(), encoded.bits)
    return codes.reshape(rows, -1)[:, :columns], zero_points[:, :blocks]


@given(bits=st.sampled_from([2, 4, 8]), rows=st.integers(1, 3), seed=st.integers(0, 99))
def test_packed_bytes_hold_the_values_low_bits_first(bits: int, rows: int, seed: int) -> None:
    count = 1 + seed % 37
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(2**bits, (rows, count), generator=generator).to(torch.uint8)
    packed = pack_bytes(values, bits)
    assert packed.shape == (rows, -(-count * bits // 8))
    actual = unpack_bytes(packed.numpy(), bits)
    assert np.array_equal(actual[:, :count], values.numpy()) and not actual[:, count:].any()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("group", "columns", "block"), [(32, 96, 32), (48, 96, 16), (-1, 90, 128)])
def test_the_blocks_dequantize_to_the_same_weight(
    bits: int, symmetric: bool, group: int, columns: int, block: int
) -> None:
    scheme = QuantScheme(bits=bits, group_size=group, symmetric=symmetric)
    weight = made_layer(scheme, rows=6, columns=columns)
    encoded = encode_blocks(weight)
    assert (encoded.block_size, encoded.codes.shape[1]) == (block, -(-columns // block))
    codes, zero_points = parts(encoded, columns)
    assert np.array_equal(codes, weight.integers.numpy())
    of_column = np.arange(columns) // block
    centred = codes.astype(np.float32) - zero_points.astype(np.float32)[:, of_column]
    actual = centred * encoded.scales.numpy()[:, of_column]
    assert np.array_equal(actual, weight.dequantize().numpy())
    assert encoded.has_midpoints == (symmetric and encoded.bits == bits)


@pytest.mark.parametrize(
    ("group", "features", "block"),
    [
        (128, 256, 128),
        (512, 1024, 256),
        (96, 192, 32),
        (16, 64, 16),
        (-1, 3420, 128),
        (64, 64, 128),
    ],
)
def test_a_block_lies_within_a_group(group: int, features: int, block: int) -> None:
    assert choose_block_size(QuantScheme(bits=4, group_size=group), features) == block


def test_groups_without_a_block_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"groups of 24 .*16"):
        choose_block_size(QuantScheme(bits=4, group_size=24), 96)


def test_reordered_groups_are_refused() -> None:
    weight = made_layer(QuantScheme(bits=4, group_size=32))
    order = torch.arange(96, dtype=torch.int32) % 3
    with pytest.raises(ValueError, match="act-order"):
        encode_blocks(replace(weight, group_index=order))
