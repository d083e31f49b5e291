"""Packed conversations for a decoder with linear attention, whose state has no mask.

The prefixes of a batch run first, then all questions, each from the state after its prefix. Both
are padded on the left, as such layers need it.

Letters in shapes: B conversations, T tokens of a padded conversation, P tokens of the longest
prefix, N questions of the batch, L tokens of the longest question, H hidden size, R rotary pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlpress.model.cache import KVCache, LinearState
from vlpress.model.config import TextConfig

Step = Callable[[Tensor, Tensor, Tensor, Tensor, KVCache], Tensor]
"""A layer or a part of one: hidden states, cosines, sines, mask and cache, as `DecoderLayer`."""


class PrefixCache(KVCache):
    """Keys, values and states of prefixes, from which questions continue. Differentiable."""

    def __init__(self, config: TextConfig, batch: int) -> None:
        super().__init__(config, batch, 0)
        self.owner: Tensor | None = None  # prefix of each question; None: the prefixes run
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store those of prefixes; put those of its prefix in front of a question's."""
        if self.owner is None:
            self._pairs[layer] = keys, values
            return keys, values
        old_keys, old_values = (part[self.owner] for part in self._pairs[layer])
        return torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2)

    def linear_state(self, layer: int, like: Tensor) -> LinearState:
        """Return the state after the prefix of each question, or before the prefixes."""
        state = super().linear_state(layer, like)
        return state if self.owner is None else state.select(self.owner)

    def set_linear_state(self, layer: int, state: LinearState) -> None:
        """Store the state after prefixes; those after questions are not needed."""
        if self.owner is None:
            super().set_linear_state(layer, state)


@dataclass(frozen=True)
class Rows:
    """Left-padded sequences of tokens of a packed batch."""

    index: Tensor  # int64 [rows, tokens], of the flat batch [B * T]; 0 for padding
    is_token: Tensor  # bool [rows, tokens]

    def gather(self, x: Tensor) -> Tensor:
        """Select the tokens of `[B, T, ...]`, to `[rows, tokens, ...]`."""
        flat = x.flatten(0, 1).index_select(0, self.index.flatten())
        return flat.view(*self.index.shape, *x.shape[2:])

    def scatter(self, into: Tensor, values: Tensor) -> Tensor:
        """Return `into`, `[B * T, H]`, with the tokens replaced by `values` `[rows, tokens, H]`."""
        where = self.index[self.is_token]
        return into.index_put((where,), values[self.is_token].to(into.dtype))


def _rows(places: list[Tensor]) -> Rows:
    longest = max(map(len, places), default=0)
    index = torch.zeros(len(places), longest, dtype=torch.int64)
    is_token = torch.zeros(len(places), longest, dtype=torch.bool)
    for row, place in enumerate(places):
        index[row, longest - len(place) :] = place
        is_token[row, longest - len(place) :] = True
    return Rows(index, is_token)


class Segments:
    """The prefixes and questions of a packed batch, with what layers need beside hidden states.

    Args:
        segment: int64 `[B, T]` of `PackedBatch`.
        cos: `[B, T, R]`.
        sin: `[B, T, R]`.
    """

    def __init__(self, segment: Tensor, cos: Tensor, sin: Tensor) -> None:
        self.shape = segment.shape
        prefixes, questions, owners = [], [], []
        for row, of_row in enumerate(segment):
            first = row * segment.shape[1]
            prefixes.append(first + torch.nonzero(of_row == 0)[:, 0])
            for index in range(1, int(of_row.max()) + 1):
                questions.append(first + torch.nonzero(of_row == index)[:, 0])
                owners.append(row)
        self.prefixes, self.questions = _rows(prefixes), _rows(questions)
        self.owner = torch.tensor(owners, dtype=torch.int64)
        self.rotary = [(rows.gather(cos), rows.gather(sin)) for rows in self.parts]
        self.masks = [_causal(self.prefixes.is_token), self._question_mask()]

    @property
    def parts(self) -> tuple[Rows, ...]:
        """The prefixes, and the questions if there are any."""
        return (self.prefixes, self.questions) if len(self.owner) else (self.prefixes,)

    def _question_mask(self) -> Tensor:
        own = _causal(self.questions.is_token)
        before = self.prefixes.is_token[self.owner][:, None, None]
        return torch.cat([before.expand(-1, 1, own.shape[2], -1), own], 3)

    def split(self, x: Tensor) -> list[Tensor]:
        """`[B, T, ...]` to `[B, P, ...]` and, if there are questions, `[N, L, ...]`."""
        return [rows.gather(x) for rows in self.parts]

    def join(self, parts: list[Tensor]) -> Tensor:
        """Undo `split`; padding becomes zero."""
        out = parts[0].new_zeros(self.shape.numel(), parts[0].shape[-1])
        for rows, values in zip(self.parts, parts, strict=True):
            out = rows.scatter(out, values)
        return out.view(*self.shape, -1)

    def run(self, step: Step, parts: list[Tensor], config: TextConfig) -> list[Tensor]:
        """Run a layer over the parts of `split`, the questions after their prefixes."""
        cache, out = PrefixCache(config, self.shape[0]), []
        for part, (cos, sin), mask in zip(parts, self.rotary, self.masks, strict=False):
            out.append(step(part, cos, sin, mask, cache))
            cache.owner = self.owner
        return out


def _causal(is_token: Tensor) -> Tensor:
    """Causal mask of left-padded rows, bool `[rows, 1, tokens, tokens]`; padding sees itself."""
    length = is_token.shape[1]
    order = torch.ones(length, length, dtype=torch.bool)
    seen = order.tril() & is_token[:, None, :]
    return (seen | torch.eye(length, dtype=torch.bool))[:, None]
