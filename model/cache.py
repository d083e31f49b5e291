"""KV cache of the decoder.

A quantized cache returns what it stores: every query, also the new token's own, attends to
quantized keys (after the rotary embedding) and values, in prefill and decoding alike. So do the
engines that are simulated: they write new tokens to the cache before attention reads it. `int8`
stores integers; `int4` and `fp8` store dequantized values in the model's dtype and save no memory.

Buffers are allocated for a generation, enlarged if it is long, and filled from the left. Prompts of
a batch are padded on the left, so all of them end at the same index of the token dimension and one
length is enough.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .config import TextConfig
from .kv_quant.fp8 import round_fp8
from .kv_quant.int4 import round_int4
from .kv_quant.int8 import dequantize_kv, quantize_kv
from .kv_quant.scales import KVScales
from .kv_quant.types import CacheType
from .sizes import LinearAttentionSizes

UNIT = KVScales(1.0, 1.0)
SIMULATED: Mapping[CacheType, Callable[[Tensor, float], Tensor]] = {
    "int4": lambda values, scale: round_int4(values),
    "fp8": round_fp8,
}
"""Cache types that are stored dequantized: the rounding of keys or values, given the scale."""


class LayerCache(NamedTuple):
    """Buffers of one layer at full capacity."""

    keys: Tensor
    """`[batch, kv_heads, capacity, head_dim]`, in the model's dtype or int8."""
    values: Tensor
    """Shape and dtype of `keys`."""
    key_scales: Tensor | None = None
    """float32 `[batch, kv_heads, capacity]` with int8, otherwise None."""
    value_scales: Tensor | None = None
    """Shape and dtype of `key_scales`."""

    def map(self, function: Callable[[Tensor], Tensor]) -> LayerCache:
        """Apply a function to every buffer."""
        key_scales, value_scales = (None if t is None else function(t) for t in self[2:])
        return LayerCache(function(self.keys), function(self.values), key_scales, value_scales)


class LinearState(NamedTuple):
    """State of a layer with linear attention after all tokens so far."""

    conv: Tensor
    """`[batch, channels, kernel - 1]`, the last inputs of the convolution, in the model's dtype."""
    rule: Tensor
    """`[batch, value_heads, key_head_dim, value_head_dim]`, see `gated_delta.py`; in float32, or in
    float64 with a model of that dtype."""

    @classmethod
    def empty(cls, sizes: LinearAttentionSizes, batch: int, like: Tensor) -> LinearState:
        """Return the state before the first token; `like` gives dtype and device."""
        shape = batch, sizes.value_heads, sizes.key_head_dim, sizes.value_head_dim
        return cls(
            like.new_zeros(batch, sizes.qkv_width, sizes.conv_kernel - 1),
            like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32)),
        )

    def select(self, rows: Tensor) -> LinearState:
        """Return rows of the batch, int64 `[new batch]`; repetitions are allowed."""
        return LinearState(*(part.index_select(0, rows.to(part.device)) for part in self))


class KVCache:
    """Keys and values of every layer with full attention, states of those with linear attention.

    The latter have a fixed size, and are not quantized with any type.

    Args:
        config: number of layers, key/value heads and their width.
        batch: number of prompts.
        capacity: maximum number of tokens per prompt: prompt and generated ones.
        cache_type: `model` stores the model's dtype; the others are described in `kv_quant`.
        scales: scales of an fp8 cache, for each of `config.cached_layers`; None: 1.
    """

    def __init__(
        self,
        config: TextConfig,
        batch: int,
        capacity: int,
        cache_type: CacheType = "model",
        scales: Sequence[KVScales] | None = None,
    ) -> None:
        self.shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        self.length = 0  # tokens stored in all layers
        self.cache_type = cache_type
        self._scales: dict[int, KVScales] | None = None
        if scales is not None:
            self._scales = dict(zip(config.cached_layers, scales, strict=True))
        self._layers: list[LayerCache | None] = [None] * config.num_hidden_layers
        self._sizes = config.linear_attention
        self._states: dict[int, LinearState] = {}
        self._kept: dict[int, list[LinearState]] | None = None

    @property
    def capacity(self) -> int:
        """Maximum number of tokens per prompt."""
        return self.shape[2]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append `[batch, kv_heads, new, head_dim]`; return all keys and values so far.

        The layers of one forward pass write at the same `length`; call `advance` after the last.

        Raises:
            ValueError: the tokens exceed the capacity.
        """
        keys, values = self.simulate(layer, keys, values)
        buffers = self.buffers(layer, keys.shape[2], keys)
        end = self.length + keys.shape[2]
        new = slice(self.length, end)
        if buffers.key_scales is None or buffers.value_scales is None:
            buffers.keys[:, :, new], buffers.values[:, :, new] = keys, values
            return buffers.keys[:, :, :end], buffers.values[:, :, :end]
        buffers.keys[:, :, new], buffers.key_scales[:, :, new] = quantize_kv(keys)
        buffers.values[:, :, new], buffers.value_scales[:, :, new] = quantize_kv(values)
        return (
            dequantize_kv(buffers.keys[:, :, :end], buffers.key_scales[:, :, :end], keys.dtype),
            dequantize_kv(
                buffers.values[:, :, :end], buffers.value_scales[:, :, :end], values.dtype
            ),
        )

    def simulate(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize and dequantize new keys and values whose type is stored dequantized.

        Fused kernels call it before they write to the buffers; `update` calls it itself.

        Args:
            layer: index of the layer.
            keys: `[..., head_dim]`.
            values: `[..., head_dim]`.

        Returns:
            Keys and values of the same shape and dtype; the given ones for `model` and `int8`.
        """
        rounding = SIMULATED.get(self.cache_type)
        if rounding is None:
            return keys, values
        scales = UNIT if self._scales is None else self._scales[layer]
        return rounding(keys, scales.key), rounding(values, scales.value)

    def buffers(self, layer: int, new: int, like: Tensor) -> LayerCache:
        """Return a layer's full-capacity buffers; fused kernels write to them at `length`.

        Args:
            layer: index of the layer.
            new: number of tokens that will be written.
            like: gives dtype and device if the buffers are not allocated yet.

        Raises:
            ValueError: the tokens exceed the capacity.
        """
        if self.length + new > self.capacity:
            raise ValueError(
                f"key/value cache holds {self.capacity} tokens but {self.length + new} are needed; "
                "make it larger or generate fewer tokens"
            )
        buffers = self._layers[layer]
        if buffers is None:
            buffers = self._layers[layer] = self._empty(like)
        return buffers

    def _empty(self, like: Tensor) -> LayerCache:
        if self.cache_type != "int8":
            return LayerCache(like.new_zeros(self.shape), like.new_zeros(self.shape))
        keys, values = (like.new_zeros(self.shape, dtype=torch.int8) for _ in range(2))
        scales = [like.new_zeros(self.shape[:3], dtype=torch.float32) for _ in range(2)]
        return LayerCache(keys, values, *scales)

    def linear_state(self, layer: int, like: Tensor) -> LinearState:
        """Return the state of a layer with linear attention.

        Args:
            layer: index of the layer.
            like: gives dtype and device if there are no tokens yet.
        """
        if layer not in self._states:
            assert self._sizes is not None
            return LinearState.empty(self._sizes, self.shape[0], like)
        return self._states[layer]

    def set_linear_state(self, layer: int, state: LinearState) -> None:
        """Store the state of a layer with linear attention after the new tokens.

        If states are kept, it is called for each of the new tokens.
        """
        self._states[layer] = state
        if self._kept is not None:
            self._kept.setdefault(layer, []).append(state)

    @property
    def keeps_states(self) -> bool:
        """Whether the states of linear attention after every new token are kept."""
        return self._kept is not None

    def keep_states(self) -> None:
        """Keep the states of linear attention after every token from here on, for `roll_back`.

        Earlier ones are freed. Keys and values need no such copies.
        """
        self._kept = {layer: [state] for layer, state in self._states.items()}

    def roll_back(self, tokens: int) -> None:
        """Remove the newest tokens.

        Args:
            tokens: how many; with linear attention at most those since `keep_states`.

        Raises:
            ValueError: there are fewer, or the states before them were not kept.
        """
        if not 0 <= tokens <= self.length:
            raise ValueError(f"{tokens} tokens to remove; the cache holds {self.length}")
        kept = self._kept or {}
        if tokens and any(len(kept.get(layer, ())) <= tokens for layer in self._states):
            raise ValueError(
                f"the states of linear attention {tokens} tokens ago were not kept; call "
                "keep_states before tokens that may be removed"
            )
        self.length -= tokens
        if tokens:
            for layer, states in kept.items():
                del states[-tokens:]
                self._states[layer] = states[-1]

    def advance(self, tokens: int) -> None:
        """Mark `tokens` more tokens as stored, after every layer has been updated."""
        self.length += tokens

    def copy_rows(self, rows: Tensor, capacity: int) -> KVCache:
        """Copy rows of the batch into a new, larger cache.

        Args:
            rows: int64 `[new batch]`, indices into this batch; repetitions are allowed.
            capacity: of the new cache, at least `length`.
        """
        new = copy.copy(self)
        new.shape = (int(rows.shape[0]), self.shape[1], capacity, self.shape[3])
        new._layers = [
            buffers and buffers.map(lambda t: _copy_rows(t, rows, self.length, new.shape))
            for buffers in self._layers
        ]
        new._states = {layer: state.select(rows) for layer, state in self._states.items()}
        return new

    def grow(self, capacity: int) -> None:
        """Enlarge the buffers, layer by layer; their contents stay.

        Args:
            capacity: the new one, at least `length`.
        """
        self.shape = (*self.shape[:2], capacity, self.shape[3])

        def enlarge(buffer: Tensor) -> Tensor:
            rows = torch.arange(self.shape[0], device=buffer.device)
            return _copy_rows(buffer, rows, self.length, self.shape)

        for layer, buffers in enumerate(self._layers):
            self._layers[layer] = buffers and buffers.map(enlarge)

    def select_rows(self, rows: Tensor) -> None:
        """Drop all rows of the batch but the given ones, int64 `[new batch]`."""
        self.shape = (int(rows.shape[0]), *self.shape[1:])
        self._layers = [
            buffers and buffers.map(lambda t: t.index_select(0, rows.to(t.device)))
            for buffers in self._layers
        ]
        self._states = {layer: state.select(rows) for layer, state in self._states.items()}


def check_cache_type(config: TextConfig, cache_type: CacheType) -> None:
    """Refuse a cache type that does not suit the heads of a model.

    Raises:
        ValueError: it does not.
    """
    if cache_type in SIMULATED:
        SIMULATED[cache_type](torch.zeros(1, config.head_dim), 1.0)


def _copy_rows(buffer: Tensor, rows: Tensor, length: int, shape: tuple[int, ...]) -> Tensor:
    new = buffer.new_zeros(shape[: buffer.dim()])
    new[:, :, :length] = buffer[:, :, :length].index_select(0, rows)
    return new


def causal_mask(new: int, total: int, device: torch.device) -> Tensor:
    """Build the causal mask of the last `new` of `total` tokens.

    Returns:
        bool `[1, 1, new, total]`, True where a token may attend.
    """
    keys = torch.arange(total, device=device)
    queries = keys[total - new :]
    return (queries[:, None] >= keys)[None, None]


def padded_causal_mask(is_token: Tensor, new: int) -> Tensor:
    """Build the causal mask of the last `new` columns of a batch with padding.

    A padded column attends to itself: an empty softmax would be NaN.

    Args:
        is_token: bool `[batch, columns]`, False for padding.
        new: number of queries.

    Returns:
        bool `[batch, 1, new, columns]`, True where a query may attend.
    """
    keys = torch.arange(is_token.shape[1], device=is_token.device)
    queries = keys[is_token.shape[1] - new :]
    mask = (queries[:, None] >= keys) & is_token[:, None, :] | (queries[:, None] == keys)
    return mask[:, None]
