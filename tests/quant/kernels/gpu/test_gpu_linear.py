"""Layers on the Triton kernels: quantized inputs, views, reasons."""

from __future__ import annotations

import pytest
import torch
from gpu_weights import DEVICE, Weight, inputs, relative_error

pytest.importorskip("triton")

from vlpress.quant.kernels import reference
from vlpress.quant.kernels.gpu import linear
from vlpress.quant.kernels.gpu.linear import TritonLinear


def test_activations_in_float_and_int8() -> None:
    weight = Weight(40, 64, 32, 4, False)
    product, x = TritonLinear(weight.packed(), weight.bias), inputs(2, 64)
    expected = reference.weight_only_linear(x, *weight.reference)
    assert relative_error(product(x)[0], expected) < 1e-5
    expected = reference.integer_linear(x, *weight.reference)
    assert relative_error(product(x, 0.0)[0], expected) < 1e-5
    scale = torch.tensor(0.02, device=DEVICE)
    expected = reference.integer_linear(x, *weight.reference, None, scale)
    assert relative_error(product(x, 0.02)[0], expected) < 1e-5
    with pytest.raises(RuntimeError, match="no gradient"):
        product(x.requires_grad_())


def test_views_and_leading_dimensions() -> None:
    weight = Weight(33, 64, 32, 4, True)
    product, whole = TritonLinear(weight.packed(), None), inputs(6, 200)
    for x in (whole[:, 7:71], whole[::2, :64], whole[:, :64].reshape(2, 3, 64), whole[:0, :64]):
        expected = reference.weight_only_linear(x, *weight.reference)
        actual = product(x)[0]
        assert actual.shape == expected.shape
        assert not expected.numel() or relative_error(actual, expected) < 1e-5


def test_more_tokens_than_a_table_lists() -> None:
    weight = Weight(33, 128, 64, 4, True)
    x = inputs(70, 128)
    product = TritonLinear(weight.packed(), None)
    expected = reference.weight_only_linear(x, *weight.reference)
    assert relative_error(product(x)[0], expected) < 1e-5


def test_reasons_for_unsupported_weights() -> None:
    assert linear.why_not_shape(64, 128, 4) is None
    reason = linear.why_not_shape(64, 96, 6)
    assert reason == "groups of 16 inputs; the Triton kernels take multiples of 32"
    index = torch.zeros(128, dtype=torch.int32)
    assert linear.why_not_shape(64, 128, 4, index) == "its inputs are in the order of a group index"
    reason = linear.why_not_shape(2**20, 2**12, 1)
    assert reason is not None and str(2**32) in reason and str(2**31) in reason
