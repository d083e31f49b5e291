"""Quantized linear layers that gradients pass, in place of a model's own while it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...model.qwen_vl import QwenVL
from ...model.text import DecoderLayer
from ..compressed_weight import CompressedWeight
from ..methods.affine import QuantizedWeight, round_scales
from ..methods.grids.levels import level_values
from ..methods.grids.table_weight import TableWeight
from ..methods.low_rank import LowRank
from ..runtime.adapter import LowRankAdapter
from ..targets import compressed_linears, put_module
from .straight_through import round_inputs, round_straight

if TYPE_CHECKING:
    from .params.adapters import TrainedAdapter

DECODER, HEAD = "model.", "lm_head"
LEAST = 0.05
"""Smallest factor on a scale: it keeps its sign."""


class TrainedLinear(nn.Module):
    """A linear layer over a fixed compressed weight, whose scales or adapter may be trained.

    Args:
        weight: of any kind.
        bias: `[out_features]` or None.
        dtype: of the activations.
        adapter: low-rank part that is added, or None.
    """

    levels: Tensor | None
    scales: Tensor | None
    dequantized: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight: CompressedWeight,
        bias: Tensor | None,
        dtype: torch.dtype,
        adapter: LowRankAdapter | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.adapter = weight, adapter
        self.trained_adapter: TrainedAdapter | None = None
        """Takes the place of the adapter."""
        parts = _parts_of(weight)
        levels, scales, self._repeats = parts or (None, None, 1)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        kept = None if parts else weight.dequantize(dtype)
        self.register_buffer("dequantized", kept, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.change: nn.Parameter | None = None

    def train_scales(self) -> nn.Parameter:
        """Make the scales trainable; returns their relative change, zeros float32 `[R, G]`.

        Raises:
            ValueError: they are not stored as float numbers.
        """
        if self.scales is None:
            raise ValueError(
                f"its scales ({self.weight.scheme.label}) are not stored as float numbers in "
                "contiguous groups; allowed with params scales: integers, fp8, nf4, ternary, pot4"
            )
        self.change = nn.Parameter(torch.zeros_like(self.scales))
        return self.change

    def trained_scales(self) -> Tensor:
        """Return the scales as they are stored, with the gradient of those before rounding."""
        assert self.scales is not None
        if self.change is None:
            return self.scales
        scales = self.scales * (1 + self.change).clamp_min(LEAST)
        return round_straight(scales, round_scales(scales.detach()))

    def trained(self) -> CompressedWeight:
        """Return the weight with the scales as they are now."""
        if self.change is None or not bool(self.change.any()):
            return self.weight
        assert isinstance(self.weight, QuantizedWeight | TableWeight)
        return replace(self.weight, scales=self.trained_scales().detach())

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, in the dtype of `x`."""
        product, adapter = self._multiply(x), self.trained_adapter or self.adapter
        return product if adapter is None else product + adapter(x)

    def _multiply(self, x: Tensor) -> Tensor:
        x = round_inputs(x, self.weight)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.levels is None:
            assert self.dequantized is not None
            return F.linear(x, self.dequantized, bias)
        scales = self.trained_scales().repeat_interleave(self._repeats, dim=0)
        rows = scales[: len(self.levels)]
        product: Tensor = _ScaledProduct.apply(x, rows, self.levels)  # type: ignore[no-untyped-call]
        return product if bias is None else product + bias


@contextmanager
def differentiable(model: QwenVL) -> Iterator[dict[str, TrainedLinear]]:
    """Replace the quantized linear layers of decoder and head for the length of a `with` block.

    At its end each layer is the one that it was, or one of its trained weight. No parameter of the
    model itself requires a gradient inside.

    Args:
        model: not prepared for kernels, in the dtype to train in.

    Yields:
        The layers by name.

    Raises:
        ValueError: the model is prepared for kernels.
    """
    fused = [m for m in model.modules() if isinstance(m, DecoderLayer) and m.fused_layer]
    if fused:
        raise ValueError("the model is prepared for inference; load it without kernels to train it")
    before = {
        name: layer
        for name, layer in compressed_linears(model).items()
        if name.startswith(DECODER) or name == HEAD
    }
    cache, model.cache_type = model.cache_type, "model"
    trainable = [p for p in model.parameters() if p.requires_grad]
    layers = {
        name: TrainedLinear(layer.quantized(), layer.bias, model.dtype, layer.adapter)
        for name, layer in before.items()
    }
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        for name, linear in layers.items():
            put_module(model, name, linear)
        yield layers
    finally:
        for name, layer in before.items():
            trained, adapter = layers[name], layer.adapter
            weight = trained.trained()
            if weight is not trained.weight:
                layer = weight.inference_layer(layer.bias)
            if trained.trained_adapter is not None:
                adapter = LowRankAdapter(trained.trained_adapter.low_rank())
            layer.adapter = adapter
            put_module(model, name, layer)
        for parameter in trainable:
            parameter.requires_grad_(True)
        model.cache_type = cache


def changed_adapters(layers: Mapping[str, TrainedLinear]) -> dict[str, LowRank]:
    """Return the trained adapters, by name of the layer."""
    return {
        name: layer.trained_adapter.low_rank()
        for name, layer in layers.items()
        if layer.trained_adapter is not None
    }


def changed_weights(layers: Mapping[str, TrainedLinear]) -> dict[str, CompressedWeight]:
    """Return the trained weights that differ from the original ones, by name."""
    trained = {name: layer.trained() for name, layer in layers.items()}
    return {name: weight for name, weight in trained.items() if weight is not layers[name].weight}


def _parts_of(weight: CompressedWeight) -> tuple[Tensor, Tensor, int] | None:
    """Return levels `[N, K]`, stored scales `[R, G]` and rows per row of scales, if it has them."""
    if isinstance(weight, QuantizedWeight) and weight.group_index is None:
        rows, groups = weight.zero_points.shape
        levels = weight.integers.short().reshape(rows, groups, -1)
        centred = (levels - weight.zero_points.short()[..., None]).reshape(weight.integers.shape)
        return centred, weight.scales, 1
    if isinstance(weight, TableWeight) and weight.scheme.table.scale_form == "float":
        levels = level_values(weight.indices, weight.scheme.table)
        return levels, weight.scales, weight.scheme.scale_rows
    return None


class _ScaledProduct(torch.autograd.Function):
    """`x W'` with W = scales times levels, which is computed again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: Tensor, levels: Tensor) -> Tensor:
        """Compute `[..., K]` to `[..., N]` for scales `[N, G]` and levels `[N, K]`."""
        ctx.save_for_backward(x, scales, levels)
        return x @ _scaled(levels, scales).to(x.dtype).t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients of x and of the scales."""
        (gradient,) = gradients
        x, scales, levels = ctx.saved_tensors
        of_x = of_scales = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ _scaled(levels, scales).to(gradient.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = gradient.flatten(0, -2).t() @ x.flatten(0, -2)
            products = of_weight.float() * levels
            of_scales = products.reshape(*scales.shape, -1).sum(-1)
        return of_x, of_scales, None


def _scaled(levels: Tensor, scales: Tensor) -> Tensor:
    grouped = levels.float().reshape(*scales.shape, -1)
    return (grouped * scales[..., None]).reshape(levels.shape)
