"""Losses of an answer, over its tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...calib.stored_logprobs import LogProbs

LEAST = 1e-9
"""Smallest probability of the tokens outside the stored ones: bounds the gradient."""


def divergence(teacher: LogProbs, logits: Tensor) -> Tensor:
    """Compute KL(teacher || student), the mean over tokens in nats; differentiable.

    Vocabularies of different sizes (rows of padding) are compared over the ids that both have, with
    the teacher's probabilities normalized over these. Of lumped rows, all tokens that are not
    stored count as one.

    Args:
        teacher: of `[tokens]` rows.
        logits: of the student, float32 `[tokens, vocab]`.
    """
    size = logits.shape[-1]
    if teacher.ids is None:
        common = min(size, teacher.logprobs.shape[-1])
        expected = teacher.logprobs[:, :common].log_softmax(-1)
        given = logits[:, :common].log_softmax(-1)
        return (expected.exp() * (expected - given)).sum(-1).mean()
    assert teacher.rest is not None
    known = teacher.ids < size
    expected = teacher.logprobs.exp() * known
    given = logits.log_softmax(-1).gather(-1, teacher.ids.clamp_max(size - 1))
    rest = (1 - expected.sum(-1)).clamp_min(LEAST)
    given_rest = (1 - (given.exp() * known).sum(-1)).clamp_min(LEAST)
    of_rest = rest * (rest.log() - given_rest.log())
    return ((expected * (teacher.logprobs - given)).sum(-1) + of_rest).mean()


def cross_entropy(tokens: Tensor, logits: Tensor) -> Tensor:
    """Compute the cross-entropy of an answer, the mean over tokens in nats; differentiable.

    Args:
        tokens: of the answer, int64 `[tokens]`.
        logits: that predict them, float32 `[tokens, vocab]`.
    """
    return F.cross_entropy(logits, tokens.to(logits.device))


def mixed_divergence(teachers: list[tuple[LogProbs, float]], logits: Tensor) -> Tensor:
    """Compute the weighted sum of the divergences from several teachers.

    Its gradient is that of the divergence from their weighted mean distribution (You et al., KDD
    2017, "Learning from Multiple Teacher Networks", section 3.2).

    Args:
        teachers: rows and weight of each.
        logits: see `divergence`.
    """
    terms = [share * divergence(rows, logits) for rows, share in teachers]
    return torch.stack(terms).sum()
