"""A decoder layer around its attention on the CPU, in two calls of the library.

With one token at a time norms, rotation, additions and activations each cost more as calls of torch
than as arithmetic; here they are computed in float32 between the products and rounded once.

Letters: B prompts, T new tokens, H hidden size, D head size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from .attention import Heads
from .cpu import Product, Shape
from .library import Kernels, Scratch, loaded


class _Linear(ctypes.Structure):
    _fields_ = (
        ("shape", Shape),
        ("weights", ctypes.c_void_p),
        ("count", ctypes.c_int32),
        ("scale", ctypes.c_float),
    )


class _Block(ctypes.Structure):
    _fields_ = (
        ("hidden", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("first_norm", ctypes.c_void_p),
        ("second_norm", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("linears", _Linear * 4),
    )


@dataclass(frozen=True)
class Sizes:
    """Of a decoder layer."""

    hidden: int
    inner: int
    attention: Heads


class Block:
    """Everything of a decoder layer but attention."""

    def __init__(
        self,
        sizes: Sizes,
        norms: tuple[Tensor, Tensor],
        eps: float,
        products: Sequence[Product],
        kernels: Kernels,
    ) -> None:
        """Note where everything lies.

        Args:
            sizes: of the layer.
            norms: weights of the norms before attention and before the feed-forward, bf16 ``[H]``.
            eps: of the norms.
            products: of q, k and v; of the output; of gate and up; of down. None of them orders
                its inputs.
            kernels: which ones.
        """
        self.sizes, self.kernels = sizes, kernels
        # The library reads these while it runs: they must live as long as this.
        self._norms, self._products = norms, tuple(products)
        self._fixed = _Block(
            sizes.hidden,
            sizes.inner,
            *astuple(sizes.attention),
            norms[0].data_ptr(),
            norms[1].data_ptr(),
            eps,
        )
        for place, product in enumerate(products):
            linear = self._fixed.linears[place]
            linear.shape, linear.weights, linear.count = product.described
        self._scratch: dict[tuple[int, int, bytes], int] = {}

    def enter(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, scales: Sequence[float | None]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize, multiply, rotate.

        Args:
            hidden: bf16 ``[B, T, H]``, contiguous.
            cos: bf16 ``[B, T, D / 2]``.
            sin: the same.
            scales: of each product's input, as `Product` takes them.

        Returns:
            q ``[B, T, heads, D]``, k and v ``[B, T, kv_heads, D]``.
        """
        sizes, (batch, tokens, _) = self.sizes.attention, hidden.shape
        heads = sizes.heads, sizes.kv_heads, sizes.kv_heads
        q, k, v = (hidden.new_empty(batch, tokens, count, sizes.head_dim) for count in heads)
        outputs = (ctypes.c_void_p * 3)(q.data_ptr(), k.data_ptr(), v.data_ptr())
        block, scratch, threads = self._prepared(batch * tokens, scales)
        cos, sin = cos.contiguous(), sin.contiguous()
        loaded().vlpress_enter(
            self.kernels.handle,
            ctypes.addressof(block),
            batch * tokens,
            hidden.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            ctypes.addressof(outputs),
            scratch.address,
            threads,
        )
        return q, k, v

    def leave(self, hidden: Tensor, attended: Tensor, scales: Sequence[float | None]) -> Tensor:
        """Multiply and add, normalize, feed forward and add.

        Args:
            hidden: as `enter` took it.
            attended: bf16 ``[B, T, heads * D]``, contiguous.
            scales: as in `enter`.

        Returns:
            bf16 ``[B, T, H]``.
        """
        out = hidden.clone()
        rows = hidden.shape[0] * hidden.shape[1]
        block, scratch, threads = self._prepared(rows, scales)
        loaded().vlpress_leave(
            self.kernels.handle,
            ctypes.addressof(block),
            rows,
            attended.data_ptr(),
            out.data_ptr(),
            scratch.address,
            threads,
        )
        return out

    def _prepared(self, rows: int, scales: Sequence[float | None]) -> tuple[_Block, Scratch, int]:
        """A description for one call, so that calls may run side by side."""
        block, threads = _Block.from_buffer_copy(self._fixed), torch.get_num_threads()
        for place, scale in enumerate(scales):
            block.linears[place].scale = -1.0 if scale is None else scale
        rounded = bytes(scale is not None for scale in scales)
        key = (rows, threads, rounded)
        if key not in self._scratch:
            self._scratch[key] = loaded().vlpress_block_scratch(
                self.kernels.handle, ctypes.addressof(block), rows, threads
            )
        return block, Scratch(self._scratch[key]), threads
