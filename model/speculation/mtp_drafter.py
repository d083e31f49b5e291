"""Drafts of a model's own module for multi-token prediction, see `mtp.py`.

The first draft after a pass follows from the model's hidden state at the token before; further ones
from the module's own output, which takes the place of the hidden state, as in the engines that
serve these checkpoints. The module has a KV cache of its own. Its entries at accepted tokens are
computed again from the model's hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cache import KVCache
from ..generation import RESERVED_TOKENS
from ..mtp import MultiTokenPredictor
from ..processing.inputs import Batch
from ..qwen_vl import QwenVL
from .drafts import Choice, Chooser


class MtpDrafter:
    """Drafts by multi-token prediction.

    Args:
        model: the model whose hidden states are read.
        predictor: its module.
    """

    def __init__(self, model: QwenVL, predictor: MultiTokenPredictor) -> None:
        self._model, self._predictor = model, predictor
        self._cache: KVCache | None = None
        self._hidden: Tensor  # [1, R, H], of tokens whose entries are not in the cache yet
        self._embeds: Tensor  # [1, R - 1, H], of the tokens after them, without the newest
        self._positions: Tensor  # [3, 1, R]
        self._next = 0  # position of the token after them

    def begin(self, batch: Batch, hidden: Tensor, position: int) -> None:
        """See `Drafter.begin`."""
        self._hidden, self._embeds = hidden, batch.embeds[:, 1:]
        self._positions, self._next = batch.position_ids, position
        capacity = hidden.shape[1] + RESERVED_TOKENS
        # Quantized types are those of the model's cache, which has no scales for this module.
        self._cache = KVCache(self._predictor.config, 1, capacity)

    def propose(self, chooser: Chooser, count: int) -> list[Choice]:
        """See `Drafter.propose`."""
        embeds = torch.cat([self._embeds, self._embed(chooser.tokens[-1])], dim=1)
        state = self._run(embeds, self._hidden, self._positions)
        drafts = [chooser.choose(self._model.logits(state[0, -1]))]
        for ahead in range(count - 1):
            position = self._positions.new_full((3, 1, 1), self._next + ahead)
            embeds = self._embed(drafts[-1].token)
            state = self._run(embeds, state[:, -1:], position)
            tokens = [draft.token for draft in drafts]
            drafts.append(chooser.choose(self._model.logits(state[0, -1]), tokens))
        assert self._cache is not None
        # These entries hold outputs of the module in the place of hidden states.
        self._cache.roll_back(count - 1)
        return drafts

    def accept(self, hidden: Tensor, drafts: Sequence[int]) -> None:
        """See `Drafter.accept`."""
        rows = hidden.shape[1]
        ahead = torch.arange(rows, device=hidden.device)
        self._positions = (self._next + ahead).expand(3, 1, -1)
        self._next += rows
        self._hidden = hidden
        embeds = [self._embed(token) for token in drafts]
        self._embeds = torch.cat([hidden[:, :0], *embeds], dim=1)

    def _embed(self, token: int) -> Tensor:
        """Embed a token, `[1, 1, H]`."""
        ids = torch.tensor([[token]], device=self._model.device)
        embeds: Tensor = self._model.model.embed_tokens(ids)
        return embeds

    def _run(self, embeds: Tensor, hidden: Tensor, positions: Tensor) -> Tensor:
        """Run the module on consecutive rows, `[1, R, H]`, and store their keys and values."""
        cache = self._cache
        assert cache is not None
        if cache.length + embeds.shape[1] > cache.capacity:
            cache.grow(2 * cache.capacity + embeds.shape[1])
        state = self._model.model.prepare(embeds, positions, None, cache)
        args = state["cos"], state["sin"], state.get("mask"), cache
        out: Tensor = self._predictor(embeds, hidden, *args)
        cache.advance(embeds.shape[1])
        return out
