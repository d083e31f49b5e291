"""A model whose layers round their inputs and multiply them with the original weights.

Its divergence from the baseline is what rounded activations alone cost: a floor that no method for
the weights gets below, but by chance or by compensating errors.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.methods.grids.activation_rounding import rounded_activations
from vlpress.quant.runtime.table_linear import TableLinear


class RoundedInputLinear(nn.Module):
    """A float layer that rounds its input as a quantized one does."""

    def __init__(self, quantized: TableLinear, weight: Tensor) -> None:
        """`weight` is `[out_features, in_features]`, the original."""
        super().__init__()
        self.scheme, self.input_scale = quantized.scheme, quantized.input_scale
        self.weight, self.bias = weight.detach().float(), quantized.bias

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, in the dtype of `x`."""
        rounded = rounded_activations(x, self.scheme, self.input_scale)
        bias = None if self.bias is None else self.bias.float()
        return F.linear(rounded, self.weight, bias).to(x.dtype)


def restore_weights_(model: QwenVL, original: QwenVL) -> None:
    """Replace quantized layers that round their inputs by float ones that do too, in place.

    Args:
        model: quantized to tables of levels.
        original: the model that it was made from.
    """
    layers = [(n, layer) for n, layer in model.named_modules() if isinstance(layer, TableLinear)]
    for name, layer in layers:
        weight = original.get_parameter(f"{name}.weight")
        model.set_submodule(name, RoundedInputLinear(layer, weight))
