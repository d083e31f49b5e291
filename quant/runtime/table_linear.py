"""Linear layers over levels of a table, see `methods/grids/table_weight.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import bf16_linear, reference
from ..methods.grids.activation_rounding import rounded_activations
from ..methods.grids.table_weight import TableWeight
from ..recipe.grids import SIMULATED
from ..recipe.scheme import TableScheme
from .compressed_linear import CompressedLinear

HALF_BYTE = 4
"""Most bits of indices that are packed."""


class TableLinear(CompressedLinear):
    """The reference: dequantize, round the input where the scheme says so, then multiply.

    With rounded activations the product is computed in float32, see `activation_rounding.py`.
    """

    stored: Tensor
    """Indices; at inference those of 4 bits and less two to a byte (`reference.prepack`)."""
    scales: Tensor
    divisor: Tensor | None
    input_scale: Tensor | None
    dequantized: Tensor | None
    scheme: TableScheme

    def __init__(
        self, weight: TableWeight, bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Register the tensors of `weight`, without copies but for packing.

        Args:
            weight: unpacked.
            bias: `[out_features]` or None.
            dtype: of the activations, for a layer that will run often: its weight is dequantized
                once. None packs the weight and dequantizes it in each call.

        Raises:
            ValueError: the scheme calibrates the input, and the weight has no scale for it.
        """
        super().__init__(weight)
        if weight.scheme.calibrates_input and weight.input_scale is None:
            raise ValueError(
                f"{weight.scheme.label} comes with no input scale; calibrate the activations"
            )
        bits, even = weight.scheme.bits, weight.in_features % 2 == 0
        self._packed = dtype is None and bits <= HALF_BYTE and even
        kept = None if dtype is None else weight.dequantize(self._product_dtype(dtype))
        for name, value in {
            "stored": reference.prepack(weight.indices, bits) if self._packed else weight.indices,
            "scales": weight.scales,
            "divisor": weight.divisor,
            "input_scale": weight.input_scale,
            "bias": bias,
        }.items():
            self.register_buffer(name, value)
        self.register_buffer("dequantized", kept, persistent=False)

    def quantized(self) -> TableWeight:
        """See `CompressedLinear.quantized`; without copies unless the indices are packed."""
        bits = self.scheme.bits
        indices = reference.unprepack(self.stored, bits) if self._packed else self.stored
        return TableWeight(indices, self.scales, self.scheme, self.divisor, self.input_scale)

    @property
    def kernel(self) -> str:
        """Name of the kernel; rounded activations are simulated, see `SIMULATED`."""
        if self.scheme.activations == "none":
            return "reference"
        return f"{SIMULATED} {self.scheme.grid} activations"

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, in the dtype of `x`."""
        dtype = self._product_dtype(x.dtype)
        weight = self.dequantized
        if weight is None or weight.dtype != dtype:
            weight = self.quantized().dequantize(dtype)
        if self.scheme.activations == "none":
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return bf16_linear.select_linear(x.device)(x, weight, bias)
        rounded = rounded_activations(x, self.scheme, self.input_scale)
        bias = None if self.bias is None else self.bias.float()
        return F.linear(rounded, weight, bias).to(x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Scales of other writers are exact in float32 alone: a change of dtype leaves them.
        exact = {name: getattr(self, name) for name in ("scales", "divisor", "input_scale")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in exact.items():
            if before is not None:
                setattr(self, name, before.to(getattr(self, name).device))
        return self

    def _product_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype if self.scheme.activations == "none" else torch.float32
