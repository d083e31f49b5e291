"""Linear layers whose tensors the layouts of the compiled kernels can replace."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..compressed_weight import CompressedWeight
from ..kernels import cpu, cpu_layout, library, op
from ..kernels.gpu import packing
from ..kernels.gpu.linear import TritonLinear
from ..kernels.gpu.packing import PackedWeight
from .adapter import added
from .compressed_linear import CompressedLinear


class TiledLinear(CompressedLinear):
    """A layer with buffers in the layout of the reference kernel, or with tiles instead.

    `prepare` replaces the buffers by tiles, `restore` is the inverse; `quantized` gives the
    unpacked weight from either, so the layers of a model can be written to any format, and the
    state dict is the same in both layouts.
    """

    tiled_buffers: ClassVar[tuple[str, ...]]
    """Names of the buffers that tiles replace."""
    exact_buffers: ClassVar[tuple[str, ...]] = ()
    """Names of buffers whose dtype never changes."""

    def __init__(self, weight: CompressedWeight) -> None:
        """Begin without tiles; subclasses register the buffers."""
        super().__init__(weight)
        self.tiles: cpu_layout.TiledWeight | PackedWeight | None = None
        self.product: cpu.CpuLinear | TritonLinear | None = None
        self.number = -1  # under which the custom op finds the product, see `op.register`
        self.fused: FusedLinears | None = None

    @property
    def int8_scale(self) -> float | None:
        """The `input_scale` of `cpu.CpuLinear`: None for float inputs, 0 for a scale per token."""
        return None

    @property
    def multiplies_inputs(self) -> bool:
        """Whether `product` takes the inputs of the layer, not inputs that were rounded before."""
        return True

    @abstractmethod
    def make_tiles(self) -> cpu_layout.TiledWeight:
        """Pack the weight for the CPU kernels; called if `why_not` is None."""

    @abstractmethod
    def pack_for_gpu(self) -> PackedWeight:
        """Pack the weight for the Triton kernels; called if `why_not` is None."""

    @abstractmethod
    def reference_form(self) -> dict[str, Tensor | None]:
        """Build `tiled_buffers`, by name."""

    @property
    def on_cpu(self) -> bool:
        """Whether the weight is in CPU memory."""
        if isinstance(self.tiles, PackedWeight):
            return self.tiles.words.device.type == "cpu"
        return super().on_cpu

    def prepare(self, kernels: library.Kernels | None) -> None:
        """Convert the weight to the layout of compiled kernels; the buffers are freed.

        Args:
            kernels: for the CPU; None for the Triton kernels.
        """
        if kernels is None:
            self.tiles = self.pack_for_gpu()
            self.product = TritonLinear(self.tiles, self.bias)
        else:
            self.tiles = self.make_tiles()
            self.product = cpu.CpuLinear([self.tiles], [self.bias], kernels)
            self.number = op.register(self.product)
        for name in self.tiled_buffers:
            setattr(self, name, None)

    def restore(self) -> None:
        """Return to the reference kernel: undo `prepare`."""
        self.product = self.fused = None
        if self.tiles is None:
            return
        form = self.reference_form()
        self.tiles = None
        for name, value in form.items():
            setattr(self, name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Tiles of the CPU kernels exist on the CPU only and are independent of the float dtype.
        on_gpu = isinstance(self.tiles, PackedWeight)
        if on_gpu or fn(torch.empty(0)).device.type != "cpu":
            self.restore()
        exact = {name: getattr(self, name) for name in self.exact_buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in exact.items():
            if before is not None:
                setattr(self, name, before.to(getattr(self, name).device))
        if on_gpu and fn(torch.empty(0)).device.type == "cuda":
            self.prepare(None)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.tiles is not None:
            for name, value in self.reference_form().items():
                if value is not None:
                    destination[prefix + name] = value

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.restore()
        super()._load_from_state_dict(*args, **kwargs)


class FusedLinears:
    """Prepared layers that share an input, computed in one call.

    The input is read, and rounded to int8, once for all of them.
    """

    def __init__(self, layers: tuple[TiledLinear, ...], kernels: library.Kernels) -> None:
        """Fuse prepared layers, see `can_fuse`."""
        self.layers = layers
        weights = _cpu_tiles(layers)
        self.product = cpu.CpuLinear(weights, [layer.bias for layer in layers], kernels)
        self.number = op.register(self.product)

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Apply the layers to `x`; returns one output per layer."""
        outputs = run_product(self.product, self.number, x, self.layers[0].int8_scale)
        pairs = zip(self.layers, outputs, strict=True)
        return [added(layer.adapter, x, output) for layer, output in pairs]


def run_product(
    product: cpu.CpuLinear | TritonLinear,
    number: int,
    x: Tensor,
    input_scale: float | None = None,
) -> list[Tensor]:
    """Call the kernel directly, or through the custom op while torch.compile is tracing."""
    if torch.compiler.is_compiling() and isinstance(product, cpu.CpuLinear):
        outputs: list[Tensor] = op.quantized_linear(x, number, product.widths, input_scale)
        return outputs
    return product(x, input_scale)


def can_fuse(layers: tuple[TiledLinear, ...]) -> bool:
    """Check that layers are prepared and share grid, input scale and order of input columns."""
    weights = _cpu_tiles(layers)
    if len(weights) < len(layers) or len({layer.int8_scale for layer in layers}) > 1:
        return False
    if not all(layer.multiplies_inputs for layer in layers):
        return False
    if len({(t.in_features, t.group_size, t.bits, t.order is None) for t in weights}) > 1:
        return False
    levels, first = weights[0].levels, weights[0].order
    if not all(t.levels is None if levels is None else levels.equals(t.levels) for t in weights):
        return False
    return first is None or all(
        t.order is not None and torch.equal(t.order, first) for t in weights
    )


def unpack_tiles(tiles: cpu_layout.TiledWeight | PackedWeight) -> tuple[Tensor, Tensor, Tensor]:
    """Return integers or codes, scales and zero points, see `unprepack` of both layouts."""
    if isinstance(tiles, PackedWeight):
        return packing.unprepack(tiles)
    return cpu_layout.unprepack(tiles)


def _cpu_tiles(layers: tuple[TiledLinear, ...]) -> list[cpu_layout.TiledWeight]:
    tiles = (layer.tiles for layer in layers)
    return [each for each in tiles if isinstance(each, cpu_layout.TiledWeight)]
