"""The module that takes a linear layer's place once its weight is quantized."""

from typing import Self

import torch
from torch import Tensor, nn

from .affine import QuantizedWeight
from .kernels import reference
from .scheme import QuantScheme


class QuantLinear(nn.Module):
    """A linear layer over a quantized weight.

    Buffers hold the kernel's prepacked form; `quantized` gives the unpacked one back, so a layer
    that sits in a model can be written to any format.
    """

    packed: Tensor
    scales: Tensor
    zero_points: Tensor
    group_index: Tensor | None
    input_scale: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None) -> None:
        """Prepack `weight`.

        Args:
            weight: unpacked.
            bias: ``[out_features]`` or None.

        Raises:
            ValueError: the scheme is static without an input scale, or has one and is not.
        """
        super().__init__()
        if (weight.input_scale is not None) != (weight.scheme.activations == "static"):
            found = "no input scale" if weight.input_scale is None else "an input scale"
            raise ValueError(
                f"{weight.scheme.label} comes with {found}; static activations need one and no "
                "others may have one"
            )
        self.scheme: QuantScheme = weight.scheme
        self.in_features = weight.in_features
        self.out_features = weight.out_features
        self.register_buffer("packed", reference.prepack(weight.integers, weight.scheme.bits))
        self.register_buffer("scales", weight.scales)
        self.register_buffer("zero_points", weight.zero_points)
        self.register_buffer("group_index", weight.group_index)
        self.register_buffer("input_scale", weight.input_scale)
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, weight: QuantizedWeight) -> Self:
        """Replace the weight of `linear`, keeping its bias (see `storable_bias`)."""
        bias = linear.bias
        return cls(weight, None if bias is None else storable_bias(bias.detach()))

    def quantized(self) -> QuantizedWeight:
        """The unpacked weight."""
        integers = reference.unprepack(self.packed, self.scheme.bits)
        return QuantizedWeight(
            integers,
            self.scales,
            self.zero_points,
            self.scheme,
            self.group_index,
            self.input_scale,
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``, in the dtype of `x`."""
        layer = (self.packed, self.scales, self.zero_points, self.scheme.bits, self.bias)
        if self.scheme.activations == "none":
            return reference.weight_only_linear(x, *layer, self.group_index)
        return reference.integer_linear(x, *layer, self.group_index, self.input_scale)

    def extra_repr(self) -> str:
        """Shape and scheme for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, {self.scheme.label}"


def storable_bias(bias: Tensor) -> Tensor:
    """Round a bias to what an fp16 tensor in a checkpoint holds, in its own dtype.

    Done when the layer is made rather than when it is written, so that the model in memory and
    the one read back are the same.

    Raises:
        ValueError: a value overflows fp16.
    """
    rounded = bias.to(torch.float16)
    if not bool(torch.isfinite(rounded).all()):
        raise ValueError(
            f"a bias of {float(bias.abs().max()):g} does not fit fp16 (at most 65504); "
            "keep this layer unquantized"
        )
    return rounded.to(bias.dtype)
