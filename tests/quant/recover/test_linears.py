"""Layers that gradients pass give what the quantized ones give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vlpress.quant.recipe.steps import read_step
from vlpress.quant.recover.linears import TrainedLinear
from vlpress.quant.steps.step import Step

INT4 = {"bits": 4, "group_size": 32, "symmetric": False}
SCHEMES: list[dict[str, Any]] = [
    {"bits": 3, "group_size": 32},
    INT4,
    {"bits": 8, "group_size": -1, "activations": "dynamic"},
    {"grid": "fp8", "activations": "dynamic"},
    {"grid": "fp8", "group_size": 32, "scale_rows": 32},
    {"grid": "ternary"},
    {"grid": "mxfp4"},
]


def weight_and_input(scheme: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 128, generator=generator)
    step = read_step({"method": "rtn", **scheme}, "step")
    assert isinstance(step, Step)
    return step.solve(weight, None).weight, torch.randn(2, 5, 128, generator=generator)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_outputs_are_those_of_the_layer(scheme: dict[str, Any]) -> None:
    weight, x = weight_and_input(scheme)
    bias = torch.arange(64.0)
    expected = weight.calibration_layer(bias, torch.float32)(x)
    trained = TrainedLinear(weight, bias, torch.float32)
    torch.testing.assert_close(trained(x), expected, atol=1e-4, rtol=1e-4)
    assert trained.trained() is weight


def test_gradients_are_those_of_autograd() -> None:
    weight, x = weight_and_input(INT4)
    x = x.requires_grad_()
    layer = TrainedLinear(weight, None, torch.float32)
    change = layer.train_scales()
    wanted = torch.randn(2, 5, 64)
    got = torch.autograd.grad((layer(x) * wanted).sum(), (x, change))
    scales = (weight.scales * (1 + change)).repeat_interleave(32, 1)
    zeros = weight.zero_points.float().repeat_interleave(32, 1)
    plain = x @ ((weight.integers.float() - zeros) * scales).t()
    expected = torch.autograd.grad((plain * wanted).sum(), (x, change))
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)
