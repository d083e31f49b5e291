"""Layers over a compressed weight of any kind."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compressed_weight import CompressedWeight
from ..kernels import library
from ..recipe.scheme import Scheme
from .adapter import LowRankAdapter, added


class CompressedLayer(nn.Module, ABC):
    """A linear layer or a token embedding whose weight is compressed.

    The tensors are buffers, so that releasing a block frees them.
    """

    bias: Tensor | None

    def __init__(self, weight: CompressedWeight) -> None:
        """Copy scheme and sizes; subclasses register the tensors and `bias`."""
        super().__init__()
        self.scheme: Scheme = weight.scheme
        self.in_features, self.out_features = weight.in_features, weight.out_features

    @abstractmethod
    def quantized(self) -> CompressedWeight:
        """Return the weight, from which every format can be written."""

    @abstractmethod
    def for_inference(self) -> CompressedLayer:
        """Return the layer in its form for inference."""

    def extra_repr(self) -> str:
        """Return shape and scheme for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, {self.scheme.label}"


class CompressedLinear(CompressedLayer):
    """A linear layer whose weight is compressed, with or without a low-rank adapter."""

    adapter: LowRankAdapter | None

    def __init__(self, weight: CompressedWeight) -> None:
        """Start without an adapter; see `CompressedLayer`."""
        super().__init__(weight)
        self.register_module("adapter", None)

    def for_inference(self) -> CompressedLayer:
        """See `CompressedLayer.for_inference`."""
        layer = self.quantized().inference_layer(self.bias)
        layer.adapter = self.adapter
        return layer

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """Compute `forward` without the adapter."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, in the dtype of `x`."""
        return added(self.adapter, x, self.multiply(x))

    @property
    def kernel(self) -> str:
        """Name of the kernel that computes this layer."""
        return "reference"

    @property
    def on_cpu(self) -> bool:
        """Whether the weight is in CPU memory."""
        return all(buffer.device.type == "cpu" for buffer in self.buffers())

    def why_not(self) -> str | None:
        """Explain why no compiled kernel can compute this layer; None if one can."""
        return f"no kernel computes {self.scheme.kind} weights"

    def select_kernel(self, kernels: library.Kernels | None) -> None:
        """Compute with the fastest kernel; called if `why_not` is None.

        Args:
            kernels: compiled kernels for the CPU; None on another device.
        """


class DequantizedLinear(CompressedLinear):
    """The reference for kinds without a layer of their own: dequantize, then multiply."""

    dequantized: Tensor | None

    def __init__(
        self,
        weight: CompressedWeight,
        bias: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Register the tensors of `weight`, without copies.

        Args:
            weight: of any kind, for float activations.
            bias: `[out_features]` or None.
            dtype: keep the dequantized weight in this dtype, for a layer that will run often; None
                dequantizes in each call.

        Raises:
            ValueError: the scheme quantizes activations.
        """
        super().__init__(weight)
        if weight.scheme.activations != "none":
            raise ValueError(
                f"{weight.scheme.label}: {weight.scheme.kind} weights have float activations only"
            )
        self._names = tuple(weight.tensors())
        for name, tensor in weight.tensors().items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", bias)
        self.register_buffer(
            "dequantized", weight.dequantize(dtype) if dtype else None, persistent=False
        )

    def quantized(self) -> CompressedWeight:
        """See `CompressedLinear.quantized`; without copies."""
        return self.scheme.weight({name: getattr(self, name) for name in self._names})

    def multiply(self, x: Tensor) -> Tensor:
        """See `CompressedLinear.multiply`."""
        weight = self.dequantized
        if weight is None:
            weight = self.quantized().dequantize(x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))
