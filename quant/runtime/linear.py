"""The module that takes a linear layer's place once its weight is quantized."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..kernels import bf16_linear, cpu, cpu_layout, gpu, library, op, reference
from ..methods.affine import QuantizedWeight
from ..recipe.scheme import QuantScheme


class QuantLinear(nn.Module):
    """A linear layer over a quantized weight.

    Buffers hold the form of the reference kernel. `prepare` replaces them by the form of a faster
    one; `quantized` gives the unpacked weight back from either, so a layer that sits in a model can
    be written to any format, and a state dict is the same in both.
    """

    packed: Tensor | None
    scales: Tensor | None
    zero_points: Tensor | None
    group_index: Tensor | None
    input_scale: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None) -> None:
        """Prepack `weight` for the reference kernel.

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
        self.tiles: cpu_layout.TiledWeight | None = None
        self.product: cpu.Product | gpu.Product | None = None
        self.number = -1  # of the product, for compilers
        self.fused: Fused | None = None
        self.held: Tensor | None = None  # the dequantized weight, see `hold`
        self.rounds_inputs = False  # to int8 although the scheme does not: only if asked for
        for name, value in _reference_form(weight).items():
            self.register_buffer(name, value)
        self.register_buffer("input_scale", weight.input_scale)
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, weight: QuantizedWeight) -> Self:
        """Replace the weight of `linear`, keeping its bias (see `storable_bias`)."""
        bias = linear.bias
        return cls(weight, None if bias is None else storable_bias(bias.detach()))

    @property
    def activations(self) -> float | None:
        """What `cpu.Product` calls `input_scale`: None in floats, 0 per token, or the scale."""
        if self.scheme.activations == "none":
            return 0.0 if self.rounds_inputs else None
        return 0.0 if self.input_scale is None else float(self.input_scale)

    def quantized(self) -> QuantizedWeight:
        """The unpacked weight."""
        group_index = self.group_index
        if self.tiles is not None:
            integers, scales, zero_points = cpu_layout.restore(self.tiles)
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
        """Name of what computes this layer."""
        return "reference" if self.product is None else self.product.name

    @property
    def on_cpu(self) -> bool:
        """Whether the weight lies in the CPU's memory."""
        return self.packed is None or self.packed.device.type == "cpu"

    def why_not(self) -> str | None:
        """Why neither the CPU's nor the GPU's kernels take this layer; None if they do."""
        if self.packed is None or self.scales is None:
            return None
        groups = self.scales.shape[1]
        if self.packed.device.type == "cuda":
            return gpu.why_not(self.in_features, groups, self.group_index)
        if self.packed.device.type == "cpu":
            return cpu_layout.why_not(self.in_features, self.scheme.bits, groups, self.group_index)
        return f"it lies on {self.packed.device.type}"

    def cache_dequantized(self, dtype: torch.dtype) -> None:
        """Keep the dequantized weight of a weight-only layer for inputs of a type.

        While a block is calibrated, every sample passes it several times; results are those of the
        reference kernel, which would dequantize each time.
        """
        if self.activations is None and self.packed is not None:
            assert self.scales is not None and self.zero_points is not None
            form = (self.packed, self.scales, self.zero_points, self.scheme.bits)
            self.held = reference.dequantize(*form, dtype, self.group_index)

    def drop_dequantized(self) -> None:
        """Undo `hold`."""
        self.held = None

    def prepare(self, kernels: library.Kernels) -> None:
        """Lay the weight out for CPU kernels; only that form is kept."""
        weight = self.quantized()
        self.tiles = cpu_layout.prepack(
            weight.integers,
            weight.scales,
            weight.zero_points,
            weight.scheme.bits,
            weight.group_index,
        )
        self.packed = self.scales = self.zero_points = None
        self.product = cpu.Product([self.tiles], [self.bias], kernels)
        self.number = op.register(self.product)

    def use_triton(self) -> None:
        """Compute with the Triton kernels, which read the reference's form."""
        assert self.packed is not None
        assert self.scales is not None and self.zero_points is not None
        grid = self.scales, self.zero_points, self.scheme.bits, self.bias
        self.product = gpu.Product(self.packed, *grid)

    def restore(self) -> None:
        """Undo `prepare` and `use_triton`."""
        self.product = self.fused = None
        if self.tiles is None:
            return
        form = _reference_form(self.quantized())
        self.tiles = None
        for name, value in form.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``, in the dtype of `x`."""
        if self.product is not None:
            return _run(self.product, self.number, x, self.activations)[0]
        if self.held is not None and self.held.dtype == x.dtype:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return bf16_linear.product_on(x.device)(x, self.held, bias)
        assert self.packed is not None
        assert self.scales is not None and self.zero_points is not None
        layer = (self.packed, self.scales, self.zero_points, self.scheme.bits, self.bias)
        if self.activations is None:
            return reference.weight_only_linear(x, *layer, self.group_index)
        return reference.integer_linear(x, *layer, self.group_index, self.input_scale)

    def extra_repr(self) -> str:
        """Shape and scheme for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, {self.scheme.label}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Tiles are of the CPU; another type of the floats around them leaves them as they are.
        on_cpu = self.tiles is not None and fn(torch.empty(0)).device.type == "cpu"
        on_gpu = self.product is not None and self.tiles is None
        self.drop_dequantized()
        if self.product is not None and not on_cpu:
            self.restore()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if on_gpu and self.packed is not None and self.packed.is_cuda:
            self.use_triton()  # of the buffers as they are now
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.tiles is not None:
            for name, value in _reference_form(self.quantized()).items():
                if value is not None:
                    destination[prefix + name] = value

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.restore()
        super()._load_from_state_dict(*args, **kwargs)


class FloatLinear(nn.Linear):
    """A layer in float with a product of its own; shares the parameters of the one before."""

    def __init__(self, linear: nn.Linear, product: bf16_linear.Product) -> None:
        """Take the place of `linear`."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``, in the dtype of `x`."""
        return self.product(x, self.weight, self.bias)


class Fused:
    """Layers that multiply the same input in one call."""

    def __init__(self, layers: tuple[QuantLinear, ...], kernels: library.Kernels) -> None:
        """Join prepared layers, see `can_fuse`."""
        self.layers = layers
        weights = [layer.tiles for layer in layers if layer.tiles is not None]
        self.product = cpu.Product(weights, [layer.bias for layer in layers], kernels)
        self.number = op.register(self.product)

    def __call__(self, x: Tensor) -> list[Tensor]:
        """What the layers give for `x`, one by one."""
        return _run(self.product, self.number, x, self.layers[0].activations)


def _run(
    product: cpu.Product | gpu.Product, number: int, x: Tensor, input_scale: float | None
) -> list[Tensor]:
    """Call a product, or leave it to a compiler that is looking on."""
    if torch.compiler.is_compiling() and isinstance(product, cpu.Product):
        found: list[Tensor] = op.products(x, number, product.widths, input_scale)
        return found
    return product(x, input_scale)


def can_fuse(layers: tuple[QuantLinear, ...]) -> bool:
    """Whether layers are prepared and share their grid, their input's scale and its order."""
    weights = [layer.tiles for layer in layers if layer.tiles is not None]
    if len(weights) < len(layers) or len({layer.activations for layer in layers}) > 1:
        return False
    if len({(t.in_features, t.group_size, t.bits, t.order is None) for t in weights}) > 1:
        return False
    first = weights[0].order
    return first is None or all(
        t.order is not None and torch.equal(t.order, first) for t in weights
    )


def _reference_form(weight: QuantizedWeight) -> dict[str, Tensor | None]:
    """Buffers by name."""
    return {
        "packed": reference.prepack(weight.integers, weight.scheme.bits),
        "scales": weight.scales,
        "zero_points": weight.zero_points,
        "group_index": weight.group_index,
    }


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
