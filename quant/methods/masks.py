"""Choose the weights that a sparsity mask holds at zero.

Letters: N = out_features, K = in_features.

Scores, the smallest of which become zero:

- magnitude, `|w|` (Han et al., arXiv 1510.00149, section 2, without its retraining);
- wanda, `|w| sqrt(H_jj)` with the energy of the input feature (Sun et al., "A Simple and Effective
  Pruning Approach for Large Language Models", arXiv 2306.11695, section 3). Like there, weights
  are compared within an output row; patterns N:M within M neighbouring input features;
- sparsegpt, `(t L_jj)^2`: the output error of zero in place of the target t that the solver has
  reached (Frantar and Alistarh, "SparseGPT", arXiv 2301.00774, section 3.3). `1 / L_jj` is the
  paper's diagonal entry of the inverse Hessian's factor. The mask of a block of columns is chosen
  when the solver reaches the block. As there, all weights of a block are compared with each other,
  so that rows keep different shares; patterns N:M within M neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..recipe.mask import MaskRule

CHUNK_ELEMENTS = 2**22
"""Weights that are ranked at a time; bounds temporary memory (70 MiB)."""


def choose_zeros(weight: Tensor, rule: MaskRule, energies: Tensor | None = None) -> Tensor:
    """Choose the weights that become zero, from the weight alone or with the inputs' energies.

    Args:
        weight: `[N, K]`, any float dtype.
        rule: the mask. For the score "sparsegpt", which needs a solver, this is where it starts
            from, and the mask of "wanda".
        energies: float `[K]`, the diagonal of the Hessian; needed unless the score is "magnitude".

    Returns:
        bool `[N, K]`, true for zeros.

    Raises:
        ValueError: there are no energies for a score that needs them.
    """
    factors = None
    if rule.score != "magnitude":
        if energies is None:
            raise ValueError(
                f"score {rule.score} needs calibration samples that reach the layer; allowed "
                "without: magnitude"
            )
        factors = energies.float().clamp_min(0).sqrt()
    rows, columns = weight.shape
    zeros = torch.empty(rows, columns, dtype=torch.bool, device=weight.device)
    step = max(1, CHUNK_ELEMENTS // columns)
    for begin in range(0, rows, step):
        chunk = slice(begin, begin + step)
        scores = weight[chunk].float().abs()
        if factors is not None:
            scores *= factors
        if rule.pattern is None:
            zeros[chunk] = all_but_largest(scores, rule.kept(columns))
        else:
            kept, width = rule.pattern
            runs = all_but_largest(scores.reshape(len(scores), -1, width), kept)
            zeros[chunk] = runs.reshape(scores.shape)
    return zeros


def all_but_largest(scores: Tensor, count: int) -> Tensor:
    """Mark all but the largest scores of the last dimension, bool of the same shape."""
    largest = scores.topk(count, dim=-1, sorted=False).indices
    return torch.ones_like(scores, dtype=torch.bool).scatter_(-1, largest, False)


def hold_zeros(weight: Tensor, zeros: Tensor | None) -> Tensor:
    """Return a weight with zeros, or the weight itself without a mask.

    Every grid has zero as a level, so that these weights are still zero once they are rounded.
    """
    return weight if zeros is None else weight.masked_fill(zeros, 0)


class SolverMask:
    """The zeros of a weight whose columns are solved one by one, from the last to the first."""

    def __init__(self, zeros: Tensor, order: Tensor, rule: MaskRule, block_size: int) -> None:
        """Start from a mask.

        Args:
            zeros: bool `[N, K]`, from `choose_zeros`.
            order: int64 `[K]`, columns in the order of the solver.
            rule: the mask.
            block_size: columns of a block of the solver.

        Raises:
            ValueError: the neighbours of a pattern, which are chosen together, are not solved
                together.
        """
        self.zeros = zeros.t()[order].contiguous()
        """bool `[K, N]`, in the order of the solver."""
        self._order, self._rule = order, rule
        self._run = 0
        if rule.score == "sparsegpt":
            self._run = block_size if rule.pattern is None else rule.pattern[1]
            backwards = bool((order.diff() == -1).all())
            if rule.pattern is not None and (not backwards or block_size % self._run):
                raise ValueError(
                    f"{rule.label} with act_order or block_size {block_size}; allowed: act_order "
                    f"false, and a multiple of {self._run} as block_size"
                )

    def run(self, end: int, column: int) -> int:
        """Return how many columns are chosen before a column is solved; 0 = they are already.

        Args:
            end: end of the block of the solver.
            column: the column, in the order of the solver.
        """
        return self._run if self._run and (end - 1 - column) % self._run == 0 else 0

    def choose(self, begin: int, scores: Tensor) -> None:
        """Choose the zeros of some columns.

        Args:
            begin: the first of them in the order of the solver.
            scores: float32 `[n, N]`, of each weight.
        """
        end, columns = begin + len(scores), len(self.zeros)
        if self._rule.pattern is None:
            # Shares of blocks are rounded so that those of all columns so far add up.
            solved = columns - begin
            count = self._rule.kept(solved) - self._rule.kept(columns - end)
            zeros = all_but_largest(scores.flatten(), count * scores.shape[1])
            self.zeros[begin:end] = zeros.reshape(scores.shape)
        else:
            kept, _ = self._rule.pattern
            self.zeros[begin:end] = all_but_largest(scores.t(), kept).t()

    def original_order(self) -> Tensor:
        """Return the zeros in the order of the weight, bool `[N, K]`."""
        zeros = torch.empty_like(self.zeros)
        zeros[self._order] = self.zeros
        return zeros.t().contiguous()
