"""Text generation: one prefill of a batch, then one token per step from the KV cache.

Up to rounding, a prompt's result does not depend on the other prompts of its batch: padding is
masked, finished prompts leave the batch, and every prompt samples from its own random generator.
Prompts with the same visuals share the prefill of their common prefix (`prefix_sharing.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor

from .cache import KVCache
from .features import Features
from .finite import not_finite_error
from .prefix_sharing import prefill
from .processing.inputs import Prompt
from .qwen_vl import QwenVL

RESERVED_TOKENS = 2048
"""Generated tokens that the cache holds at first. Its size is doubled when they are used up:
few answers are as long as the limit of models that reason."""
MIN_TEMPERATURE = 1e-6
"""Smallest temperature above 0: logits divided by a smaller one may overflow float32."""


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters; the default is greedy decoding.

    Raises:
        ValueError: a parameter is out of range.
    """

    temperature: float = 0.0
    """0 is greedy; else at least `MIN_TEMPERATURE`."""
    top_p: float = 1.0
    """Nucleus sampling (arXiv 1904.09751): sample from the most likely tokens whose probabilities
    add up to `top_p`, above 0 to 1."""
    top_k: int = 0
    """Number of most likely tokens to sample from; 0: all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and the answer get less likely (arXiv 1909.05858, section
    4.1)."""
    seed: int = 0
    """Seed of every prompt's generator, unless `generate` gets one for each."""

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < math.inf):
            raise ValueError(
                f"temperature {self.temperature}: must be 0 (greedy), or a number from "
                f"{MIN_TEMPERATURE:g}"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p}: must be above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k}: must be 0 (all tokens) or more")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty {self.repetition_penalty}: must be positive")


@dataclass(frozen=True)
class Generated:
    """Generated tokens of one prompt."""

    token_ids: tuple[int, ...]
    """Without the stop token."""
    stopped: bool
    """False: truncated at `max_new_tokens`."""
    logits: Tensor | None = None
    """float32 `[decisions, vocab]`: before sampling, one row per token and one for the stop."""


@dataclass
class _Row:
    """State of one prompt during generation."""

    index: int  # of the prompt
    position: int  # position id of the first generated token
    generator: torch.Generator
    seen: Tensor  # bool [vocab]: tokens that the repetition penalty applies to
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
    features: Sequence[Sequence[Features]] | None = None,
    sampling: Sampling = Sampling(),  # frozen
    seeds: Sequence[int] | None = None,
    return_logits: bool = False,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Generated]:
    """Generate a continuation of every prompt.

    Args:
        model: in eval mode.
        prompts: at least one, of any lengths.
        max_new_tokens: maximum number of generated tokens per prompt.
        stop_ids: tokens that end an answer.
        features: result of `QwenVL.encode` for each prompt's visuals; None computes it.
        sampling: sampling parameters.
        seeds: seed of each prompt's generator, 0 to 2^64 - 1; None: `sampling.seed` for all.
        return_logits: whether the logits of every decision are returned.
        on_token: called with prompt index and token id as soon as a token is chosen, except for
            stop tokens.

    Raises:
        ValueError: there are no prompts, `max_new_tokens` is under 1, or the numbers of seeds and
            prompts differ.
        NotFiniteError: logits, or features of an image, are NaN or infinite.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens}: must be at least 1")
    if not prompts:
        raise ValueError("no prompts given; give at least one")
    if seeds is None:
        seeds = [sampling.seed] * len(prompts)
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one for each")
    rows = [
        _start(model, index, prompt, seed)
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]
    reserved = min(max_new_tokens, RESERVED_TOKENS)
    hidden, cache, is_token = prefill(model, prompts, features, reserved)
    largest = cache.capacity - reserved + max_new_tokens
    active = rows
    while True:
        logits = model.logits(hidden[:, -1])
        tokens = _sample_all(model, logits, active, sampling)
        unfinished = _append_tokens(
            logits, active, tokens, stop_ids, max_new_tokens, return_logits, on_token
        )
        if not unfinished:
            return [row.result() for row in rows]
        # Finished prompts leave the batch: a step's cost then follows the prompts still generating,
        # and answers differ in length by far.
        if len(unfinished) < len(active):
            selected = torch.tensor(unfinished, device=is_token.device)
            cache.select_rows(selected)
            is_token = is_token[selected]
            active = [active[index] for index in unfinished]
        is_token = torch.cat([is_token, is_token.new_ones(len(active), 1)], dim=1)
        if cache.length == cache.capacity:
            cache.grow(min(2 * cache.capacity, largest))
        hidden = _decode(model, active, is_token, cache)


def _append_tokens(
    logits: Tensor,
    rows: Sequence[_Row],
    tokens: Sequence[int],
    stop_ids: Collection[int],
    max_new_tokens: int,
    return_logits: bool,
    on_token: Callable[[int, int], None] | None,
) -> list[int]:
    """Append each row's token; return the indices of the rows that are not finished."""
    unfinished = []
    for index, token in enumerate(tokens):
        row = rows[index]
        if return_logits:
            row.logits.append(logits[index])
        if token in stop_ids:
            row.stopped = True
            continue
        row.tokens.append(token)
        row.seen[token] = True
        if on_token is not None:
            on_token(row.index, token)
        if len(row.tokens) < max_new_tokens:
            unfinished.append(index)
    return unfinished


def _sample_all(
    model: QwenVL, logits: Tensor, rows: Sequence[_Row], sampling: Sampling
) -> list[int]:
    """Sample the next token of every row, and check the highest logit of each.

    argmax treats NaN as the largest value, and the maximum of a row without a finite logit is -inf
    (or inf), so the highest logit is finite exactly if the row has a usable maximum. This costs one
    value per row; checking all logits would read the vocabulary again.
    """
    best = logits.argmax(-1, keepdim=True)
    # One transfer from the device for both; float64 represents every token id and every float32.
    maxima = torch.cat([best.double(), logits.gather(-1, best).double()], dim=-1).tolist()
    if invalid := [index for index, (_, logit) in enumerate(maxima) if not math.isfinite(logit)]:
        _refuse(model, logits, rows, invalid)
    if sampling.temperature == 0 and sampling.repetition_penalty == 1.0:
        return [int(token) for token, _ in maxima]
    return [
        sample_token(row_logits, row.seen, sampling, row.generator)
        for row_logits, row in zip(logits, rows, strict=True)
    ]


def _refuse(
    model: QwenVL, logits: Tensor, rows: Sequence[_Row], invalid: Sequence[int]
) -> NoReturn:
    """Raise the error about rows whose logits are not finite."""
    prompts = [rows[index].index for index in invalid]
    step = len(rows[invalid[0]].tokens) + 1
    subject = f"the scores for token {step} of the answer to prompt {prompts[0] + 1} are"
    raise not_finite_error(logits[invalid[0]], subject, model, prompts)


def _start(model: QwenVL, index: int, prompt: Prompt, seed: int) -> _Row:
    seen = torch.zeros(model.config.text.vocab_size, dtype=torch.bool, device=model.device)
    seen[prompt.input_ids.to(model.device)] = True
    generator = torch.Generator(model.device).manual_seed(seed)
    return _Row(index, prompt.next_position, generator, seen)


def _decode(model: QwenVL, rows: Sequence[_Row], is_token: Tensor, cache: KVCache) -> Tensor:
    """Run the decoder on each row's newest token, to `[rows, 1, hidden]`.

    `is_token` is bool `[rows, columns]`, False for padding, with the newest token's column.
    """
    device = model.device
    newest = torch.tensor([[row.tokens[-1]] for row in rows], device=device)
    positions = torch.tensor([[row.position + len(row.tokens) - 1] for row in rows], device=device)
    mask = None if bool(is_token.all()) else is_token[:, None, None]
    embeds = model.model.embed_tokens(newest)
    hidden: Tensor = model.model(embeds, positions.expand(3, -1, -1), mask, cache)
    return hidden


def sample_token(
    logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator | None = None
) -> int:
    """Sample one token: repetition penalty, temperature, top-k, top-p, in this order.

    Args:
        logits: float32 `[vocab]`; not changed.
        seen: bool `[vocab]`, tokens that the repetition penalty applies to.
        sampling: sampling parameters.
        generator: on the device of `logits`; None, with a temperature above 0, is torch's own.

    Returns:
        A token id.

    Raises:
        ValueError: the repetition penalty makes the logits overflow.
    """
    logits = penalize(logits, seen, sampling)
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = _restrict(logits, sampling)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def sampling_distribution(logits: Tensor, seen: Tensor, sampling: Sampling) -> Tensor:
    """Compute the distribution that `sample_token` samples from at a temperature above 0.

    Args:
        logits: float32 `[vocab]`; not changed.
        seen: bool `[vocab]`, tokens that the repetition penalty applies to.
        sampling: with a temperature above 0.

    Returns:
        float32 `[vocab]`; its sum may differ from 1.

    Raises:
        ValueError: the repetition penalty makes the logits overflow.
    """
    return _restrict(penalize(logits, seen, sampling), sampling)


def penalize(logits: Tensor, seen: Tensor, sampling: Sampling) -> Tensor:
    """Apply the repetition penalty; arguments as in `sample_token`.

    Raises:
        ValueError: the repetition penalty makes the logits overflow.
    """
    if sampling.repetition_penalty == 1.0:
        return logits
    # Division would raise a negative logit, so the penalty multiplies it instead.
    penalty = sampling.repetition_penalty
    weakened = torch.where(logits > 0, logits / penalty, logits * penalty)
    logits = torch.where(seen, weakened, logits)
    if not math.isfinite(float(logits.max())):
        raise ValueError(f"repetition_penalty {penalty}: the scores overflow; give one near 1")
    return logits


def _restrict(logits: Tensor, sampling: Sampling) -> Tensor:
    """Apply temperature, top-k and top-p; returns probabilities that may sum to less than 1."""
    # With the maximum at 0, a small temperature drives logits to -inf at most, never to inf.
    logits = (logits - logits.max()) / sampling.temperature
    if 0 < sampling.top_k < logits.numel():
        threshold = torch.topk(logits, sampling.top_k).values[-1]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    probabilities = torch.softmax(logits, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        # A token belongs to the nucleus if the more likely ones add up to less than top_p; the
        # most likely token always does.
        in_nucleus = ordered.cumsum(0) - ordered < sampling.top_p
        probabilities = probabilities.masked_fill(~in_nucleus[order.argsort()], 0.0)
    return probabilities
