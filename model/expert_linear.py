"""Linear layers of experts, whose weights are slices of one tensor of all experts.

A mixture-of-experts block keeps the weights of all experts in one tensor, as its checkpoint does.
Each expert's layer is a module of its own over a slice of that tensor, so that calibration can
observe its input, and quantization can replace it, like any other linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch.nn.functional as F
from torch import Tensor, nn

from .family_tables.entries import WeightSlice

_ROUTED: ContextVar[Tensor | None] = ContextVar("routed tokens", default=None)
_ALL_TOKENS: ContextVar[bool] = ContextVar("all tokens to all experts", default=False)


class ExpertLinear(nn.Module):
    """One expert's linear layer without a bias; its weight is a view of the owner's parameter."""

    bias = None

    def __init__(self, owner: nn.Module, weight: WeightSlice) -> None:
        """Refer to a slice.

        Args:
            owner: module with the tensor of all experts as a parameter.
            weight: the slice; the last component of `tensor` is the parameter's name.
        """
        super().__init__()
        self._owner = (owner,)  # in a tuple: it is not a submodule
        self.slice = weight
        self.parameter = weight.tensor.rpartition(".")[2]

    @property
    def owner(self) -> nn.Module:
        """The module with the tensor of all experts."""
        return self._owner[0]

    @property
    def weight(self) -> Tensor:
        """The weight, `[out_features, in_features]`."""
        return self.slice.view(getattr(self.owner, self.parameter))

    def forward(self, x: Tensor) -> Tensor:
        """`[tokens, in_features]` to `[tokens, out_features]`."""
        return F.linear(x, self.weight)

    def release(self) -> None:
        """Drop the owner's parameter if no layer refers to it any more."""
        owner = self.owner
        layers = (module for module in owner.modules() if isinstance(module, ExpertLinear))
        if all(layer.parameter != self.parameter for layer in layers):
            setattr(owner, self.parameter, None)


def expert_layers(module: nn.Module, prefix: str) -> dict[str, dict[str, ExpertLinear]]:
    """List the layers whose weights are slices of a parameter inside a module.

    Args:
        module: contains the owners of the parameters.
        prefix: path of the module; empty for a whole model.

    Returns:
        By full name of the parameter, the layers by full name.
    """
    paths = {id(each): path for path, each in module.named_modules(prefix=prefix)}
    layers: dict[str, dict[str, ExpertLinear]] = {}
    for path, each in module.named_modules(prefix=prefix):
        if isinstance(each, ExpertLinear):
            tensor = f"{paths[id(each.owner)]}.{each.parameter}"
            layers.setdefault(tensor, {})[path] = each
    return layers


@contextmanager
def routed(tokens: Tensor) -> Iterator[None]:
    """State which tokens of the block's input the layers inside the `with` block compute.

    Args:
        tokens: int64 `[n]`, numbers of the tokens in the flattened input.
    """
    token = _ROUTED.set(tokens)
    try:
        yield
    finally:
        _ROUTED.reset(token)


def routed_tokens() -> Tensor | None:
    """Return the tokens that the running layer computes; None = all of the block's input."""
    return _ROUTED.get()


@contextmanager
def all_tokens_to_experts() -> Iterator[None]:
    """Let all experts compute all tokens inside the `with` block, before the routed ones.

    Only observers of their inputs see these results: outputs of blocks are those of the routing.
    """
    token = _ALL_TOKENS.set(True)
    try:
        yield
    finally:
        _ALL_TOKENS.reset(token)


def takes_all_tokens() -> bool:
    """Return whether the code runs inside `all_tokens_to_experts`."""
    return _ALL_TOKENS.get()
