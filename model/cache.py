"""Key/value cache of the decoder.

Buffers are allocated for a whole generation at once and filled from the left; all prompts of a
batch end at the same column because they are padded on the left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .config import TextConfig

CacheType = Literal["model", "int8"]


class Columns(NamedTuple):
    """What is stored of a layer, with room for all columns."""

    keys: Tensor
    """``[batch, kv_heads, capacity, head_dim]``, in the type of the model or int8."""
    values: Tensor
    """The same."""
    key_scales: Tensor | None = None
    """float32 ``[batch, kv_heads, capacity]``, with int8."""
    value_scales: Tensor | None = None
    """The same."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Columns:
        """All of it, changed."""
        first, second = (None if t is None else change(t) for t in self[2:])
        return Columns(change(self.keys), change(self.values), first, second)


class KVCache:
    """Keys and values of every layer.

    Args:
        config: Gives the number of layers, the key/value heads and their width.
        batch: Number of prompts.
        capacity: Tokens that will be stored at most: prompt and generated ones.
        kind: `model` stores them as they come, `int8` rounded, with a scale for each token and
            head.
    """

    def __init__(
        self, config: TextConfig, batch: int, capacity: int, kind: CacheType = "model"
    ) -> None:
        self.shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        self.length = 0  # tokens stored in all layers
        self.kind = kind
        self._layers: list[Columns | None] = [None] * config.num_hidden_layers

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self.shape[2]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append `[batch, kv_heads, new, head_dim]` and return all keys and values so far.

        Call `advance` once every layer has stored its part.

        Raises:
            ValueError: The tokens do not fit.
        """
        stored = self.room(layer, keys.shape[2], keys)
        end = self.length + keys.shape[2]
        new = slice(self.length, end)
        if stored.key_scales is None or stored.value_scales is None:
            stored.keys[:, :, new], stored.values[:, :, new] = keys, values
            return stored.keys[:, :, :end], stored.values[:, :, :end]
        stored.keys[:, :, new], stored.key_scales[:, :, new] = round_columns(keys)
        stored.values[:, :, new], stored.value_scales[:, :, new] = round_columns(values)
        return (
            widen_columns(stored.keys[:, :, :end], stored.key_scales[:, :, :end], keys.dtype),
            widen_columns(stored.values[:, :, :end], stored.value_scales[:, :, :end], values.dtype),
        )

    def room(self, layer: int, new: int, like: Tensor) -> Columns:
        """What is stored with all its columns, for whoever stores `new` ones after `length`.

        Args:
            layer: whose.
            new: columns that will be stored.
            like: of the type and on the device that buffers get if there are none yet.

        Raises:
            ValueError: The tokens do not fit.
        """
        if self.length + new > self.capacity:
            raise ValueError(
                f"key/value cache holds {self.capacity} tokens but {self.length + new} are needed; "
                "make it larger or generate fewer tokens"
            )
        stored = self._layers[layer]
        if stored is None:
            stored = self._layers[layer] = self._empty(like)
        return stored

    def _empty(self, like: Tensor) -> Columns:
        if self.kind == "model":
            return Columns(like.new_zeros(self.shape), like.new_zeros(self.shape))
        keys, values = (like.new_zeros(self.shape, dtype=torch.int8) for _ in range(2))
        scales = [like.new_zeros(self.shape[:3], dtype=torch.float32) for _ in range(2)]
        return Columns(keys, values, *scales)

    def advance(self, tokens: int) -> None:
        """Count `tokens` columns as stored, after every layer has been updated."""
        self.length += tokens

    def spread(self, rows: Tensor, capacity: int) -> KVCache:
        """A larger cache whose rows begin with the given rows of this one.

        Args:
            rows: int64 `[batch]`; a row may be taken several times.
            capacity: columns of the new cache, at least as many as are stored here.
        """
        new = copy.copy(self)
        new.shape = (int(rows.shape[0]), self.shape[1], capacity, self.shape[3])
        new._layers = [
            stored and stored.each(lambda t: _spread(t, rows, self.length, new.shape))
            for stored in self._layers
        ]
        return new

    def keep(self, rows: Tensor) -> None:
        """Keep only the given rows of the batch, int64 `[kept]`."""
        self.shape = (int(rows.shape[0]), *self.shape[1:])
        self._layers = [
            stored and stored.each(lambda t: t.index_select(0, rows.to(t.device)))
            for stored in self._layers
        ]


def round_columns(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round `[..., head_dim]` to int8 and float32 scales `[...]`, the largest magnitude / 127."""
    wide = values.float()
    scales = wide.abs().amax(-1) / 127
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    return (wide / scales[..., None]).round().clamp(-127, 127).to(torch.int8), scales


def widen_columns(levels: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Undo `round_columns`, as nearly as `dtype` holds it."""
    return (levels.float() * scales[..., None]).to(dtype)


def _spread(stored: Tensor, rows: Tensor, length: int, shape: tuple[int, ...]) -> Tensor:
    new = stored.new_zeros(shape[: stored.dim()])
    new[:, :, :length] = stored[:, :, :length].index_select(0, rows)
    return new


def causal_mask(new: int, total: int, device: torch.device) -> Tensor:
    """Bool `[1, 1, new, total]`: the last `new` of `total` tokens see what is not after them."""
    columns = torch.arange(total, device=device)
    rows = columns[total - new :]
    return (rows[:, None] >= columns)[None, None]
