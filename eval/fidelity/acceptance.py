"""The candidate as a draft for the base in speculative decoding, from stored distributions.

A draft that is drawn from q is accepted with the probability `sum_v min(p(v), q(v))`, where p is
the distribution of the base ("Fast Inference from Transformers via Speculative Decoding", arXiv
2211.17192, theorem 3.5); with greedy decoding it is accepted if both models rank the same token
first. Both are read along the base's answers. The mean number of tokens per pass of the base
assumes that drafts are accepted independently (its equation 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...model.speculation.drafts import expected_tokens
from ..answering.predictions import Record
from .logprob_cache import BaseLogProbs

DRAFT_TOKENS = 4
"""Drafts per pass of the base."""
OVERLAP = "overlap"
_ROWS = 256  # positions at a time; bounds temporary memory


def compute_overlap(base: BaseLogProbs, candidate: Tensor) -> Tensor:
    """Compute the overlap of two distributions, `sum_v min(p(v), q(v))`, at each position.

    Args:
        base: p, of all tokens or of the likeliest ones. Of the others only the total is stored,
            from which no overlap follows: they count as 0, and the result is a lower bound.
        candidate: logits of q, `[positions, vocab]`.

    Returns:
        float32 `[positions]`, 0 to 1.
    """
    parts = []
    for start in range(0, len(candidate), _ROWS):
        rows = slice(start, start + _ROWS)
        q = F.log_softmax(candidate[rows].float(), dim=-1)
        if base.ids is not None:
            q = q.gather(-1, base.ids[rows])
        smaller = torch.minimum(base.logprobs[rows].float(), q)
        parts.append(smaller.exp().sum(-1).clamp_max(1.0))
    return torch.cat(parts) if parts else candidate.new_zeros(0)


def summarize_acceptance(records: Iterable[Record]) -> dict[str, Any] | None:
    """Pool records over their answer tokens, the end of turn not included.

    Args:
        records: records of `measure.compare_answer`.

    Returns:
        `tokens`, the shares of accepted drafts when sampling at temperature 1 (`sampled`) and with
        greedy decoding (`greedy`), `is_lower_bound` of `sampled`, and `draft_tokens` with the
        `expected_tokens` per pass of the base for both shares. None without tokens, or if a record
        was stored by a version that did not measure the overlap.
    """
    stored = list(records)
    if not all(OVERLAP in record for record in stored):
        return None
    overlaps = [value for record in stored for value in record[OVERLAP]]
    if not overlaps:
        return None
    shares = {
        "sampled": fmean(overlaps),
        "greedy": fmean(value for record in stored for value in record["top1"]),
    }
    return {
        "tokens": len(overlaps),
        **shares,
        "is_lower_bound": any("kl_lumped" not in record for record in stored),
        "draft_tokens": DRAFT_TOKENS,
        "expected_tokens": {
            name: expected_tokens(share, DRAFT_TOKENS) for name, share in shares.items()
        },
    }
