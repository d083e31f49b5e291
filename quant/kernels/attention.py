"""Attention on the CPU: of one new token over a cache, and of whole prompts.

Letters: B prompts, T new tokens, S all tokens, D head size.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model.cache import LayerCache
from .library import Kernels, Scratch, loaded


class _Newest(ctypes.Structure):
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
    _fields_ = (
        ("prompt", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("column", ctypes.c_int64),
    )


class _Prompts(ctypes.Structure):
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
    """Of an attention."""

    heads: int
    kv_heads: int
    head_dim: int


def attend_newest(
    heads: Heads,
    qkv: tuple[Tensor, Tensor, Tensor],
    stored: LayerCache,
    past: int,
    mask: Tensor | None,
    kernels: Kernels,
) -> Tensor:
    """Attention of one new token of each prompt; its key and value go into column `past`.

    Args:
        heads: how many, and how wide.
        qkv: bf16 ``[B, 1, heads, D]`` and twice ``[B, 1, kv_heads, D]``, contiguous.
        stored: of the layer in a cache, contiguous; column `past` is written.
        past: columns that are filled, fewer than the capacity.
        mask: bool ``[B or 1, 1, 1, past + 1]``: whether a column is seen; None sees all.
        kernels: which ones.

    Returns:
        bf16 ``[B, 1, heads * D]``.
    """
    batch, threads = len(stored.keys), torch.get_num_threads()
    q, k, v = qkv
    out = q.new_empty(batch, 1, heads.heads * heads.head_dim)
    group = heads.heads // heads.kv_heads
    scores = torch.empty(threads * group * (past + 1))
    seen = None if mask is None else mask.expand(batch, 1, 1, past + 1).contiguous()
    widened = None
    if stored.key_scales is not None:
        widened = torch.empty(threads * (past + 1) * heads.head_dim, dtype=torch.bfloat16)
    call = _Newest(
        batch,
        heads.heads,
        heads.kv_heads,
        heads.head_dim,
        past,
        stored.keys.shape[2],
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        *map(_address, stored),
        _address(seen),
        out.data_ptr(),
        scores.data_ptr(),
        _address(widened),
    )
    loaded().vlpress_attend_newest(kernels.handle, ctypes.addressof(call), threads)
    return out


def attends_prompts(heads: Heads, kernels: Kernels) -> bool:
    """Whether `attend_prompts` can be called: it needs a processor that multiplies bf16."""
    return heads.head_dim % 2 == 0 and bool(loaded().vlpress_attends_prompts(kernels.handle))


def attend_prompts(
    heads: Heads, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kernels: Kernels
) -> Tensor:
    """Attention of the last T of S tokens, what `scaled_dot_product_attention` computes.

    Weights are rounded to bf16 before they meet the values, and divided by their sum after it.

    Args:
        heads: how many, and how wide.
        q: bf16 ``[B, T, heads, D]``, contiguous.
        k: bf16 ``[B, kv_heads, S, D]``; the last dimension is dense.
        v: the same.
        mask: bool ``[B or 1, 1, T, S]``: whether a token sees a column, one at least; None is
            causal.
        kernels: which ones, of which `attends_prompts` is true.

    Returns:
        bf16 ``[B, T, heads * D]``.
    """
    batch, tokens, columns = len(q), q.shape[1], k.shape[2]
    out, threads = q.new_empty(batch, tokens, heads.heads * heads.head_dim), torch.get_num_threads()
    seen = None if mask is None else mask.contiguous()
    call = _Prompts(
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
        _address(seen),
        0 if seen is None or len(seen) == 1 else tokens * columns,
        out.data_ptr(),
        None,
    )
    scratch = Scratch(loaded().vlpress_prompts_scratch(ctypes.addressof(call), threads))
    call.scratch = scratch.address
    loaded().vlpress_attend_prompts(kernels.handle, ctypes.addressof(call), threads)
    return out


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
