"""What the drivers, formats and kernels need of a compressed weight, whatever its kind.

`QuantizedWeight` (`methods/affine.py`), integers on a uniform grid, is the first kind, and
`TableWeight` (`methods/grids/table_weight.py`), levels of a table, the second. Another kind (a
mask, a low-rank part) brings a scheme of its own (`Scheme`), the methods that produce it, and the
checkpoint formats that hold it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor

from .recipe.scheme import Scheme

if TYPE_CHECKING:
    from .runtime.compressed_linear import CompressedLinear


class CompressedWeight(Protocol):
    """A compressed matrix `[out_features, in_features]`."""

    @property
    def scheme(self) -> Scheme:
        """The scheme; its `kind` names the class of the weight."""
        ...

    @property
    def out_features(self) -> int:
        """Number of rows."""
        ...

    @property
    def in_features(self) -> int:
        """Number of columns."""
        ...

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Compute the float matrix in float32, rounded once to `dtype`."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, without copies; `Scheme.weight` is the inverse."""
        ...

    def equals(self, other: CompressedWeight) -> bool:
        """Whether the other weight has the same scheme and values."""
        ...

    def with_input_range(self, largest: float) -> Self:
        """Return the weight with the scale of a calibrated input, or itself if it needs none.

        Args:
            largest: largest magnitude of the input during calibration.

        Raises:
            ValueError: the inputs are too large for any scale.
        """
        ...

    def calibration_layer(self, bias: Tensor | None, dtype: torch.dtype | None) -> CompressedLinear:
        """Return the layer for the rest of the calibration, without copies of the tensors.

        Args:
            bias: `[out_features]` or None.
            dtype: of the activations; None if the layer will not run.

        Raises:
            ValueError: the bias does not fit a checkpoint.
        """
        ...

    def inference_layer(self, bias: Tensor | None) -> CompressedLinear:
        """Return the layer for inference; it chooses its kernel itself."""
        ...
