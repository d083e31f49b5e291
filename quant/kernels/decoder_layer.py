"""A decoder layer on the CPU, without its attention, in two calls of the library.

With one token at a time, each torch call for a norm, a rotation, an addition or an activation takes
longer than its arithmetic. Here these run in float32 between the matrix products, rounded once.

Letters: B = prompts, T = new tokens, H = hidden size, D = head size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from .attention import Heads
from .cpu import FLOAT_ACTIVATIONS, CpuLinear, Shape
from .library import Kernels, Scratch, require_library


class _Linear(ctypes.Structure):
    """Mirrors `decoder_layer.h`."""

    _fields_ = (
        ("shape", Shape),
        ("weights", ctypes.c_void_p),
        ("count", ctypes.c_int32),
        ("scale", ctypes.c_float),
    )


class _DecoderLayer(ctypes.Structure):
    """Mirrors `decoder_layer.h`."""

    _fields_ = (
        ("hidden", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("first_norm", ctypes.c_void_p),
        ("second_norm", ctypes.c_void_p),
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("linears", _Linear * 4),
    )


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of a decoder layer."""

    hidden: int
    inner: int
    """Inner width of the feed-forward."""
    attention: Heads


class CpuDecoderLayer:
    """A decoder layer without its attention: `pre_attention` and `post_attention`."""

    def __init__(
        self,
        sizes: LayerSizes,
        norms: Sequence[Tensor],
        eps: float,
        linears: Sequence[CpuLinear],
        kernels: Kernels,
    ) -> None:
        """Collect the data pointers for the C struct.

        Args:
            sizes: sizes of the layer.
            norms: weights of the norms before attention and before the feed-forward, bf16 `[H]`;
                then, if q and k have any, those of their heads, bf16 `[D]`.
            eps: epsilon of all norms.
            linears: q, k and v fused; output; gate and up fused; down. None of them may reorder its
                inputs.
            kernels: the instruction set to use.
        """
        self.sizes, self.kernels = sizes, kernels
        # The struct holds raw pointers: these references keep the tensors alive.
        self._norms, self._linears = tuple(norms), tuple(linears)
        addresses = [norm.data_ptr() for norm in norms]
        self._template = _DecoderLayer(
            sizes.hidden,
            sizes.inner,
            *astuple(sizes.attention),
            *addresses,
            *[None] * (4 - len(addresses)),
            eps,
        )
        for struct, linear in zip(self._template.linears, linears, strict=True):
            struct.shape, struct.weights, struct.count = linear.arguments
        self._scratch_sizes: dict[tuple[int, int, bytes], int] = {}

    def pre_attention(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, scales: Sequence[float | None]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the first norm, the q, k and v projections, and norms and rotation of q and k.

        Args:
            hidden: bf16 `[B, T, H]`, contiguous.
            cos: bf16 `[B, T, D / 2]`.
            sin: as `cos`.
            scales: input scale of each linear layer, as in `CpuLinear`.

        Returns:
            q `[B, T, heads, D]`, k and v `[B, T, kv_heads, D]`.
        """
        sizes, (batch, tokens, _) = self.sizes.attention, hidden.shape
        heads = sizes.heads, sizes.kv_heads, sizes.kv_heads
        q, k, v = (hidden.new_empty(batch, tokens, count, sizes.head_dim) for count in heads)
        outputs = (ctypes.c_void_p * 3)(q.data_ptr(), k.data_ptr(), v.data_ptr())
        struct, scratch, threads = self._call_arguments(batch * tokens, scales)
        cos, sin = cos.contiguous(), sin.contiguous()
        require_library().vlpress_pre_attention(
            self.kernels.handle,
            ctypes.addressof(struct),
            batch * tokens,
            hidden.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            ctypes.addressof(outputs),
            scratch.address,
            threads,
        )
        return q, k, v

    def post_attention(
        self, hidden: Tensor, attended: Tensor, scales: Sequence[float | None]
    ) -> Tensor:
        """Apply the output projection, the second norm and the feed-forward, with both residuals.

        Args:
            hidden: the input of `pre_attention`.
            attended: bf16 `[B, T, heads * D]`, contiguous.
            scales: as in `pre_attention`.

        Returns:
            bf16 `[B, T, H]`.
        """
        out = hidden.clone()
        rows = hidden.shape[0] * hidden.shape[1]
        struct, scratch, threads = self._call_arguments(rows, scales)
        require_library().vlpress_post_attention(
            self.kernels.handle,
            ctypes.addressof(struct),
            rows,
            attended.data_ptr(),
            out.data_ptr(),
            scratch.address,
            threads,
        )
        return out

    def _call_arguments(
        self, rows: int, scales: Sequence[float | None]
    ) -> tuple[_DecoderLayer, Scratch, int]:
        """Arguments of one call; the struct is a copy, so that calls may run in parallel."""
        struct, threads = _DecoderLayer.from_buffer_copy(self._template), torch.get_num_threads()
        for linear, scale in zip(struct.linears, scales, strict=True):
            linear.scale = FLOAT_ACTIVATIONS if scale is None else scale
        quantized = bytes(scale is not None for scale in scales)
        key = (rows, threads, quantized)
        if key not in self._scratch_sizes:
            self._scratch_sizes[key] = require_library().vlpress_decoder_layer_scratch(
                self.kernels.handle, ctypes.addressof(struct), rows, threads
            )
        return struct, Scratch(self._scratch_sizes[key]), threads
