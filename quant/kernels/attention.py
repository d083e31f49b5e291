"""Attention on the CPU: of one new token over the KV cache, and of whole prompts.

Letters: B = prompts, T = new tokens, S = all tokens (columns of the cache), D = head size.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model.cache import LayerCache
from .library import Kernels, Scratch, require_library


class _DecodeAttention(ctypes.Structure):
    """Mirrors `attention.h`."""

    _fields_ = (
        ("prompts", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("past", ctypes.c_int64),
        ("capacity", ctypes.c_int64),
        ("q", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("key_scales", ctypes.c_void_p),
        ("value_scales", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
        ("widened", ctypes.c_void_p),
    )


class _Strides(ctypes.Structure):
    """Mirrors `attention.h`."""

    _fields_ = (
        ("prompt", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("column", ctypes.c_int64),
    )


class _PrefillAttention(ctypes.Structure):
    """Mirrors `attention.h`."""

    _fields_ = (
        ("prompts", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("q", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("key_strides", _Strides),
        ("value_strides", _Strides),
        ("mask", ctypes.c_void_p),
        ("mask_stride", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Heads:
    """Head counts and head size of an attention layer."""

    heads: int
    """Query heads, a multiple of `kv_heads` (grouped-query attention)."""
    kv_heads: int
    head_dim: int


def decode_attention(
    heads: Heads,
    qkv: tuple[Tensor, Tensor, Tensor],
    cache: LayerCache,
    past: int,
    mask: Tensor | None,
    kernels: Kernels,
) -> Tensor:
    """Append one new token per prompt to the cache and compute its attention.

    Args:
        heads: head counts and size.
        qkv: bf16 `[B, 1, heads, D]` and twice `[B, 1, kv_heads, D]`, contiguous.
        cache: keys and values of the layer, contiguous; column `past` is written.
        past: number of filled columns, below the capacity.
        mask: bool `[B or 1, 1, 1, past + 1]`, True for visible columns; None if all are.
        kernels: the instruction set to use.

    Returns:
        bf16 `[B, 1, heads * D]`.
    """
    batch, threads = len(cache.keys), torch.get_num_threads()
    q, k, v = qkv
    out = q.new_empty(batch, 1, heads.heads * heads.head_dim)
    group = heads.heads // heads.kv_heads
    scores = torch.empty(threads * group * (past + 1))
    visible = None if mask is None else mask.expand(batch, 1, 1, past + 1).contiguous()
    widened = None
    if cache.key_scales is not None:
        widened = torch.empty(threads * (past + 1) * heads.head_dim, dtype=torch.bfloat16)
    arguments = _DecodeAttention(
        batch,
        heads.heads,
        heads.kv_heads,
        heads.head_dim,
        past,
        cache.keys.shape[2],
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        *map(_address, cache),
        _address(visible),
        out.data_ptr(),
        scores.data_ptr(),
        _address(widened),
    )
    require_library().vlpress_decode_attention(kernels.handle, ctypes.addressof(arguments), threads)
    return out


def has_prefill_attention(heads: Heads, kernels: Kernels) -> bool:
    """Whether `prefill_attention` is available; it needs bf16 products and an even head size."""
    available = require_library().vlpress_has_prefill_attention(kernels.handle)
    return heads.head_dim % 2 == 0 and bool(available)


def prefill_attention(
    heads: Heads, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kernels: Kernels
) -> Tensor:
    """Compute the attention of the last T of S tokens, as `scaled_dot_product_attention` does.

    Softmax weights are rounded to bf16 before the product with the values; the division by their
    sum follows it, in float32.

    Args:
        heads: head counts and size.
        q: bf16 `[B, T, heads, D]`, contiguous.
        k: bf16 `[B, kv_heads, S, D]`, contiguous in the last dimension.
        v: as `k`.
        mask: bool `[B or 1, 1, T, S]`, True for visible columns, at least one per token; None is
            causal.
        kernels: the instruction set to use; `has_prefill_attention` must be true for it.

    Returns:
        bf16 `[B, T, heads * D]`.
    """
    batch, tokens, columns = len(q), q.shape[1], k.shape[2]
    out, threads = q.new_empty(batch, tokens, heads.heads * heads.head_dim), torch.get_num_threads()
    visible = None if mask is None else mask.contiguous()
    arguments = _PrefillAttention(
        batch,
        heads.heads,
        heads.kv_heads,
        heads.head_dim,
        tokens,
        columns,
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        _Strides(*k.stride()[:3]),
        _Strides(*v.stride()[:3]),
        _address(visible),
        0 if visible is None or len(visible) == 1 else tokens * columns,
        out.data_ptr(),
        None,
    )
    library = require_library()
    size = library.vlpress_prefill_attention_scratch(ctypes.addressof(arguments), threads)
    scratch = Scratch(size)
    arguments.scratch = scratch.address
    library.vlpress_prefill_attention(kernels.handle, ctypes.addressof(arguments), threads)
    return out


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
