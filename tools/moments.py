"""Second moments of activations, and least squares on them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 1e-4  # of the mean of the diagonal


class Moments:
    """Sum of outer products of rows, with a constant 1 as the last column."""

    def __init__(self) -> None:
        self.sum: Tensor = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Add rows `[..., columns]`."""
        rows = F.pad(x.detach().flatten(0, -2).double(), (0, 1), value=1.0)
        self.sum = self.sum + rows.t() @ rows

    def solve(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Least-squares coefficients of some columns on others.

        Args:
            inputs: int64 `[in]`, indices of columns; the number of columns is the constant's.
            outputs: int64 `[out]`.

        Returns:
            float64 `[in, out]`.
        """
        gram = self.sum[inputs][:, inputs]
        gram = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        coefficients: Tensor = torch.linalg.solve(gram, self.sum[inputs][:, outputs])
        return coefficients
