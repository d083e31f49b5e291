"""The low-rank part of a layer: the best correction `B A` of a quantization error.

Letters: N = out_features, K = in_features, r = rank. With the Hessian H of the layer's inputs, the
squared output error of a difference of weights E `[N, K]` is `tr(E H E')`, see `layer_error.py`.

The least `tr((E - B A) H (E - B A)')` at rank r is that of the truncated SVD of `E S` with any S of
`S S' = H` (Liu et al., "EoRA: Training-free Compensation for Compressed LLM with Eigenspace
Low-Rank Approximation", arXiv 2410.21271, section 3). Let U `[N, r]` be its first left singular
vectors, which are the first eigenvectors of `E H E'`. Then `B = U` and `A = U' E`: the projection
`U U' E S` is the truncated SVD of `E S`. The paper divides by the roots of H's eigenvalues instead,
and so has to bound them from below; here nothing is divided, and features without energy get the
correction that the plain error of the weights asks for.

With the identity as H this is the truncated SVD of E, which needs no calibration.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
NAMES = ("lora_A", "lora_B")
"""Names of `down` and `up`, as in checkpoints."""


@dataclass(frozen=True)
class LowRank:
    """A matrix `up @ down` of rank r."""

    down: Tensor
    """`[r, K]`; A."""
    up: Tensor
    """`[N, r]`; B."""

    @property
    def rank(self) -> int:
        """The rank r."""
        return len(self.down)

    def tensors(self) -> dict[str, Tensor]:
        """Return both matrices by name, without copies; `take` is the inverse."""
        return dict(zip(NAMES, (self.down, self.up), strict=True))

    @classmethod
    def take(cls, tensors: MutableMapping[str, Tensor]) -> LowRank | None:
        """Remove the matrices from tensors by name, and return them; None if there are none."""
        if NAMES[0] not in tensors:
            return None
        return cls(*(tensors.pop(name) for name in NAMES))

    def matrix(self) -> Tensor:
        """Compute the product, float32 `[N, K]`."""
        return self.up.float() @ self.down.float()

    def to(self, dtype: torch.dtype) -> LowRank:
        """Round both factors to a dtype.

        Raises:
            ValueError: a value overflows it.
        """
        rounded = LowRank(self.down.to(dtype), self.up.to(dtype))
        if not all(bool(torch.isfinite(part).all()) for part in (rounded.down, rounded.up)):
            largest = max(float(part.abs().max()) for part in (self.down, self.up))
            raise ValueError(f"an adapter with values up to {largest:.3g} does not fit {dtype}")
        return rounded


def stored_dtype_of(dtype: torch.dtype) -> torch.dtype:
    """Return the 16-bit dtype of a low-rank part beside weights of a dtype."""
    return dtype if dtype in HALF else torch.bfloat16


def low_rank(
    weight: Tensor, approximation: Tensor | None, hessian: Tensor | None, rank: int
) -> LowRank:
    """Find the part of a rank that is missing most from an approximation of a weight.

    Args:
        weight: `[N, K]`, any float dtype.
        approximation: `[N, K]`; None = zero: the part is that of the weight itself.
        hessian: `[K, K]`, `X' X` of the layer's inputs up to a positive factor; None weighs all
            input features alike.
        rank: 1 to min(N, K).

    Returns:
        The optimum, float32. Rows of `down` and columns of `up` have equal lengths, and a
        deterministic sign.

    Raises:
        ValueError: shapes do not match, the rank is out of range, or a number is not finite.
    """
    rows, columns = weight.shape
    if not 1 <= rank <= min(rows, columns):
        raise ValueError(
            f"rank {rank} for a weight of {rows} x {columns}; allowed: 1 to {min(rows, columns)}"
        )
    error = weight.float() if approximation is None else weight.float() - approximation.float()
    _check(error, hessian)
    basis = None
    if rows > columns:
        # E = Q R: the vectors are those of R, times Q.
        basis, error = torch.linalg.qr(error)
    gram = (error @ _with_floor(hessian) if hessian is not None else error) @ error.t()
    vectors = _first_eigenvectors(gram, rank)
    down = vectors.t() @ error
    up = vectors if basis is None else basis @ vectors
    lengths = down.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny).sqrt()
    return LowRank(down / lengths[:, None], up * lengths)


def _with_floor(hessian: Tensor) -> Tensor:
    """Add to the diagonal what rounding loses anyway: directions without energy count a little."""
    matrix = hessian.float()
    floor = float(matrix.diagonal().clamp_min(0).sum()) * torch.finfo(torch.float32).eps
    return matrix + torch.eye(len(matrix), device=matrix.device) * (floor or 1.0)


def _first_eigenvectors(gram: Tensor, count: int) -> Tensor:
    """Return the eigenvectors of the largest eigenvalues, float32 `[n, count]`, largest first."""
    symmetric = gram.double()
    symmetric = (symmetric + symmetric.t()) / 2
    vectors: Tensor = torch.linalg.eigh(symmetric)[1][:, -count:].flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return (vectors * torch.where(largest < 0, -1.0, 1.0)).float()


def _check(error: Tensor, hessian: Tensor | None) -> None:
    columns = error.shape[1]
    if hessian is not None and tuple(hessian.shape) != (columns, columns):
        raise ValueError(
            f"the Hessian is {tuple(hessian.shape)}; a weight of {columns} columns needs "
            f"({columns}, {columns})"
        )
    for name, values in (("the weight", error), ("the Hessian", hessian)):
        if values is not None and not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} is not finite; no low-rank part can be found")
