"""Fused quantized decoder layer for the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...model.cache import KVCache
from ...model.mlp import MLP
from ...model.text import Attention, DecoderLayer, RMSNorm
from ..kernels.attention import Heads, decode_attention, has_prefill_attention, prefill_attention
from ..kernels.cpu import CpuLinear
from ..kernels.decoder_layer import CpuDecoderLayer, LayerSizes
from .tiled_linear import FusedLinears, TiledLinear

BF16 = torch.bfloat16


class FusedDecoderLayer:
    """Drop-in computation of a `DecoderLayer`, for inputs that `supports` accepts.

    Norms, rotary embedding, activation function and residual additions run inside the matrix
    products' calls, without torch operations in between: at one token per step their overhead is
    larger than the arithmetic.
    """

    def __init__(self, layer: DecoderLayer, attention: Attention, mlp: MLP) -> None:
        """Collect the tensors of a layer; see `of` for the layers that can be fused."""
        self._attention = attention
        self._norms = _norms(layer, attention)
        self._linears = _linears(attention, mlp)
        self.products = _products(self._linears)
        weights = tuple(norm.weight.detach() for norm in self._norms)
        products = [product for product in self.products if product is not None]
        sizes = LayerSizes(
            hidden=len(weights[0]),
            inner=mlp.gate_proj.out_features,
            attention=Heads(
                heads=attention.q_proj.out_features // attention.head_dim,
                kv_heads=attention.k_proj.out_features // attention.head_dim,
                head_dim=attention.head_dim,
            ),
        )
        self._addresses = self._norm_addresses()
        eps = self._norms[0].eps
        self._heads, self._kernels = sizes.attention, products[0].kernels
        self.block = CpuDecoderLayer(sizes, weights, eps, products, self._kernels)

    @classmethod
    def of(cls, layer: DecoderLayer) -> FusedDecoderLayer | None:
        """Fuse a bf16 layer whose linears are all prepared for the CPU kernels; else return None.

        q, k and v, and gate and up, must be fused already. A layer with experts, linear attention,
        gated queries, zero-centred norms or adapters is not fused.
        """
        attention = layer.self_attn
        if not isinstance(layer.mlp, MLP) or attention is None or attention.gated:
            return None
        norms = _norms(layer, attention)
        if any(norm.offset for norm in norms):
            return None
        weights = [norm.weight for norm in norms]
        if any(weight.dtype != BF16 or weight.device.type != "cpu" for weight in weights):
            return None
        if len({norm.eps for norm in norms}) > 1:  # the kernel has one for all
            return None
        products = _products(_linears(attention, layer.mlp))
        if any(product is None or product.order is not None for product in products):
            return None
        return cls(layer, attention, layer.mlp)

    def supports(self, hidden: Tensor) -> bool:
        """Whether an input has the right dtype and device, and the layer has not changed since."""
        return (
            not torch.compiler.is_compiling()  # it traces linears only, see kernels/op.py
            and hidden.dtype == BF16
            and hidden.device.type == "cpu"
            and not (hidden.requires_grad and torch.is_grad_enabled())
            and _products(self._linears) == self.products
            and self._norm_addresses() == self._addresses
        )

    def __call__(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """Compute `DecoderLayer.forward`."""
        scales = [part.int8_scale for part in self._linears if isinstance(part, TiledLinear)]
        hidden, index = hidden.contiguous(), self._attention.index
        qkv = self.block.pre_attention(hidden, cos, sin, scales)
        if cache is not None and hidden.shape[1] == 1:
            qkv = (qkv[0], *cache.simulate(index, *qkv[1:]))
            stored = cache.buffers(index, 1, qkv[1])
            attended = decode_attention(self._heads, qkv, stored, cache.length, mask, self._kernels)
        else:
            attended = self._attend(qkv, mask, cache)
        return self.block.post_attention(hidden, attended, scales)

    def _attend(
        self, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """Compute attention for several tokens, or without a cache."""
        q, k, v = (part.transpose(1, 2) for part in qkv)
        if cache is not None:
            k, v = cache.update(self._attention.index, k, v)
        if has_prefill_attention(self._heads, self._kernels):
            return prefill_attention(self._heads, qkv[0], k, v, mask, self._kernels)
        return self._attention.attend(q, k, v, mask).transpose(1, 2).flatten(2)

    def _norm_addresses(self) -> tuple[int, ...]:
        # The C struct holds these pointers; a model that moves or casts has others.
        return tuple(norm.weight.data_ptr() for norm in self._norms)


def _norms(layer: DecoderLayer, attention: Attention) -> tuple[RMSNorm, ...]:
    """Return the norms of a layer; those of q and k, if there are any, come last."""
    of_heads = [norm for norm in (attention.q_norm, attention.k_norm) if norm is not None]
    return layer.input_layernorm, layer.post_attention_layernorm, *of_heads


def _linears(attention: Attention, mlp: MLP) -> tuple[nn.Module, ...]:
    """Return the linear layer that holds each product: the first one of fused layers."""
    return attention.q_proj, attention.o_proj, mlp.gate_proj, mlp.down_proj


def _products(linears: Sequence[nn.Module]) -> list[CpuLinear | None]:
    """Return the current products: q with k and v, output, gate with up, and down."""
    products: list[CpuLinear | None] = []
    for linear, is_fused in zip(linears, (True, False, True, False), strict=True):
        owner = linear.fused if is_fused and isinstance(linear, TiledLinear) else linear
        product = getattr(owner, "product", None)
        takes_hidden = isinstance(linear, TiledLinear) and linear.multiplies_inputs
        is_whole = takes_hidden and not _has_adapter(owner)
        products.append(product if is_whole and isinstance(product, CpuLinear) else None)
    return products


def _has_adapter(owner: nn.Module | FusedLinears | None) -> bool:
    """Whether a layer, or one of several fused ones, adds an adapter to its product."""
    layers = owner.layers if isinstance(owner, FusedLinears) else (owner,)
    return any(getattr(layer, "adapter", None) is not None for layer in layers)
