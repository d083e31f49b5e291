import pytest
import torch
from torch import nn

from vlpress.calib.capture import watch_inputs


def test_sees_inputs_and_leaves_no_hook() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    seen: list[torch.Tensor] = []
    x = torch.randn(5, 3)
    with watch_inputs({model[2]: seen.append}):
        expected = model(x)
        model(x)
    model(x)
    assert len(seen) == 2
    assert torch.equal(seen[0], torch.relu(model[0](x)))
    assert torch.equal(expected, model(x))
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_hooks_are_removed_after_an_error() -> None:
    layer = nn.Linear(3, 4)

    def fail(x: torch.Tensor) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), watch_inputs({layer: fail}):
        layer(torch.ones(3))
    assert not layer._forward_pre_hooks


def test_nested_watchers_are_independent() -> None:
    layer = nn.Linear(3, 4)
    outer: list[torch.Tensor] = []
    inner: list[torch.Tensor] = []
    with watch_inputs({layer: outer.append}):
        with watch_inputs({layer: inner.append}):
            layer(torch.ones(3))
        layer(torch.ones(3))
    assert (len(outer), len(inner)) == (2, 1)
