"""A quantized linear layer while its block is calibrated: the weight as the solver returned it."""

import torch
from torch import Tensor

from ..kernels import bf16_linear, reference
from ..methods.affine import QuantizedWeight
from ..recipe.scheme import QuantScheme
from .compressed_linear import CompressedLinear
from .linear import check_input_scale, storable_bias

ONE_PER_BYTE = 8
"""Bits for which the reference kernel's packed form is the unpacked one: one value per byte."""


class UnpackedLinear(CompressedLinear):
    """Linear layer over an unpacked `QuantizedWeight`; outputs are those of the reference kernel.

    A layer that was just solved is used twice: its block runs once more over all samples, and its
    weight is written to the checkpoint. Neither needs the packed form of `QuantLinear`.
    """

    integers: Tensor
    scales: Tensor
    zero_points: Tensor
    group_index: Tensor | None
    input_scale: Tensor | None
    dequantized: Tensor | None
    scheme: QuantScheme

    def __init__(
        self, weight: QuantizedWeight, bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Register the tensors of `weight`, without copies.

        Args:
            weight: unpacked.
            bias: `[out_features]` or None, see `storable_bias`.
            dtype: of the activations. A weight-only layer is dequantized to it here, once for all
                samples; None if the layer will not run.

        Raises:
            ValueError: see `check_input_scale` and `storable_bias`.
        """
        super().__init__(weight)
        check_input_scale(weight)
        weight_only = weight.scheme.activations == "none"
        for name, value in {
            "integers": weight.integers,
            "scales": weight.scales,
            "zero_points": weight.zero_points,
            "group_index": weight.group_index,
            "input_scale": weight.input_scale,
            "bias": None if bias is None else storable_bias(bias.detach()),
            "dequantized": weight.dequantize(dtype) if weight_only and dtype else None,
        }.items():
            self.register_buffer(name, value)

    def quantized(self) -> QuantizedWeight:
        """The weight, without copies."""
        return QuantizedWeight(
            self.integers,
            self.scales,
            self.zero_points,
            self.scheme,
            self.group_index,
            self.input_scale,
        )

    def multiply(self, x: Tensor) -> Tensor:
        """See `CompressedLinear.multiply`."""
        if self.scheme.activations == "none":
            assert self.dequantized is not None
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return bf16_linear.select_linear(x.device)(x, self.dequantized, bias)
        return reference.integer_linear(
            x,
            self.integers,
            self.scales,
            self.zero_points,
            ONE_PER_BYTE,
            self.bias,
            self.group_index,
            self.input_scale,
        )
