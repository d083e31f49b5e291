"""Drafts of a second model, such as a quantized form of the first one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cache import KVCache
from ..features import Features
from ..generation import RESERVED_TOKENS
from ..processing.inputs import Batch, Prompt
from ..qwen_vl import QwenVL
from .decoding import read_tokens
from .drafts import Choice, Chooser


class ModelDrafter:
    """Decodes drafts with a model, one by one.

    Args:
        model: with the tokenizer of the model that checks the drafts; in eval mode. It may be of
            another size or family.
        prompt: the prompt, encoded for this model.
        vocabulary: number of logits of the model that checks the drafts.
        features: of its visuals, computed by this model; None computes them.
    """

    def __init__(
        self,
        model: QwenVL,
        prompt: Prompt,
        vocabulary: int,
        features: Sequence[Features] | None = None,
    ) -> None:
        self.model, self._prompt, self._vocabulary = model, prompt, vocabulary
        self._features = features
        self._cache: KVCache | None = None
        self._read: list[int] = []  # tokens of the answer, and drafts, that are in the cache

    def begin(self, batch: Batch, hidden: Tensor, position: int) -> None:
        """See `Drafter.begin`; this model reads the prompt itself."""
        given = None if self._features is None else [self._features]
        prompts, features = self.model.reduce([self._prompt], given)
        own = self.model.embed(prompts, features)
        self._cache = self.model.new_cache(1, len(prompts[0]) + RESERVED_TOKENS)
        self.model.model(own.embeds, own.position_ids, own.attention_mask(), self._cache, own.added)

    def propose(self, chooser: Chooser, count: int) -> list[Choice]:
        """See `Drafter.propose`."""
        cache = self._cache
        assert cache is not None
        known = chooser.tokens
        # The newest token is read again if need be: its logits are those of the first draft.
        same = min(_common_length(self._read, known), len(known) - 1)
        cache.roll_back(len(self._read) - same)
        del self._read[same:]
        cache.keep_states()
        drafts: list[Choice] = []
        for _ in range(count):
            new = [drafts[-1].token] if drafts else known[same:]
            logits = self._logits(new, cache)
            drafts.append(chooser.choose(logits, [draft.token for draft in drafts]))
        return drafts

    def accept(self, hidden: Tensor, drafts: Sequence[int]) -> None:
        """See `Drafter.accept`; the next proposal compares the tokens."""

    def _logits(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        """Read tokens; return the logits after the last one, as wide as the checking model's."""
        if cache.length + len(tokens) > cache.capacity:
            cache.grow(2 * cache.capacity)
        position = self._prompt.next_position + len(self._read)
        hidden = read_tokens(self.model, tokens, position, cache)
        self._read += tokens
        logits = self.model.logits(hidden[0, -1])[: self._vocabulary]
        missing = self._vocabulary - len(logits)
        return F.pad(logits, (0, missing), value=-torch.inf) if missing else logits


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length
