"""scipy's BLAS and LAPACK on tensors of the CPU, in their own memory.

torch's own products and factors in float32 are MKL's, which on AMD's processors take about twice as
long. LAPACK reads columns first: to it every matrix here is transposed.
"""

from __future__ import annotations

import torch
from scipy.linalg import blas, lapack
from torch import Tensor


def reaches(matrix: Tensor) -> bool:
    """Whether a matrix lies where these routines can work; elsewhere torch has to do."""
    return matrix.device.type == "cpu"


def factor_(matrix: Tensor) -> bool:
    """Put the lower Cholesky factor in the place of a symmetric matrix.

    Args:
        matrix: float32 or float64 ``[K, K]``, contiguous. What lies above the diagonal is kept.

    Returns:
        Whether there is a factor; if not, the matrix is spoilt.
    """
    routine = lapack.spotrf if matrix.dtype == torch.float32 else lapack.dpotrf
    # Its upper triangle, read by columns, is our lower one.
    _, info = routine(matrix.numpy().T, lower=0, overwrite_a=1, clean=0)
    return bool(info == 0)


def multiply_lower_(rows: Tensor, lower: Tensor) -> None:
    """``rows = rows @ lower``, of which only the lower triangle is read.

    Args:
        rows: float32 ``[N, K]``, contiguous.
        lower: float32 ``[K, K]``, contiguous.
    """
    blas.strmm(1.0, lower.numpy().T, rows.numpy().T, overwrite_b=1)


def transposed_product(left: Tensor, right: Tensor) -> Tensor:
    """``left' @ right``.

    Args:
        left: float32 ``[K, M]``.
        right: float32 ``[K, N]``, contiguous.

    Returns:
        float32 ``[M, N]``.
    """
    if not reaches(right) or not len(left):
        return left.t() @ right
    columns = left.contiguous().numpy().T
    return torch.from_numpy(blas.sgemm(1.0, right.numpy().T, columns, trans_b=1).T)
