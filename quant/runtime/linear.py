"""Linear layers at inference: over a quantized weight, and over a float weight."""

import torch
from torch import Tensor, nn

from ..kernels import bf16_linear, cpu_layout, library, reference
from ..kernels.gpu import linear as gpu
from ..kernels.gpu import packing
from ..methods.affine import QuantizedWeight
from ..recipe.scheme import QuantScheme
from .tiled_linear import TiledLinear, run_product, unpack_tiles


class QuantLinear(TiledLinear):
    """A linear layer over integers."""

    tiled_buffers = ("packed", "scales", "zero_points")
    packed: Tensor | None
    scales: Tensor | None
    zero_points: Tensor | None
    group_index: Tensor | None
    input_scale: Tensor | None
    scheme: QuantScheme

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None) -> None:
        """Pack `weight` for the reference kernel.

        Args:
            weight: unpacked.
            bias: `[out_features]` or None.

        Raises:
            ValueError: see `check_input_scale`.
        """
        super().__init__(weight)
        check_input_scale(weight)
        self.rounds_inputs = False  # int8 inputs for a weight-only scheme, see `round_inputs_`
        for name, value in _reference_form(weight).items():
            self.register_buffer(name, value)
        self.register_buffer("group_index", weight.group_index)
        self.register_buffer("input_scale", weight.input_scale)
        self.register_buffer("bias", bias)

    @property
    def int8_scale(self) -> float | None:
        """The `input_scale` of `cpu.CpuLinear`: None for float inputs, 0 for a scale per token."""
        if self.scheme.activations == "none":
            return 0.0 if self.rounds_inputs else None
        return 0.0 if self.input_scale is None else float(self.input_scale)

    def quantized(self) -> QuantizedWeight:
        """Unpack the weight."""
        group_index = self.group_index
        if self.tiles is not None:
            integers, scales, zero_points = unpack_tiles(self.tiles)
        else:
            assert self.packed is not None
            assert self.scales is not None and self.zero_points is not None
            integers = reference.unprepack(self.packed, self.scheme.bits)
            scales, zero_points = self.scales, self.zero_points
        return QuantizedWeight(
            integers, scales, zero_points, self.scheme, group_index, self.input_scale
        )

    @property
    def kernel(self) -> str:
        """Name of the kernel that computes this layer."""
        return "reference" if self.product is None else self.product.name

    def why_not(self) -> str | None:
        """Explain why no compiled kernel can compute this layer; None if one can."""
        if self.packed is None or self.scales is None:
            return None
        assert self.zero_points is not None
        bits, groups = self.scheme.bits, self.scales.shape[1]
        if self.packed.device.type == "cuda":
            grid = (self.scales, self.zero_points)
            return gpu.why_not(*grid, self.in_features, self.group_index)
        if self.packed.device.type == "cpu":
            return cpu_layout.why_not(self.in_features, bits, groups, self.group_index)
        return f"it is on {self.packed.device.type}"

    def make_tiles(self) -> cpu_layout.TiledWeight:
        """See `TiledLinear.make_tiles`."""
        weight = self.quantized()
        return cpu_layout.prepack(
            weight.integers,
            weight.scales,
            weight.zero_points,
            weight.scheme.bits,
            weight.group_index,
        )

    def pack_for_gpu(self) -> packing.PackedWeight:
        """See `TiledLinear.pack_for_gpu`."""
        weight = self.quantized()
        grid = (weight.scales, weight.zero_points, weight.scheme.bits)
        return packing.prepack(weight.integers, *grid)

    def reference_form(self) -> dict[str, Tensor | None]:
        """See `TiledLinear.reference_form`."""
        return _reference_form(self.quantized())

    def select_kernel(self, kernels: library.Kernels | None) -> None:
        """See `CompressedLinear.select_kernel`."""
        self.prepare(kernels)

    def multiply(self, x: Tensor) -> Tensor:
        """See `CompressedLinear.multiply`."""
        if self.product is not None:
            return run_product(self.product, self.number, x, self.int8_scale)[0]
        assert self.packed is not None
        assert self.scales is not None and self.zero_points is not None
        layer = (self.packed, self.scales, self.zero_points, self.scheme.bits, self.bias)
        if self.int8_scale is None:
            return reference.weight_only_linear(x, *layer, self.group_index)
        return reference.integer_linear(x, *layer, self.group_index, self.input_scale)


class FloatLinear(nn.Linear):
    """Float linear layer computed by a compiled kernel."""

    def __init__(self, linear: nn.Linear, product: bf16_linear.Bf16Linear) -> None:
        """Share the parameters of `linear`.

        Args:
            linear: the layer to replace.
            product: the kernel.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, in the dtype of `x`."""
        return self.product(x, self.weight, self.bias)


def _reference_form(weight: QuantizedWeight) -> dict[str, Tensor | None]:
    """Build the buffers that tiles replace, in the layout of the reference kernel."""
    return {
        "packed": reference.prepack(weight.integers, weight.scheme.bits),
        "scales": weight.scales,
        "zero_points": weight.zero_points,
    }


def storable_bias(bias: Tensor) -> Tensor:
    """Round a bias to fp16 values, in its own dtype.

    Checkpoints store biases in fp16. Rounding them when the layer is created, not when it is
    written, makes the model in memory identical to the one that is loaded again.

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


def check_input_scale(weight: QuantizedWeight) -> None:
    """Require an input scale with static activations, and none otherwise.

    Raises:
        ValueError: the scale is missing, or there is one without static activations.
    """
    if (weight.input_scale is not None) != (weight.scheme.activations == "static"):
        actual = "no input scale" if weight.input_scale is None else "an input scale"
        raise ValueError(
            f"{weight.scheme.label} comes with {actual}; static activations need one and no "
            "others may have one"
        )
