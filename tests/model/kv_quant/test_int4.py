"""Rotated int4 keys and values: the grid of vLLM's int4_per_token_head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlpress.model.kv_quant.int4 import round_int4


def butterfly(values: Tensor) -> Tensor:
    """Unnormalized Walsh-Hadamard transform of the last dimension, by definition recursive."""
    if values.shape[-1] == 1:
        return values
    half = values.shape[-1] // 2
    first, second = values[..., :half], values[..., half:]
    return torch.cat([butterfly(first + second), butterfly(first - second)], -1)


def reference(head: Tensor) -> Tensor:
    """One head, level by level, in the unnormalized space in which vLLM quantizes."""
    width = len(head)
    generator = torch.Generator().manual_seed(0x9E3779B9)
    signs = 2 * torch.bernoulli(torch.full((width,), 0.5), generator=generator) - 1
    rotated = butterfly(head.double() * signs)
    low, high = float(rotated.min()), float(rotated.max())
    scale = max((high - low) / 15, 1e-6)
    zero = min(max(round(-low / scale), 0), 15)
    levels = [min(max(round(float(v) / scale + zero), 0), 15) for v in rotated]
    back = torch.tensor([(level - zero) * scale for level in levels]).double()
    return butterfly(back) * signs / width


@pytest.mark.parametrize("width", [32, 64, 128])
def test_heads_equal_the_reference(width: int) -> None:
    heads = torch.randn(5, 3, width, generator=torch.Generator().manual_seed(width))
    rounded = round_int4(heads)
    for index in range(15):
        head, result = heads.view(15, width)[index], rounded.view(15, width)[index]
        torch.testing.assert_close(result.double(), reference(head), rtol=0, atol=1e-5)
    assert 0.05 < float((rounded - heads).norm() / heads.norm()) < 0.2


def test_the_rotation_spreads_an_outlier_channel() -> None:
    heads = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    heads[:, 7] += 100
    # Without the rotation a level would be 100 / 7 or more, and all other channels would be 0.
    error = (round_int4(heads) - heads)[:, torch.arange(64) != 7].abs().mean()
    assert float(error) < 2.5


def test_heads_that_are_zero_or_not_finite() -> None:
    heads = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(2))
    heads[0], heads[1, 1, 5] = 0, torch.inf
    rounded = round_int4(heads)
    assert bool((rounded[0].abs() < 1e-5).all())
    assert not bool(rounded[1, 1].isfinite().any()) and bool(rounded[1, 0].isfinite().all())


def test_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"head_dim 80.*int8 or fp8"):
        round_int4(torch.ones(1, 80))
