"""A token embedding whose rows are stored as integers, and dequantized when they are looked up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor

from ...model.token_table import TokenTable
from ..compressed_weight import CompressedWeight
from ..kernels import reference
from ..methods.affine import QuantizedWeight
from ..recipe.scheme import QuantScheme
from .compressed_linear import CompressedLayer


class QuantEmbedding(CompressedLayer, TokenTable):
    """Looks up rows in the layout of the reference kernel; the float table never exists."""

    packed: Tensor
    """uint8, see `reference.prepack`."""
    scales: Tensor
    """float32 `[tokens, groups]`."""
    zero_points: Tensor
    """uint8 `[tokens, groups]`."""
    bias = None
    scheme: QuantScheme

    def __init__(self, weight: CompressedWeight, like: Tensor) -> None:
        """Pack `weight`.

        Args:
            weight: integers `[tokens, hidden]` with float activations and contiguous groups.
            like: has the dtype of the rows, and the device.

        Raises:
            ValueError: it is another kind of weight.
        """
        super().__init__(weight)
        is_plain = (
            isinstance(weight, QuantizedWeight)
            and weight.group_index is None
            and weight.scheme.activations == "none"
        )
        if not is_plain:
            raise ValueError(
                f"{weight.scheme.label}: an embedding has no input to quantize and no order of "
                "input features; allowed: integers in contiguous groups"
            )
        assert isinstance(weight, QuantizedWeight)
        self.register_buffer("packed", reference.prepack(weight.integers, weight.scheme.bits))
        self.register_buffer("scales", weight.scales)
        self.register_buffer("zero_points", weight.zero_points)
        self.register_buffer("like", like.new_empty(0), persistent=False)

    def quantized(self) -> QuantizedWeight:
        """See `CompressedLayer.quantized`."""
        integers = reference.unprepack(self.packed, self.scheme.bits)
        return QuantizedWeight(integers, self.scales, self.zero_points, self.scheme)

    def for_inference(self) -> Self:
        """See `CompressedLayer.for_inference`."""
        return self

    def forward(self, ids: Tensor) -> Tensor:
        """Look up token ids `[...]`; returns rows `[..., hidden]` in the dtype of `like`."""
        tokens = ids.flatten()
        grid = self.scales[tokens], self.zero_points[tokens], self.scheme.bits
        rows = reference.dequantize(self.packed[tokens], *grid, self.like.dtype)
        return rows.reshape(*ids.shape, self.in_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Scales of other writers may be exact in float32 alone: a change of dtype leaves them.
        scales = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scales = scales.to(self.scales.device)
        return self
