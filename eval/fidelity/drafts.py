"""Acceptance of the drafts of multi-token prediction, along a model's own answers.

Speculative decoding checks a draft against the model itself ("Fast Inference from Transformers via
Speculative Decoding", arXiv 2211.17192, section 3). With greedy decoding it is accepted if it is
the model's most likely token, with sampling with the probability `sum_x min(p(x), q(x))`, where p
is the model's distribution and q the draft's. Here both are read along the stored answers (teacher
forcing), one draft per token, as if every draft before had been accepted. The first token of an
answer is not drafted: the module reads the token before the one that it predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...model.checkpoint import CheckpointReader
from ...model.features import Features
from ...model.mtp import PREFIX, MultiTokenPredictor, draft_states
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL
from ...quant.checkpoint.draft_module import open_predictor
from ..answering.predictions import Prediction
from ..answering.vision_features import FeatureCache
from ..tasks.task import Item
from .spread import spread
from .teacher_forcing import ANSWER_TOKENS

PROMPTS = 64
"""Answers of all benchmarks together that drafts are measured on, evenly spread."""


@dataclass
class DraftCounts:
    """Accepted drafts of some answers."""

    tokens: int = 0
    """Drafted tokens."""
    greedy: int = 0
    """Drafts that are the model's most likely token."""
    sampled: float = 0.0
    """Sum of the acceptance probabilities under sampling at temperature 1."""

    def add(self, model: Tensor, draft: Tensor) -> None:
        """Count drafted tokens.

        Args:
            model: the model's logits, float32 `[tokens, vocab]`.
            draft: logits of the drafts of the same tokens.
        """
        self.tokens += len(model)
        self.greedy += int((model.argmax(-1) == draft.argmax(-1)).sum())
        overlap = torch.minimum(model.softmax(-1), draft.softmax(-1)).sum(-1)
        self.sampled += float(overlap.sum(dtype=torch.float64))

    def to_dict(self) -> dict[str, Any]:
        """Return the shares as JSON values; None without a drafted token."""
        count = self.tokens
        return {
            "tokens": count,
            "greedy": self.greedy / count if count else None,
            "sampled": self.sampled / count if count else None,
        }


def has_predictor(folder: Path) -> bool:
    """Return whether a checkpoint has a module for multi-token prediction."""
    return any(name.startswith(PREFIX) for name in CheckpointReader(folder).names())


def measure_drafts(
    features: FeatureCache, folder: Path, answers: Sequence[tuple[Item, Prediction]]
) -> dict[str, Any] | None:
    """Measure how many drafts of a checkpoint's own module the model accepts.

    Args:
        features: the model with its processor and image features.
        folder: checkpoint of the model.
        answers: its own answers, of which up to `PROMPTS` are read.

    Returns:
        `prompts` and the figures of `DraftCounts`; None if the checkpoint has no such module.

    Raises:
        ValueError: the tensors of the module do not fit the model.
    """
    if not features.model.config.text.mtp_layers or not has_predictor(folder):
        return None
    predictor = open_predictor(folder, features.model)
    chosen = spread(answers, PROMPTS)
    counts = DraftCounts()
    for item, answer in chosen:
        count_drafts(features, predictor, item, answer, counts)
    return {"prompts": len(chosen), **counts.to_dict()}


@torch.inference_mode()
def count_drafts(
    features: FeatureCache,
    predictor: MultiTokenPredictor,
    item: Item,
    answer: Prediction,
    counts: DraftCounts,
) -> None:
    """Count the accepted drafts of one answer.

    Args:
        features: the model with its processor and image features.
        predictor: its module.
        item: the question.
        answer: the answer, of which up to `ANSWER_TOKENS` tokens are read.
        counts: updated.
    """
    model = features.model
    [length] = features.lengths([item])
    prompts, images = features.prompts([item], [answer.text])
    start = length - prompts[0].dropped_tokens
    # The last token is the end of turn, which a truncated answer did not generate.
    end = min(len(prompts[0]) - int(not answer.stopped), start + ANSWER_TOKENS)
    if end - start < 2:
        return
    own, drafted = aligned_logits(model, predictor, prompts[0], images[0], start, end)
    counts.add(own, drafted)


def aligned_logits(
    model: QwenVL,
    predictor: MultiTokenPredictor,
    prompt: Prompt,
    images: Sequence[Features],
    start: int,
    end: int,
) -> tuple[Tensor, Tensor]:
    """Compute the logits of the model and of its drafts for the same tokens.

    Args:
        model: in eval mode.
        predictor: its module.
        prompt: a prompt with its answer.
        images: features of its visuals.
        start: index of the answer's first token.
        end: index after its last one.

    Returns:
        Twice float32 `[end - start - 1, vocab]`, for tokens `start + 1` to `end - 1`.
    """
    batch = model.embed([prompt], [images])
    mask = batch.attention_mask()
    hidden = model.model(batch.embeds, batch.position_ids, mask, None, batch.added)
    states = draft_states(model, predictor, batch, hidden)
    # Token t is predicted by the model at t - 1, and drafted at t - 2.
    own = model.logits(hidden[0, start : end - 1])
    drafted = model.logits(states[0, start - 1 : end - 2])
    return own, drafted
