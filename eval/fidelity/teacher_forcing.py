"""Teacher forcing: a model's logits at each token of a given answer.

The end-of-turn token is last and reported separately: it is nearly certain in most models and
would dominate short answers. An answer with a reasoning is read from the start of the reasoning;
of a long one, only the reasoning is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...model.finite import NotFiniteError, check_finite
from ...model.processing.inputs import Prompt
from ...model.processing.processor import Processor
from ..answering.local_reasoning import count_prefix
from ..answering.predictions import Prediction
from ..answering.vision_features import FeatureCache
from ..tasks.task import Item

ANSWER_TOKENS = 512
"""Tokens of a reasoning and its answer that are read; bounds the logits in memory."""


@dataclass(frozen=True)
class ForcedAnswer:
    """Logits of one answer under teacher forcing."""

    logits: Tensor
    """Logits that predict each token of the answer, `[tokens, vocab]`; the end-of-turn token is
    last if `ended`."""
    tokens: Tensor
    """The tokens, int64 `[tokens]`."""
    first: Tensor | None
    """Logits that predict the first token after the reasoning, `[vocab]`; present even for an empty
    answer. None if the reasoning was not read to its end, or has none."""
    ended: bool
    """Whether the end-of-turn token is included: the model stopped by itself, within the cap."""
    reasoning: int = 0
    """Number of the first tokens that belong to the reasoning."""


@torch.inference_mode()
def read_answers(
    features: FeatureCache, items: Sequence[Item], answers: Sequence[Prediction]
) -> list[ForcedAnswer]:
    """Run a model over one batch of questions with their answers.

    Args:
        features: the model with its processor and image features.
        items: the questions.
        answers: the answer to each question.

    Raises:
        NotFiniteError: a logit is NaN or infinite; the message names the item.
    """
    model = features.model
    lengths = features.lengths(items)
    prompts, images = features.prompts(items, [answer.text for answer in answers])
    starts = [n - prompt.dropped_tokens for n, prompt in zip(lengths, prompts, strict=True)]
    reasoning = [
        _count_reasoning(prompt.input_ids[start:], answer, features.processor)
        for prompt, start, answer in zip(prompts, starts, answers, strict=True)
    ]
    counts, ends = [], []
    for row, (prompt, start, answer) in enumerate(zip(prompts, starts, answers, strict=True)):
        # The last token is the end of turn, which a truncated answer did not generate.
        count = len(prompt) - start - int(not answer.stopped)
        ends.append(answer.stopped and count <= ANSWER_TOKENS)
        counts.append(min(count, ANSWER_TOKENS))
        prompts[row] = _truncate(prompt, start + counts[row])
    all_logits = model(prompts, images, [count + 1 for count in counts])
    forced = []
    for row, (item, prompt, logits) in enumerate(zip(items, prompts, all_logits, strict=True)):
        try:
            check_finite(logits, "the scores along the given answer are", model)
        except NotFiniteError as error:
            raise error.within(f"item {item.id}") from error
        # The row before a token predicts it, so the last row predicts the token after the answer.
        tokens = prompt.input_ids[starts[row] :].to(logits.device)
        count, begin = counts[row], reasoning[row]
        first = None if answers[row].is_unfinished or begin > count else logits[begin]
        forced.append(
            ForcedAnswer(logits[:count], tokens, first, ends[row], min(begin, count - ends[row]))
        )
    return forced


def _count_reasoning(ids: Tensor, answer: Prediction, processor: Processor) -> int:
    """Count the tokens of the reasoning at the beginning of a stored answer.

    Args:
        ids: tokens of the whole text with the end-of-turn token, int64 `[tokens]`.
        answer: the stored answer.
        processor: processor of the model.
    """
    if answer.reasoning is None:
        return 0
    if answer.is_unfinished:
        return len(ids) - 1
    return count_prefix(ids.tolist(), processor.decode, len(answer.reasoning))


def _truncate(prompt: Prompt, tokens: int) -> Prompt:
    return replace(
        prompt,
        input_ids=prompt.input_ids[:tokens],
        position_ids=prompt.position_ids[:, :tokens],
    )
