"""Training of the module for multi-token prediction on a frozen decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tiny_data import PackedBatch
from tiny_segments import Segments
from torch import Tensor

from vlpress.model.cache import KVCache
from vlpress.model.mtp import MultiTokenPredictor
from vlpress.model.qwen_vl import QwenVL


@torch.no_grad()
def begin_predictor(predictor: MultiTokenPredictor, model: QwenVL) -> None:
    """Begin with the decoder's last layer and norm, on the mean of both inputs."""
    predictor.layers[0].load_state_dict(model.model.layers[-1].state_dict())
    predictor.norm.load_state_dict(model.model.norm.state_dict())
    half = 0.5 * torch.eye(predictor.fc.out_features)
    predictor.fc.weight.copy_(torch.cat([half, half], 1))


def tokens_before(segment: Tensor) -> tuple[Tensor, Tensor]:
    """Find the token before each token of packed conversations.

    Args:
        segment: int64 `[B, T]` of `PackedBatch`. The first token of a question follows the last
            one of its prefix.

    Returns:
        int64 `[B, T]`, indices within the row; and `segment` without the tokens that follow none.
    """
    before = (torch.arange(segment.shape[1]) - 1).expand_as(segment).clone()
    last_of_prefix = (segment == 0).sum(1) - 1
    is_first = segment != torch.gather(segment, 1, before.clamp(min=0))
    before = torch.where(is_first, last_of_prefix[:, None], before).clamp(min=0)
    left = segment.clone()
    left[:, 0] = -1
    return before, left


def draft_hidden(
    predictor: MultiTokenPredictor, model: QwenVL, embeds: Tensor, hidden: Tensor,
    batch: PackedBatch,
) -> Tensor:  # fmt: skip
    """Compute inputs of the head for drafts of packed conversations.

    Args:
        predictor: the module that is trained.
        model: gives rotary positions.
        embeds: `[B, T, H]`.
        hidden: `[B, T, H]`, final hidden states.
        batch: the conversations.

    Returns:
        `[B, T, H]`; unlike in `mtp.py`, the row of token t predicts token t + 1, from the hidden
        state of token t - 1.
    """
    state = model.model.prepare(embeds, batch.position)
    before, segment = tokens_before(batch.segment)

    def shifted(x: Tensor) -> Tensor:
        return torch.gather(x, 1, before[..., None].expand_as(x))

    segments = Segments(segment, shifted(state["cos"]), shifted(state["sin"]))
    joined = torch.cat([embeds, shifted(hidden)], -1)
    size = embeds.shape[-1]

    def step(x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KVCache) -> Tensor:
        out: Tensor = predictor(x[..., :size], x[..., size:], cos, sin, mask, cache)
        return out

    return segments.join(segments.run(step, segments.split(joined), predictor.config))


def draft_loss(
    predictor: MultiTokenPredictor, model: QwenVL, embeds: Tensor, hidden: Tensor,
    batch: PackedBatch,
) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """Cross-entropy of the drafts towards the model's own distribution, for tokens of answers.

    The report has the share of drafts that are the model's most likely token.

    Args:
        predictor: the module that is trained.
        model: the frozen model.
        embeds: `[B, T, H]`, of the tokens and features.
        hidden: `[B, T, H]`, final hidden states; no gradient flows into them.
        batch: the conversations.
    """
    is_answer = batch.target >= 0
    with torch.no_grad():
        wanted = model.logits(hidden[is_answer])
    out = draft_hidden(predictor, model, embeds.detach(), hidden.detach(), batch)
    scores = model.logits(out[is_answer])
    loss = F.cross_entropy(scores, wanted.softmax(-1))
    agree = (scores.argmax(1) == wanted.argmax(1)).float()
    report = {"draft": float(loss.detach()), "accept": float(agree.mean())}
    for name, kind in (("string", 2), ("think", 4)):
        chosen = agree[batch.kind[is_answer] == kind]
        if len(chosen):
            report[f"accept_{name}"] = float(chosen.mean())
    return loss, report
