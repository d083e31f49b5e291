"""Teacher forcing: what a model expects at each token of an answer that is given.

The end-of-turn token comes last and apart: it is nearly certain in most models and would flatter
short answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...model.finite import NotFiniteError, check_finite
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL
from ..answering.predictions import Prediction
from ..answering.vision_features import FeatureCache
from ..tasks.task import Item

ANSWER_TOKENS = 512  # of an answer that are read at most; bounds the logits held at once


@dataclass(frozen=True)
class ForcedAnswer:
    """One answer as a model read it."""

    logits: Tensor
    """Before each token of the answer, ``[tokens, vocab]``; the end of turn last if `ended`."""
    tokens: Tensor
    """The tokens themselves, int64 ``[tokens]``."""
    first: Tensor
    """Before the first token, ``[vocab]``, even if there is none."""
    ended: bool
    """Whether the end-of-turn token is among them: the model ended by itself, within the cap."""


@torch.inference_mode()
def read_answers(
    model: QwenVL, cache: FeatureCache, items: Sequence[Item], answers: Sequence[Prediction]
) -> list[ForcedAnswer]:
    """Let a model read one batch of questions with their answers.

    Args:
        model: one of the models of the cache, which must hold it alone.
        cache: turns items into prompts.
        items: the questions.
        answers: what is said to each.

    Raises:
        NotFiniteError: a logit is NaN or infinite; the message names the item.
    """
    asked, _ = cache.prompts(items)
    full, (features,) = cache.prompts(items, [answer.prediction for answer in answers])
    counts, ends = [], []
    for row, (prompt, question, answer) in enumerate(zip(full, asked, answers, strict=True)):
        # The last token is the end of turn; who was cut off did not choose it.
        count = len(prompt) - len(question) - int(not answer.stopped)
        ends.append(answer.stopped and count <= ANSWER_TOKENS)
        counts.append(min(count, ANSWER_TOKENS))
        full[row] = _cut(prompt, len(question) + counts[row])
    read = model(full, features, [count + 1 for count in counts])
    found = []
    for item, logits in zip(items, read, strict=True):
        try:
            check_finite(logits, "the scores along the given answer are", model)
        except NotFiniteError as error:
            raise error.within(f"item {item.id}") from error
    for prompt, question, logits, count, ended in zip(full, asked, read, counts, ends, strict=True):
        # The row before a token predicts it, so the last row says what would come next.
        tokens = prompt.input_ids[len(question) :].to(logits.device)
        found.append(ForcedAnswer(logits[:count], tokens, logits[0], ended))
    return found


def _cut(prompt: Prompt, tokens: int) -> Prompt:
    return replace(
        prompt,
        input_ids=prompt.input_ids[:tokens],
        position_ids=prompt.position_ids[:, :tokens],
    )
