"""Log-probabilities of a model along an answer, as they are stored.

For each token either all log-probabilities are stored as fp16 ("full"), or those of the 1024
likeliest tokens and the total probability of the others ("lumped").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FULL_BYTES = 2 << 30
LOWEST = torch.finfo(torch.float16).min
"""Smallest stored log-probability: the fp16 minimum, at which the probability is 0."""
TOP = 1024

KLKind = Literal["full", "lumped"]

PARTS: Mapping[KLKind, tuple[str, ...]] = {
    "full": ("logprobs",),
    "lumped": ("logprobs", "ids", "rest"),
}
"""Names of the stored tensors."""


def choose_kind(tokens: int, vocabulary: int) -> KLKind:
    """Choose full if all log-probabilities of this many tokens take at most `FULL_BYTES`."""
    return "full" if tokens * vocabulary * 2 <= FULL_BYTES else "lumped"


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities along one answer, in float32."""

    logprobs: Tensor
    """`[tokens, vocab]` if full, `[tokens, TOP]` of `ids` if lumped."""
    ids: Tensor | None
    """int64 `[tokens, TOP]`; None if full."""
    rest: Tensor | None
    """Total probability of all other tokens, `[tokens]`; None if full."""


def pack_logprobs(rows: Tensor, kind: KLKind) -> dict[str, Tensor]:
    """Convert float32 log-probabilities `[tokens, vocab]` to the stored tensors by name."""
    if kind == "full":
        return {"logprobs": rows.clamp_min(LOWEST).half()}
    values, ids, rest = lump(rows)
    return {"logprobs": values.clamp_min(LOWEST).half(), "ids": ids.to(torch.int32), "rest": rest}


def unpack_logprobs(parts: Mapping[str, Tensor], kind: KLKind) -> LogProbs:
    """Return what `pack_logprobs` stored.

    Full rows are normalized again: rounding to fp16 changes their sum by about 1e-4.
    """
    rows = parts["logprobs"].float()
    if kind == "full":
        return LogProbs(rows.log_softmax(-1), None, None)
    return LogProbs(rows, parts["ids"].long(), parts["rest"])


def lump(logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split full rows into the `TOP` likeliest tokens and the total of the others.

    Args:
        logprobs: float32 `[tokens, vocab]`, normalized.

    Returns:
        Log-probabilities `[tokens, TOP]`, their ids int64 `[tokens, TOP]`, and the probability of
        all other tokens float32 `[tokens]`.
    """
    top = logprobs.topk(min(TOP, logprobs.shape[-1]), dim=-1)
    rest = (1 - top.values.double().exp().sum(-1)).clamp_min(0).float()
    return top.values, top.indices, rest
