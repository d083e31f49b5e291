"""Decoding of one prompt with drafts: the model reads several in one pass and keeps a prefix.

A pass reads the newest token and g drafts, and gives the answer 1 to g + 1 tokens. Keys and values
of rejected drafts are removed from the cache, states of linear attention are restored. Positions
need no more than a counter: those of text are equal in all three components of M-RoPE.

The answer has the distribution of plain decoding, and is the same one with greedy decoding, up to
rounding: products with several rows may round differently from those with one, which changes a
token where the two highest scores are almost equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cache import KVCache
from ..features import Features
from ..finite import not_finite_error
from ..generation import RESERVED_TOKENS, Generated, Sampling
from ..processing.inputs import Prompt
from ..qwen_vl import QwenVL
from .drafts import Chooser, Drafter, verify

GREEDY = Sampling()


@dataclass(frozen=True)
class Speculated:
    """An answer, and how many drafts it took."""

    generated: Generated
    passes: int
    """Passes of the model after the prompt."""
    drafted: int
    """Drafts that the model has read, without those after the end of the answer."""
    accepted: int
    """Drafts among them that it accepted, the stop token included."""

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens of the answer per pass, the stop token included; None without a pass.

        The first token follows from the prompt.
        """
        tokens = len(self.generated.token_ids) - 1 + int(self.generated.stopped)
        return tokens / self.passes if self.passes else None


@torch.inference_mode()
def generate_with_drafts(
    model: QwenVL,
    prompt: Prompt,
    drafter: Drafter,
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    draft_tokens: int = 4,
    features: Sequence[Features] | None = None,
    sampling: Sampling = GREEDY,
    on_token: Callable[[int], None] | None = None,
) -> Speculated:
    """Generate a continuation of one prompt, as `generation.generate` does, with drafts.

    Args:
        model: in eval mode.
        prompt: the prompt.
        drafter: proposes tokens; one that has not begun another answer.
        max_new_tokens: maximum number of generated tokens.
        stop_ids: tokens that end an answer.
        draft_tokens: drafts per pass, at least 1.
        features: result of `QwenVL.encode` for the prompt's visuals; None computes it.
        sampling: sampling parameters. Sampled answers have the same distribution as those of
            `generate`, but are not the same ones for a seed.
        on_token: called with each token of the answer.

    Raises:
        ValueError: `max_new_tokens` or `draft_tokens` is under 1.
        NotFiniteError: logits, or features of an image, are NaN or infinite.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("draft_tokens", draft_tokens)):
        if value < 1:
            raise ValueError(f"{name} {value}: must be at least 1")
    answer = _Answer(model, prompt, sampling, max_new_tokens, stop_ids, on_token)
    prompts, given = model.reduce([prompt], None if features is None else [features])
    batch = model.embed(prompts, given)
    cache = model.new_cache(1, len(prompts[0]) + min(max_new_tokens, RESERVED_TOKENS) + 1)
    hidden = model.model(
        batch.embeds, batch.position_ids, batch.attention_mask(), cache, batch.added
    )
    drafter.begin(batch, hidden, prompt.next_position)
    first = model.logits(hidden[:, -1])
    answer.check(first)
    answer.append([answer.chooser.choose(first[0]).token])
    passes = drafted = accepted = 0
    while not answer.is_finished:
        count = min(draft_tokens, answer.remaining - 1)
        drafts = drafter.propose(answer.chooser, count) if count else []
        hidden = _read(model, answer, [draft.token for draft in drafts], cache)
        logits = model.logits(hidden[0])
        answer.check(logits)
        agreed, own = verify(answer.chooser, logits, drafts)
        cache.roll_back(len(drafts) - agreed)
        tokens = [draft.token for draft in drafts[:agreed]]
        drafter.accept(hidden[:, : agreed + 1], tokens)
        answer.append([*tokens, own])
        passes += 1
        end = next((count for count, token in enumerate(tokens, 1) if token in stop_ids), None)
        drafted += len(drafts) if end is None else end
        accepted += agreed if end is None else end
    return Speculated(answer.result(), passes, drafted, accepted)


def _read(model: QwenVL, answer: _Answer, drafts: Sequence[int], cache: KVCache) -> Tensor:
    """Run the decoder on the newest token and drafts, to `[1, 1 + drafts, hidden]`."""
    known = answer.chooser.tokens
    missing = cache.length + 1 + len(drafts) - cache.capacity
    if missing > 0:
        cache.grow(max(2 * cache.capacity, cache.capacity + missing))
    cache.keep_states()
    return read_tokens(model, [known[-1], *drafts], answer.position + len(known) - 1, cache)


def read_tokens(model: QwenVL, tokens: Sequence[int], position: int, cache: KVCache) -> Tensor:
    """Run the decoder on consecutive text tokens, to final hidden states `[1, T, hidden]`.

    Args:
        model: in eval mode.
        tokens: at least one.
        position: position id of the first.
        cache: holds all tokens before them.
    """
    ids = torch.tensor([list(tokens)], device=model.device)
    positions = position + torch.arange(len(tokens), device=model.device)
    embeds = model.model.embed_tokens(ids)
    hidden: Tensor = model.model(embeds, positions.expand(3, 1, -1), None, cache)
    return hidden


class _Answer:
    """The answer so far and the rules that end it."""

    def __init__(
        self,
        model: QwenVL,
        prompt: Prompt,
        sampling: Sampling,
        max_new_tokens: int,
        stop_ids: Collection[int],
        on_token: Callable[[int], None] | None,
    ) -> None:
        seen = torch.zeros(model.config.text.vocab_size, dtype=torch.bool, device=model.device)
        seen[prompt.input_ids.to(model.device)] = True
        generator = torch.Generator(model.device).manual_seed(sampling.seed)
        self.chooser = Chooser(sampling, seen, generator)
        self.position = prompt.next_position
        self._model, self._stop_ids, self._on_token = model, stop_ids, on_token
        self._max_new_tokens = max_new_tokens
        self._stopped = False

    @property
    def remaining(self) -> int:
        """Number of tokens that may still be generated."""
        return self._max_new_tokens - len(self.chooser.tokens)

    @property
    def is_finished(self) -> bool:
        return self._stopped or self.remaining <= 0

    def append(self, tokens: Sequence[int]) -> None:
        """Append tokens up to the first stop token."""
        for token in tokens:
            if token in self._stop_ids:
                self._stopped = True
                return
            self.chooser.append(token)
            if self._on_token is not None:
                self._on_token(token)

    def check(self, logits: Tensor) -> None:
        """Refuse logits `[rows, vocab]` of which a maximum is not finite."""
        for row, largest in enumerate(logits.amax(-1).tolist()):
            if not math.isfinite(largest):
                step = len(self.chooser.tokens) + row + 1
                subject = f"the scores for token {step} of the answer are"
                raise not_finite_error(logits[row], subject, self._model, [0])

    def result(self) -> Generated:
        return Generated(tuple(self.chooser.tokens), self._stopped)
