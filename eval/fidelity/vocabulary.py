"""Divergence between models whose vocabularies differ: the original and a pruned one.

Both distributions are restricted to the common tokens and normalized again, and the base's tokens
are mapped to the candidate's ids. Without that, the divergence from the base would be infinite: the
candidate has no probability for a removed token. `removed_mass` says how much of the base's
probability is left out of the comparison. An answer with a removed token is spelled by several
tokens of the candidate, so it cannot be compared token by token; it is left out and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...quant.vocabulary.kept_tokens import REMOVED, KeptTokens
from ...quant.vocabulary.record import PrunedVocabulary
from ..fingerprint import VOCABULARY
from .logprob_cache import BaseLogProbs


def find_common_tokens(
    base: Mapping[str, Any], candidate: Mapping[str, Any], folder: Path | None
) -> KeptTokens | None:
    """Return the map from the base's token ids to the candidate's; None if they are the same.

    Args:
        base: fingerprint of the base's run.
        candidate: fingerprint of the candidate's run.
        folder: checkpoint of the candidate.

    Raises:
        ValueError: the base's vocabulary is pruned too, in another way.
    """
    first, second = base.get(VOCABULARY), candidate.get(VOCABULARY)
    if first == second:
        return None
    pruned = None if folder is None else PrunedVocabulary.of(folder)
    if first is not None or pruned is None:
        raise ValueError(
            "the base's vocabulary is pruned and the candidate's is not, or in another way; their "
            "divergence cannot be measured: take the unpruned original for the base"
        )
    return pruned.kept


def common_rows(base: BaseLogProbs, kept: KeptTokens) -> tuple[BaseLogProbs, Tensor]:
    """Restrict log-probabilities to the common tokens, with the candidate's ids.

    Args:
        base: full, or lumped: then the common tokens among the likeliest are compared. The tokens
            of its answer must all be kept.
        kept: the map.

    Returns:
        Log-probabilities normalized over the common tokens (-inf, with the id 0, for a removed one
        among the likeliest), and the base's probability of all others, float32 `[tokens]`.

    Raises:
        ValueError: the log-probabilities are of another vocabulary, or of removed tokens alone.
    """
    ids = None
    if base.ids is None:
        if base.logprobs.shape[-1] != kept.rows:
            raise ValueError(
                f"the base has {base.logprobs.shape[-1]} logits and the candidate's vocabulary was "
                f"pruned from {kept.rows}; take the original that it was pruned from for the base"
            )
        rows = base.logprobs[:, kept.index.to(base.logprobs.device)]
    else:
        ids = kept.to_new(base.ids)
        rows = base.logprobs.masked_fill(ids == REMOVED, -torch.inf)
        ids = ids.clamp_min(0)
    mass = rows.exp().sum(-1)
    if not bool((mass > 0).all()):
        raise ValueError(
            "the base expects removed tokens alone at a token of an answer, so the divergence "
            "cannot be measured; keep more tokens"
        )
    others = (1 - mass).clamp_min(0.0)
    common = replace(
        base,
        logprobs=rows.log_softmax(-1),
        ids=ids,
        rest=None,
        tokens=kept.to_new(base.tokens),
    )
    return common, others


def common_divergence(base: BaseLogProbs, logits: Tensor) -> Tensor:
    """Compute KL(base || candidate) over the common tokens of each position, in nats.

    Args:
        base: result of `common_rows`.
        logits: of the candidate, `[tokens, vocab]`.

    Returns:
        float32 `[tokens]`, not negative.
    """
    p, q = base.logprobs, logits.float().log_softmax(-1)
    is_common = ~p.isneginf()
    if base.ids is not None:
        q = q.gather(-1, base.ids).masked_fill(~is_common, -torch.inf).log_softmax(-1)
    terms = torch.where(is_common, p.exp() * (p - q), 0.0)
    return terms.sum(-1).clamp_min(0.0)
