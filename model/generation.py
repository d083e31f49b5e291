"""Text generation: one prefill of a batch, then one token per step from the cache.

A prompt's result does not depend on what it is batched with but for rounding: padding is masked,
finished prompts leave the batch, and every prompt draws from its own random generator. What
prompts with the same visuals begin with is read once (`prefixes`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor

from .cache import KVCache
from .finite import not_finite
from .prefix_sharing import prefill
from .processing.inputs import Prompt
from .qwen_vl import QwenVL

LEAST_TEMPERATURE = 1e-6
"""Smallest temperature above 0: scores divided by less may overflow."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the default is greedy."""

    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # keep the most likely tokens that reach this probability together
    top_k: int = 0  # keep this many of the most likely tokens; 0: all
    repetition_penalty: float = 1.0  # > 1: tokens already seen get less likely (arXiv 1909.05858)
    seed: int = 0  # of every prompt's own generator

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature < math.inf):
            raise ValueError(
                f"temperature {self.temperature}: must be 0 (greedy), or a number from "
                f"{LEAST_TEMPERATURE:g}"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p}: must be above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k}: must be 0 (all tokens) or more")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty {self.repetition_penalty}: must be positive")


@dataclass(frozen=True)
class Generated:
    """What was generated for one prompt."""

    token_ids: tuple[int, ...]  # without the stop token
    stopped: bool  # False: cut off at max_new_tokens
    logits: Tensor | None = None  # float32 [decisions, vocab]: raw, one row per token and stop


@dataclass
class _Row:
    """One prompt while it is being continued."""

    index: int
    position: int
    generator: torch.Generator
    seen: Tensor  # bool [vocab]: for the repetition penalty
    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    stopped: bool = False

    def result(self) -> Generated:
        logits = torch.stack(self.logits) if self.logits else None
        return Generated(tuple(self.tokens), self.stopped, logits)


@torch.inference_mode()
def generate(
    model: QwenVL,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    features: Sequence[Sequence[Tensor]] | None = None,
    sampling: Sampling = Sampling(),  # frozen
    return_logits: bool = False,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Generated]:
    """Continue prompts.

    Args:
        model: In eval mode.
        prompts: At least one, of any lengths.
        max_new_tokens: Most tokens that are generated for a prompt.
        stop_ids: Tokens that end an answer.
        features: What `QwenVL.encode` gave for each prompt's visuals; computed when None.
        sampling: How the next token is chosen.
        return_logits: Whether the raw scores behind every decision are kept.
        on_token: Called with prompt index and token id as soon as a token is chosen; not for stop
            tokens.

    Raises:
        ValueError: No prompts, or `max_new_tokens` is under 1.
        NotFiniteError: The scores of a decision, or features of an image, are NaN or infinite.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens}: must be at least 1")
    if not prompts:
        raise ValueError("no prompts given; give at least one")
    rows = [_start(model, index, prompt, sampling) for index, prompt in enumerate(prompts)]
    hidden, cache, real = prefill(model, prompts, features, max_new_tokens)
    active = rows
    while True:
        logits = model.logits(hidden[:, -1])
        tokens = _choose_all(model, logits, active, sampling)
        going = _take_tokens(
            logits, active, tokens, stop_ids, max_new_tokens, return_logits, on_token
        )
        if not going:
            return [row.result() for row in rows]
        if len(going) < len(active):
            kept = torch.tensor(going, device=real.device)
            cache.select_rows(kept)
            real = real[kept]
            active = [active[place] for place in going]
        real = torch.cat([real, real.new_ones(len(active), 1)], dim=1)
        hidden = _decode(model, active, real, cache)


def _take_tokens(
    logits: Tensor,
    rows: Sequence[_Row],
    tokens: Sequence[int],
    stop_ids: Collection[int],
    max_new_tokens: int,
    return_logits: bool,
    on_token: Callable[[int, int], None] | None,
) -> list[int]:
    """Give every row its next token; returns the places of the rows that go on."""
    going = []
    for place, token in enumerate(tokens):
        row = rows[place]
        if return_logits:
            row.logits.append(logits[place])
        if token in stop_ids:
            row.stopped = True
            continue
        row.tokens.append(token)
        row.seen[token] = True
        if on_token is not None:
            on_token(row.index, token)
        if len(row.tokens) < max_new_tokens:
            going.append(place)
    return going


def _choose_all(
    model: QwenVL, logits: Tensor, rows: Sequence[_Row], sampling: Sampling
) -> list[int]:
    """The next token of every row; the highest score of each row is checked.

    NaN compares as the largest, and a row without one finite score has -inf as its largest, so
    the highest score is finite exactly where a choice means something.
    """
    best = logits.argmax(-1, keepdim=True)
    # One transfer from the device for all; float64 holds every token id and every float32.
    found = torch.cat([best.double(), logits.gather(-1, best).double()], dim=-1).tolist()
    if unusable := [place for place, (_, score) in enumerate(found) if not math.isfinite(score)]:
        _refuse(model, logits, rows, unusable)
    if sampling.temperature == 0 and sampling.repetition_penalty == 1.0:
        return [int(token) for token, _ in found]
    return [
        choose(scores, row.seen, sampling, row.generator)
        for scores, row in zip(logits, rows, strict=True)
    ]


def _refuse(
    model: QwenVL, logits: Tensor, rows: Sequence[_Row], unusable: Sequence[int]
) -> NoReturn:
    """Raise the error about rows whose scores are not finite."""
    places = [rows[place].index for place in unusable]
    step = len(rows[unusable[0]].tokens) + 1
    what = f"the scores for token {step} of the answer to prompt {places[0] + 1} are"
    raise not_finite(logits[unusable[0]], what, model, places)


def _start(model: QwenVL, index: int, prompt: Prompt, sampling: Sampling) -> _Row:
    seen = torch.zeros(model.config.text.vocab_size, dtype=torch.bool, device=model.device)
    seen[prompt.input_ids.to(model.device)] = True
    generator = torch.Generator(model.device).manual_seed(sampling.seed)
    return _Row(index, prompt.next_position, generator, seen)


def _decode(model: QwenVL, rows: Sequence[_Row], real: Tensor, cache: KVCache) -> Tensor:
    """Hidden states `[rows, 1, hidden]` of the token each row has just got.

    `real` tells which columns hold a token, the newest included.
    """
    device = model.device
    newest = torch.tensor([[row.tokens[-1]] for row in rows], device=device)
    positions = torch.tensor([[row.position + len(row.tokens) - 1] for row in rows], device=device)
    mask = None if bool(real.all()) else real[:, None, None]
    embeds = model.model.embed_tokens(newest)
    hidden: Tensor = model.model(embeds, positions.expand(3, -1, -1), mask, cache)
    return hidden


def choose(
    logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator | None = None
) -> int:
    """Choose one token.

    Args:
        logits: float32 `[vocab]`; not changed.
        seen: bool `[vocab]`, tokens that the repetition penalty applies to.
        sampling: The rule.
        generator: On the device of `logits`; needed when sampling.

    Raises:
        ValueError: The repetition penalty makes the scores overflow.
    """
    if sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        weakened = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(seen, weakened, logits)
        if not math.isfinite(float(logits.max())):
            raise ValueError(f"repetition_penalty {penalty}: the scores overflow; give one near 1")
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits = (logits - logits.max()) / sampling.temperature  # finite, however small it is
    if 0 < sampling.top_k < logits.numel():
        least = torch.topk(logits, sampling.top_k).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = torch.softmax(logits, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        # A token stays if those before it have not reached top_p yet; the first always does.
        keep = ordered.cumsum(0) - ordered < sampling.top_p
        probabilities = probabilities.masked_fill(~keep[order.argsort()], 0.0)
    return int(torch.multinomial(probabilities, 1, generator=generator))
