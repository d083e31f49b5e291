"""Linear layers with quantized weights on the CPU: checks and allocates, then calls the library.

Letters: M = rows (tokens), N = out_features, K = in_features.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from .cpu_layout import TiledWeight
from .library import Kernels, Scratch, require_library

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}
"""`enum Type` of `layout.h`."""
FLOAT_ACTIVATIONS = -1.0
"""The `scale` of `vlpress_gemm` without quantized activations."""


class Weight(ctypes.Structure):
    """One weight; mirrors `layout.h`."""

    _fields_ = (
        ("packed", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zero_points", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("half_scales", ctypes.c_int32),
        ("zero", ctypes.c_int32),
        ("divisor", ctypes.c_float),
    )


class Shape(ctypes.Structure):
    """Properties that all weights of one call share; mirrors `layout.h`."""

    _fields_ = (
        ("k", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("bits", ctypes.c_int64),
        ("levels", ctypes.c_void_p),
        ("mantissa", ctypes.c_int64),
    )


class CpuLinear:
    """One or more prepacked weights that multiply the same input in one call."""

    def __init__(
        self, weights: Sequence[TiledWeight], biases: Sequence[Tensor | None], kernels: Kernels
    ) -> None:
        """Collect the data pointers for the C structs.

        Args:
            weights: all with the same in_features, bits, levels, group size and input order.
            biases: `[N]` or None for each weight.
            kernels: the instruction set to use.
        """
        first = weights[0]
        self.order = first.order
        self.widths = [weight.out_features for weight in weights]
        # The structs hold raw pointers: these references keep the tensors alive.
        self._weights = tuple(weights)
        self._biases = [None if bias is None else bias.detach().float() for bias in biases]
        levels = first.levels
        self._shape = Shape(
            first.in_features,
            first.group_size,
            first.bits,
            None if levels is None else levels.values.data_ptr(),
            0 if levels is None else levels.mantissa,
        )
        self._array = (Weight * len(weights))(
            *(_weight_struct(w, b) for w, b in zip(weights, self._biases, strict=True))
        )
        self.arguments = self._shape, ctypes.addressof(self._array), len(weights)
        """Shape, address of the first `Weight`, and number of weights, for the C structs."""
        self.kernels, self.name = kernels, kernels.name
        self._scratch_sizes: dict[tuple[int, int, int, bool], int] = {}
        self._measure_scratch = require_library().vlpress_gemm_scratch

    def __call__(self, x: Tensor, input_scale: float | None = None) -> list[Tensor]:
        """Compute `x @ W' + bias` for each weight.

        Args:
            x: `[..., K]` float; dtypes other than bf16 are computed in float32.
            input_scale: None for float activations. Otherwise `x` is quantized to int8: with this
                scale, or with one scale per row (`absmax / 127`) if it is 0. Weights of integers
                only.

        Returns:
            `[..., N]` for each weight, in the dtype of `x`.

        Raises:
            RuntimeError: `x` requires a gradient; the kernels have none.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("quantized layers on CPU kernels have no gradient; use no_grad()")
        if x.dtype not in DTYPE_CODES:
            return [out.to(x.dtype) for out in self(x.float(), input_scale)]
        outputs = [x.new_empty((*x.shape[:-1], width)) for width in self.widths]
        self.compute_into(x, outputs, input_scale)
        return outputs

    def compute_into(
        self, x: Tensor, outputs: Sequence[Tensor], input_scale: float | None = None
    ) -> None:
        """Compute as `__call__` does, into given memory.

        Args:
            x: `[..., K]`, bf16 or float32.
            outputs: contiguous `[..., N]` for each weight, in the dtype of `x`.
            input_scale: as in `__call__`.
        """
        if self.order is not None:
            x = x.index_select(-1, self.order)
        rows = x.reshape(-1, x.shape[-1])
        if rows.stride(-1) != 1:
            rows = rows.contiguous()
        count, dtype, threads = len(rows), DTYPE_CODES[x.dtype], torch.get_num_threads()
        if count == 0:
            return
        key = (count, dtype, threads, input_scale is not None)
        if key not in self._scratch_sizes:
            self._scratch_sizes[key] = self._measure_scratch(
                self.kernels.handle, ctypes.addressof(self._shape), dtype, count, threads, key[3]
            )
        gemm(self.kernels, self.arguments, rows, outputs, self._scratch_sizes[key], input_scale)


def gemm(
    kernels: Kernels,
    arguments: tuple[Shape, int, int],
    rows: Tensor,
    outputs: Sequence[Tensor],
    scratch_bytes: int,
    input_scale: float | None = None,
) -> None:
    """Call `vlpress_gemm`.

    Args:
        kernels: the instruction set to use.
        arguments: as `CpuLinear.arguments`.
        rows: `[M, K]`, bf16 or float32, contiguous along K.
        outputs: as in `CpuLinear.compute_into`.
        scratch_bytes: from `vlpress_gemm_scratch`.
        input_scale: as in `CpuLinear`.
    """
    shape, weights, count = arguments
    scratch = Scratch(scratch_bytes)
    require_library().vlpress_gemm(
        kernels.handle,
        ctypes.addressof(shape),
        weights,
        count,
        DTYPE_CODES[rows.dtype],
        rows.data_ptr(),
        len(rows),
        rows.stride(0),
        (ctypes.c_void_p * count)(*(out.data_ptr() for out in outputs)),
        scratch.address,
        torch.get_num_threads(),
        FLOAT_ACTIVATIONS if input_scale is None else input_scale,
    )


def _weight_struct(weight: TiledWeight, bias: Tensor | None) -> Weight:
    zeros = weight.zero_points
    return Weight(
        weight.packed.data_ptr(),
        weight.scales.data_ptr(),
        None if zeros is None else zeros.data_ptr(),
        None if bias is None else bias.data_ptr(),
        weight.out_features,
        weight.scales.dtype == torch.float16,
        weight.zero,
        weight.divisor,
    )
