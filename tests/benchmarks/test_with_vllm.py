"""What stands in for vLLM's arithmetic, and vlpress's emulation of torch's activation rounding."""

from __future__ import annotations

import pytest
import torch
import with_vllm
import wna16
from torch import Tensor

from vlpress.quant.methods.affine import QuantizedWeight
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.runtime.linear import QuantLinear


def test_rounding_is_within_a_step_and_keeps_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-6, 4, (200, 1), generator=generator)
    shifts = torch.randn(200, 1, generator=generator) * 3  # tokens of one sign too
    x = (torch.randn(200, 16, generator=generator) + shifts) * 10.0**exponents
    x[:, 0] = 0
    rounded = with_vllm.round_asymmetric(x)
    steps = (x.amax(-1).clamp(min=0) - x.amin(-1).clamp(max=0)) / 255
    # Half a step, and as much again at the end of the range, since the zero point is rounded too.
    assert bool(((rounded - x).abs().amax(-1) <= steps * 1.01).all())
    assert not rounded[:, 0].any()


def test_rounding_of_known_values() -> None:
    x = torch.tensor([[0.0, 1.0, 255.0, 100.4], [-128.0, 127.0, 3.6, 0.0]])
    expected = torch.tensor([[0.0, 1.0, 255.0, 100.0], [-128.0, 127.0, 4.0, 0.0]])
    assert torch.allclose(with_vllm.round_asymmetric(x), expected)


def test_layer_with_asymmetric_inputs() -> None:
    integers = torch.arange(32, dtype=torch.uint8).reshape(2, 16) % 16
    scheme = QuantScheme(4, 8, activations="dynamic")
    zeros = torch.full((2, 2), 8, dtype=torch.uint8)
    weight = QuantizedWeight(integers, torch.ones(2, 2), zeros, scheme)
    layer = with_vllm.AsymmetricInputs(QuantLinear(weight, torch.tensor([1.0, -1.0])))
    x = torch.arange(16.0)[None] * 17  # 0..255: every value is a level
    expected = x @ (integers.float() - 8).t() + torch.tensor([1.0, -1.0])
    assert torch.allclose(layer(x), expected)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_stand_in_reads_the_layout_of_the_kernel(asymmetric: bool) -> None:
    k, n, groups = 8, 32, 2
    generator = torch.Generator().manual_seed(0)
    integers = torch.randint(0, 16, (k, n), generator=generator, dtype=torch.int32)
    zeros = torch.randint(0, 16, (groups, n), generator=generator, dtype=torch.int32)
    scales = torch.rand(groups, n, generator=generator)
    # Blocks of 16 columns, within them two words of eight columns for each row.
    packed = torch.stack([pack(integers[:, start : start + 16]).flatten() for start in (0, 16)])
    given = pack(zeros) if asymmetric else None
    weight = wna16.dequantize(packed, scales, given, k)
    zero = zeros if asymmetric else torch.full_like(zeros, 8)
    rows = torch.arange(k) // (k // groups)
    assert torch.equal(weight, (integers - zero[rows]) * scales[rows])


def pack(values: Tensor) -> Tensor:
    """Eight 4-bit columns in a word, lowest bits first."""
    words: Tensor = values.reshape(len(values), -1, 8).long() << torch.arange(0, 32, 4)
    return words.sum(-1).to(torch.int32)
