"""BLAS and LAPACK routines of scipy on CPU tensors, without copies.

torch's float32 products and factorizations use MKL, which takes about twice as long on AMD
processors as scipy's OpenBLAS. The routines expect column-major matrices: they see the transpose of
every row-major tensor here, so "upper" and "lower" are exchanged in the calls. scipy.linalg takes a
fifth of a second to import, so the functions import it: a plan needs none of them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_supported(matrix: Tensor) -> bool:
    """Whether these routines can access a matrix; others are left to torch."""
    return matrix.device.type == "cpu"


def factor_(matrix: Tensor) -> bool:
    """Replace a symmetric matrix by its lower Cholesky factor (LAPACK potrf).

    Args:
        matrix: float32 or float64 `[K, K]`, contiguous. Values above the diagonal stay.

    Returns:
        Whether the matrix is positive definite; otherwise its values are undefined.
    """
    from scipy.linalg import lapack

    routine = lapack.spotrf if matrix.dtype == torch.float32 else lapack.dpotrf
    # The upper triangle in column-major order is the lower one in row-major order.
    _, info = routine(matrix.numpy().T, lower=0, overwrite_a=1, clean=0)
    return bool(info == 0)


def multiply_lower_(rows: Tensor, lower: Tensor) -> None:
    """Compute `rows = rows @ lower` in place (BLAS trmm).

    Args:
        rows: float32 `[N, K]`, contiguous.
        lower: float32 `[K, K]`, contiguous; only its lower triangle is read.
    """
    from scipy.linalg import blas

    blas.strmm(1.0, lower.numpy().T, rows.numpy().T, overwrite_b=1)


def solve_lower_(rows: Tensor, lower: Tensor) -> None:
    """Compute `rows = rows @ (L L')^-1` in place (BLAS trsm).

    Args:
        rows: float32 `[N, K]`, contiguous.
        lower: float32 `[K, K]`, contiguous; only its lower triangle L is read.
    """
    from scipy.linalg import blas

    columns, upper = rows.numpy().T, lower.numpy().T
    # In the transposed view: L z = rows', then L' y = z.
    for transpose in (1, 0):
        blas.strsm(1.0, upper, columns, trans_a=transpose, overwrite_b=1)


def transposed_product(left: Tensor, right: Tensor) -> Tensor:
    """Compute `left' @ right` (BLAS gemm).

    Args:
        left: float32 `[K, M]`.
        right: float32 `[K, N]`, contiguous.

    Returns:
        float32 `[M, N]`.
    """
    from scipy.linalg import blas

    if not is_supported(right) or not len(left):
        return left.t() @ right
    columns = left.contiguous().numpy().T
    return torch.from_numpy(blas.sgemm(1.0, right.numpy().T, columns, trans_b=1).T)
