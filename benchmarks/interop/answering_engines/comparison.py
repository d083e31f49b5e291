"""Answers of an engine and of vlpress to the same questions, and when they count as equal.

For engines that are asked questions, with their own chat template, image processing and
generation. The lengths of the prompts must be equal, and greedy answers too, except where vlpress
prefers its own token by no more than log-probabilities may differ at the first difference: a tie.
The log-probabilities of the first token show far smaller differences; how large they may be depends
on the activations:

- float32: the rounding of another order of summation, `FLOAT_BOUND`.
- int8: a difference in the last digit moves a value across a rounding boundary, and the later
  roundings of that token with it. The bound is a multiple of the distance of the model from itself
  under noise of that size (`noise_spread`).
- bf16: a multiple of the distance of the model in bf16 from itself in float32 (`dtype_spread`),
  whatever the activations.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from vlpress.eval import open_task
from vlpress.eval.config import BUILTIN_BENCHES
from vlpress.eval.tasks.task import Item
from vlpress.model.generation import generate
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import open_model

STYLE = "vlmevalkit-default"
LIMIT = 12
"""Questions of each built-in benchmark; those of MMBench in up to four rotations."""
BATCH = 8
NOISE = 1e-6
"""Relative noise on the inputs of the first layers: ten times the rounding of float32."""
NOISE_SEEDS = (0, 1, 2)
SPREADS = 2.0
"""Differences may be this multiple of the model's own spread."""


@dataclass(frozen=True)
class Difference:
    """Differences of log-probabilities in nats."""

    largest: float
    mean: float
    """Mean over the prompts of the mean over their tokens."""

    def __le__(self, bound: Difference) -> bool:
        return self.largest <= bound.largest and self.mean <= bound.mean

    def times(self, factor: float) -> Difference:
        """Multiply both."""
        return Difference(self.largest * factor, self.mean * factor)


FLOAT_BOUND = Difference(1e-4, 2e-5)


@dataclass(frozen=True)
class Answer:
    """An engine's answer to one question."""

    text: str
    prompt_tokens: int
    """Image tokens included."""
    first: Mapping[int, float]
    """Log-probabilities of the likeliest first tokens by token id; empty if not known."""


@dataclass(frozen=True)
class Reference:
    """The answers of vlpress by question."""

    texts: Mapping[str, str]
    prompt_tokens: Mapping[str, int]
    first: Mapping[str, Tensor]
    """float32 `[vocab]`: log-probabilities of the first token."""
    bound: Difference
    margin: Callable[[str, str], float] = lambda key, text: math.inf
    """By how many nats vlpress prefers its token where another answer to a question differs first;
    the default allows no other answer."""


@dataclass(frozen=True)
class Agreement:
    """Comparison of an engine's answers with those of vlpress."""

    questions: int
    same_answers: int
    same_prompt_lengths: int
    difference: Difference | None
    """Of the log-probabilities; None if the engine does not return them."""
    bound: Difference
    examples: tuple[str, ...]
    """Some of the differing answers, and their margins."""
    ties: int = 0
    """Differing answers whose margins are within the bound."""

    @property
    def passed(self) -> bool:
        """Whether answers, but for ties, and lengths are equal and differences within the bound."""
        is_equal = self.same_answers + self.ties == self.same_prompt_lengths == self.questions
        return is_equal and (self.difference is None or self.difference <= self.bound)


def questions() -> dict[str, Item]:
    """Sampled questions of the built-in benchmarks by benchmark and id."""
    tasks = [open_task(name, prompt_style=STYLE, limit=LIMIT) for name in BUILTIN_BENCHES]
    return {f"{task.name} {item.id}": item for task in tasks for item in task.items}


def sample(items: Mapping[str, Item], number: int) -> dict[str, Item]:
    """Every n-th question, `number` in total."""
    return dict(islice(list(items.items())[:: len(items) // number], number))


def write_questions(items: Mapping[str, Item], path: Path) -> None:
    """Write questions for another environment: parts of text, or of image files in base64."""
    rows = {
        key: [_part(part) for part in item.messages[0]["content"]] for key, item in items.items()
    }
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def _part(part: Mapping[str, Any]) -> tuple[str, str]:
    if part["type"] == "text":
        return "text", part["text"]
    return "image", base64.b64encode(part["image"].read()).decode()


def encode(
    processor: Processor,
    item: Item,
    answer: str | None = None,
    *,
    answer_is_generated: bool = False,
) -> Prompt:
    """Tokenize a question, with its images decoded as `vlpress eval` does."""
    bounds = item.pixels.area if item.pixels else None
    visuals = [processor.image(image.open(), bounds) for image in item.images]
    return processor.encode(
        item.messages, answer=answer, answer_is_generated=answer_is_generated, visuals=visuals
    )


def read_answers(rows: Mapping[str, Any]) -> dict[str, Answer]:
    """Answers from the output of an engine's script."""
    return {
        key: Answer(
            row["text"],
            row["prompt_tokens"],
            {int(token): value for token, value in row["first"].items()},
        )
        for key, row in rows.items()
    }


def compare(reference: Reference, answers: Mapping[str, Answer]) -> Agreement:
    """Compare an engine's answers with the reference.

    Raises:
        ValueError: the engine did not answer the same questions.
    """
    if odd := sorted(answers.keys() ^ reference.texts.keys()):
        raise ValueError(f"{len(odd)} questions were answered by one side only, first {odd[0]}")
    margins = {
        key: reference.margin(key, answer.text)
        for key, answer in answers.items()
        if answer.text != reference.texts[key]
    }
    return Agreement(
        questions=len(answers),
        same_answers=len(answers) - len(margins),
        same_prompt_lengths=sum(
            answer.prompt_tokens == reference.prompt_tokens[key] for key, answer in answers.items()
        ),
        difference=logprob_difference(
            [(reference.first[key], answer.first) for key, answer in answers.items()]
        ),
        bound=reference.bound,
        examples=tuple(
            f"{key}: {answers[key].text!r} for {reference.texts[key]!r}, margin {margin:.2g} nats"
            for key, margin in islice(margins.items(), 3)
        ),
        ties=sum(abs(margin) <= reference.bound.largest for margin in margins.values()),
    )


def logprob_difference(
    pairs: Sequence[tuple[Tensor, Mapping[int, float]]],
) -> Difference | None:
    """Compare log-probabilities `[vocab]` with those of some tokens, over all prompts.

    A value that is not finite counts as infinite. None if there are no tokens.
    """
    rows = []
    for expected, given in pairs:
        if given:
            ids = torch.tensor(list(given))
            gaps = (expected[ids] - torch.tensor(list(given.values()))).abs()
            rows.append(gaps.nan_to_num(torch.inf))
    if not rows:
        return None
    largest = max(float(row.max()) for row in rows)
    return Difference(largest, fmean(float(row.mean()) for row in rows))


def ask_vlpress(
    folder: Path,
    items: Mapping[str, Item],
    *,
    dtype: str,
    max_new_tokens: int,
    int8: bool,
    adapt: Callable[[QwenVL], object] | None = None,
) -> Reference:
    """Ask a checkpoint the same questions in this process.

    Args:
        folder: float or quantized checkpoint.
        items: questions by name.
        dtype: fp32 or bf16.
        max_new_tokens: maximum length of an answer.
        int8: whether its layers quantize activations to int8.
        adapt: changes the loaded model in place, to compute as the engine documents.
    """
    processor = Processor.from_folder(folder)
    prompts = [encode(processor, item) for item in items.values()]
    model = open_model(folder, device="cpu", dtype=dtype)
    if adapt is not None:
        adapt(model)
    with torch.inference_mode():
        texts = []
        for batch in _batches(prompts):
            kept = generate(
                model, batch, max_new_tokens=max_new_tokens, stop_ids=processor.stop_ids
            )
            texts += [processor.decode(answer.token_ids) for answer in kept]
        first = first_logprobs(model, prompts)
        bound = FLOAT_BOUND
        if dtype != "fp32":  # also with int8 activations: bf16 does not hold the small noise
            bound = dtype_spread(folder, prompts, first).times(SPREADS)
        elif int8:
            bound = noise_spread(model, prompts, first).times(SPREADS)
    lengths = {key: len(prompt) for key, prompt in zip(items, prompts, strict=True)}
    expected = dict(zip(items, texts, strict=True))
    return Reference(
        expected,
        lengths,
        dict(zip(items, first, strict=True)),
        bound,
        lambda key, text: margin(model, processor, items[key], expected[key], text),
    )


def margin(model: QwenVL, processor: Processor, item: Item, expected: str, given: str) -> float:
    """By how many nats the model prefers the expected answer's token where two differ first.

    Infinite if an answer is empty.
    """
    own, other = (
        encode(processor, item, text, answer_is_generated=True) for text in (expected, given)
    )
    if not own.answer_tokens or not other.answer_tokens:
        return math.inf
    ids, others = (prompt.input_ids[-prompt.answer_tokens :].tolist() for prompt in (own, other))
    return token_margin(model, encode(processor, item), ids, others, processor.stop_ids)


@torch.inference_mode()
def token_margin(
    model: QwenVL,
    prompt: Prompt,
    expected: Sequence[int],
    given: Sequence[int],
    stop_ids: Collection[int],
) -> float:
    """By how many nats the model prefers the token of an answer where another differs first.

    Args:
        model: any.
        prompt: without an answer.
        expected: tokens of an answer; behind the last one, it ends with one of `stop_ids`.
        given: tokens of the other answer.
        stop_ids: tokens that end an answer.

    Returns:
        0 if the answers are equal.
    """
    pairs = zip_longest(expected, given)
    first = next((index for index, (one, other) in enumerate(pairs) if one != other), None)
    if first is None:
        return 0.0
    before = torch.tensor(expected[:first], dtype=torch.int64)
    positions = prompt.next_position + torch.arange(first).expand(3, first)
    longer = replace(
        prompt,
        input_ids=torch.cat([prompt.input_ids, before]),
        position_ids=torch.cat([prompt.position_ids, positions], 1),
    )
    logits = model([longer], None, [1])[0][-1].log_softmax(-1)
    tokens = (list(ids[first : first + 1]) or sorted(stop_ids) for ids in (expected, given))
    own, other = (float(logits[ids].max()) for ids in tokens)
    return own - other


def first_logprobs(model: QwenVL, prompts: Sequence[Prompt]) -> list[Tensor]:
    """Log-probabilities `[vocab]` of each prompt's first token."""
    rows: list[Tensor] = []
    for batch in _batches(prompts):
        rows += [logits[-1].log_softmax(-1) for logits in model(batch, None, [1] * len(batch))]
    return rows


def noise_spread(model: QwenVL, prompts: Sequence[Prompt], first: Sequence[Tensor]) -> Difference:
    """Distance of a model from itself under relative noise on the inputs of its first layers.

    Args:
        model: quantized, with int8 activations.
        prompts: questions.
        first: its log-probabilities without noise.

    Returns:
        The largest over `NOISE_SEEDS`.
    """
    spreads = []
    for seed in NOISE_SEEDS:
        with _noise(model, seed):
            spreads.append(_distance(first, first_logprobs(model, prompts)))
    return Difference(max(s.largest for s in spreads), max(s.mean for s in spreads))


def dtype_spread(folder: Path, prompts: Sequence[Prompt], first: Sequence[Tensor]) -> Difference:
    """Distance of log-probabilities from those of the same checkpoint in float32."""
    model = open_model(folder, device="cpu", dtype="fp32")
    return _distance(first, first_logprobs(model, prompts))


TOP = 20


def _distance(first: Sequence[Tensor], other: Sequence[Tensor]) -> Difference:
    """Difference over the tokens that are likeliest in `other`, as an engine returns them."""
    tops = [row.topk(TOP) for row in other]
    given = [dict(zip(t.indices.tolist(), t.values.tolist(), strict=True)) for t in tops]
    difference = logprob_difference(list(zip(first, given, strict=True)))
    assert difference is not None
    return difference


@contextmanager
def _noise(model: QwenVL, seed: int) -> Iterator[None]:
    """Multiply the inputs of the first layer of tower and decoder by 1 + `NOISE` * N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)

    def disturb(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = inputs
        noise = torch.randn(hidden.shape, generator=generator, dtype=hidden.dtype)
        return (hidden * (1 + NOISE * noise), *rest)

    layers = (model.visual.blocks[0], model.model.layers[0])
    hooks = [layer.register_forward_pre_hook(disturb) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _batches(prompts: Sequence[Prompt]) -> Iterator[Sequence[Prompt]]:
    for start in range(0, len(prompts), BATCH):
        yield prompts[start : start + BATCH]
