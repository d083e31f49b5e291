"""Key/value cache of the decoder.

Buffers are allocated for a whole generation at once and filled from the left; all prompts of a
batch end at the same column because they are padded on the left.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from .config import TextConfig


class KVCache:
    """Keys and values of every layer, each `[batch, kv_heads, capacity, head_dim]`.

    Args:
        config: Gives the number of layers, the key/value heads and their width.
        batch: Number of prompts.
        capacity: Tokens that will be stored at most: prompt and generated ones.
    """

    def __init__(self, config: TextConfig, batch: int, capacity: int) -> None:
        self.shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        self.length = 0  # tokens stored in all layers
        self._keys: list[Tensor | None] = [None] * config.num_hidden_layers
        self._values: list[Tensor | None] = [None] * config.num_hidden_layers

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
        end = self.length + keys.shape[2]
        stored_keys, stored_values = self.room(layer, keys.shape[2], keys)
        stored_keys[:, :, self.length : end] = keys
        stored_values[:, :, self.length : end] = values
        return stored_keys[:, :, :end], stored_values[:, :, :end]

    def room(self, layer: int, new: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with all their columns, for whoever stores `new` ones after `length`.

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
        keys, values = self._keys[layer], self._values[layer]
        if keys is None or values is None:
            keys, values = like.new_zeros(self.shape), like.new_zeros(self.shape)
            self._keys[layer], self._values[layer] = keys, values
        return keys, values

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
        new._keys, new._values = (
            [None if t is None else _spread(t, rows, self.length, new.shape) for t in stored]
            for stored in (self._keys, self._values)
        )
        return new

    def keep(self, rows: Tensor) -> None:
        """Keep only the given rows of the batch, int64 `[kept]`."""
        self.shape = (int(rows.shape[0]), *self.shape[1:])
        for stored in (self._keys, self._values):
            for layer, tensor in enumerate(stored):
                if tensor is not None:
                    stored[layer] = tensor.index_select(0, rows.to(tensor.device))


def _spread(stored: Tensor, rows: Tensor, length: int, shape: tuple[int, ...]) -> Tensor:
    new = stored.new_zeros(shape)
    new[:, :, :length] = stored[:, :, :length].index_select(0, rows)
    return new


def causal_mask(new: int, total: int, device: torch.device) -> Tensor:
    """Bool `[1, 1, new, total]`: the last `new` of `total` tokens see what is not after them."""
    columns = torch.arange(total, device=device)
    rows = columns[total - new :]
    return (rows[:, None] >= columns)[None, None]
