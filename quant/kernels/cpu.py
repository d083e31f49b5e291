"""Products with quantized weights on the CPU: checks and allocates, then calls the library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from .cpu_layout import TiledWeight
from .library import Kernels, Scratch, loaded

TYPES = {torch.float32: 0, torch.bfloat16: 1}


class Weight(ctypes.Structure):
    """One weight; mirrors layout.h."""

    _fields_ = (
        ("packed", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zero_points", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("half_scales", ctypes.c_int32),
        ("zero", ctypes.c_int32),
    )


class Shape(ctypes.Structure):
    """What weights of one call share; mirrors layout.h."""

    _fields_ = (("k", ctypes.c_int64), ("group", ctypes.c_int64), ("bits", ctypes.c_int64))


class Product:
    """One or more weights that multiply the same input in one call."""

    def __init__(
        self, weights: Sequence[TiledWeight], biases: Sequence[Tensor | None], kernels: Kernels
    ) -> None:
        """Note where everything lies.

        Args:
            weights: of the same in_features, bits, group size and order.
            biases: ``[N]`` or None, one for each.
            kernels: which ones.
        """
        first = weights[0]
        self.order = first.order
        self.widths = [weight.out_features for weight in weights]
        # The library reads these while it runs: they must live as long as this.
        self._weights = tuple(weights)
        self._biases = [None if bias is None else bias.detach().float() for bias in biases]
        self._shape = Shape(first.in_features, first.group_size, first.bits)
        self._array = (Weight * len(weights))(
            *(_describe(w, b) for w, b in zip(weights, self._biases, strict=True))
        )
        self.described = self._shape, ctypes.addressof(self._array), len(weights)
        """What `block.py` hands on."""
        self.kernels, self.name = kernels, kernels.name
        self._scratch: dict[tuple[int, int, int, bool], int] = {}
        self._bytes = loaded().vlpress_scratch

    def __call__(self, x: Tensor, input_scale: float | None = None) -> list[Tensor]:
        """``x @ W' + bias`` for each weight.

        Args:
            x: ``[..., K]`` float; types other than bf16 go through float32.
            input_scale: None multiplies `x` as it is; else it is rounded to int8, by this scale,
                or if it is 0 by a scale for each row (``absmax / 127``).

        Returns:
            ``[..., N]`` for each weight, in the dtype of `x`.

        Raises:
            RuntimeError: a gradient is asked for; there is none.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("quantized layers on CPU kernels have no gradient; use no_grad()")
        if x.dtype not in TYPES:
            return [out.to(x.dtype) for out in self(x.float(), input_scale)]
        outputs = [x.new_empty((*x.shape[:-1], width)) for width in self.widths]
        self.into(x, outputs, input_scale)
        return outputs

    def into(self, x: Tensor, outputs: Sequence[Tensor], input_scale: float | None = None) -> None:
        """As a call, into given memory.

        Args:
            x: ``[..., K]``, bf16 or float32.
            outputs: contiguous ``[..., N]`` for each weight, of the dtype of `x`.
            input_scale: as in a call.
        """
        if self.order is not None:
            x = x.index_select(-1, self.order)
        rows = x.reshape(-1, x.shape[-1])
        if rows.stride(-1) != 1:
            rows = rows.contiguous()
        count, kind, threads = len(rows), TYPES[x.dtype], torch.get_num_threads()
        if count == 0:
            return
        key = (count, kind, threads, input_scale is not None)
        if key not in self._scratch:
            self._scratch[key] = self._bytes(
                self.kernels.handle, ctypes.addressof(self._shape), kind, count, threads, key[3]
            )
        call(self.kernels, self.described, rows, outputs, self._scratch[key], input_scale)


def call(
    kernels: Kernels,
    described: tuple[Shape, int, int],
    rows: Tensor,
    outputs: Sequence[Tensor],
    scratch_bytes: int,
    input_scale: float | None = None,
) -> None:
    """Let the library multiply.

    Args:
        kernels: which ones.
        described: what the weights share, the address of the first `Weight`, and how many follow.
        rows: ``[M, K]``, bf16 or float32, dense along K.
        outputs: as in `Product.into`.
        scratch_bytes: what `vlpress_scratch` gives.
        input_scale: as in `Product`.
    """
    shape, weights, count = described
    scratch = Scratch(scratch_bytes)
    loaded().vlpress_products(
        kernels.handle,
        ctypes.addressof(shape),
        weights,
        count,
        TYPES[rows.dtype],
        rows.data_ptr(),
        len(rows),
        rows.stride(0),
        (ctypes.c_void_p * count)(*(out.data_ptr() for out in outputs)),
        scratch.address,
        torch.get_num_threads(),
        -1.0 if input_scale is None else input_scale,
    )


def _describe(weight: TiledWeight, bias: Tensor | None) -> Weight:
    zeros = weight.zero_points
    return Weight(
        weight.packed.data_ptr(),
        weight.scales.data_ptr(),
        None if zeros is None else zeros.data_ptr(),
        None if bias is None else bias.data_ptr(),
        weight.out_features,
        weight.scales.dtype == torch.float16,
        weight.zero,
    )
