"""Output error of a layer, from the difference of its weights and the Hessian of its inputs.

With `H = X' X` over the calibration inputs, the squared outputs of a row e are `e H e'`. Summed
over the rows of a difference of weights, this is the squared error of the outputs.

The rows of one layer may serve different uses: in Qwen3.5 each head of `q_proj` has a query, which
is normalized, and a gate, the input of a sigmoid. Their magnitudes are not comparable, so an error
added up over all of them is that of the larger one. The family tables name such rows
(`BlockLinear.row_parts`), and `split_rows` separates them.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def row_energy(rows: Tensor, hessian: Tensor) -> Tensor:
    """Compute each row's quadratic form under the Hessian.

    Args:
        rows: float32 `[N, K]`.
        hessian: `[K, K]`, symmetric, positive semidefinite.

    Returns:
        float32 `[N]`, not negative.
    """
    return ((rows @ hessian.float()) * rows).sum(dim=1).clamp_min(0)


def relative_error(
    weights: Iterable[Tensor], candidates: Iterable[Tensor], hessian: Tensor
) -> float:
    """Compute the squared output error of layers that share an input, over their squared outputs.

    Args:
        weights: `[N, K]` each, any float dtype.
        candidates: replacements of the weights, same shapes.
        hessian: `[K, K]`.

    Returns:
        0 without an error; 1 if the candidates are zero.
    """
    error = energy = torch.zeros((), device=hessian.device)
    for weight, candidate in zip(weights, candidates, strict=True):
        error = error + row_energy(weight.float() - candidate.float(), hessian).sum()
        energy = energy + row_energy(weight.float(), hessian).sum()
    return float(error / energy.clamp_min(torch.finfo(torch.float32).tiny))


def split_rows(matrices: Sequence[Tensor], parts: Sequence[tuple[int, ...]]) -> list[list[Tensor]]:
    """Group the rows of layers that share an input by use.

    Args:
        matrices: `[N, K]` each, of the layers.
        parts: for each layer the lengths of its runs of rows with different uses, one after the
            other and repeated until N rows; empty if all its rows have the same use.

    Returns:
        One list of matrices per use: all layers without parts together, then the rows of each part
        of each other layer.

    Raises:
        ValueError: the runs do not fill the rows of a layer.
    """
    whole = [matrix for matrix, sizes in zip(matrices, parts, strict=True) if not sizes]
    uses = [whole] if whole else []
    for matrix, sizes in zip(matrices, parts, strict=True):
        if not sizes:
            continue
        if len(matrix) % sum(sizes):
            raise ValueError(f"{len(matrix)} rows are no multiple of the parts {sizes}")
        runs = torch.split(matrix.reshape(-1, sum(sizes), matrix.shape[1]), list(sizes), dim=1)
        uses += [[run.reshape(-1, matrix.shape[1])] for run in runs]
    return uses
