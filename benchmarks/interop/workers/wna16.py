"""Product of 16-bit activations and 4-bit weights in the layout of vLLM's CPU kernel.

The wheel's library lacks `_C::cpu_gemm_wna16` on machines without AVX-512, and with AVX-512 it
takes activations of 16 bits only. vLLM packs the weight (`process_weights_after_loading` of its
`CPUWNA16` kernel); here it is dequantized from that layout once, then multiplied.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCHEMA = (
    "cpu_gemm_wna16(Tensor input, Tensor q_weight, Tensor(a2!) output, Tensor scales, "
    "Tensor? zeros, Tensor? bias, SymInt pack_factor, str isa_hint) -> ()"
)
NIBBLES = torch.arange(0, 32, 4, dtype=torch.int32)
SYMMETRIC_ZERO = 8
COLUMNS = 16
"""Columns of one block of the packed weight."""
_weights: dict[tuple[int, torch.dtype], Tensor] = {}
"""Dequantized weights by address of the packed one and dtype."""


def unpack(packed: Tensor) -> Tensor:
    """int32 `[...]` to its eight 4-bit values, `[..., 8]`, lowest bits first."""
    return (packed.unsqueeze(-1) >> NIBBLES) & 15


def dequantize(q_weight: Tensor, scales: Tensor, zeros: Tensor | None, k: int) -> Tensor:
    """Dequantize a weight in the layout of vLLM's CPU kernel.

    Args:
        q_weight: int32 `[N / 16, K * 2]`: blocks of 16 columns, two words for each row of K.
        scales: `[G, N]`.
        zeros: int32 `[G, N / 8]`, or None for symmetric weights.
        k: in_features.

    Returns:
        float32 `[K, N]`.
    """
    blocks = len(q_weight)
    integers = unpack(q_weight.reshape(blocks, k, 2)).reshape(blocks, k, COLUMNS)
    integers = integers.permute(1, 0, 2).reshape(len(scales), k // len(scales), -1)
    zero = SYMMETRIC_ZERO if zeros is None else unpack(zeros).reshape(len(scales), 1, -1)
    return ((integers - zero) * scales.float().unsqueeze(1)).reshape(k, -1)


def multiply(
    x: Tensor,
    q_weight: Tensor,
    output: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    pack_factor: int,
    isa_hint: str,
) -> None:
    """Compute `x @ W + bias` into `output`, see `dequantize` for the operands."""
    key = q_weight.data_ptr(), x.dtype
    if key not in _weights:
        _weights[key] = dequantize(q_weight, scales, zeros, x.shape[-1]).to(x.dtype)
    product = x @ _weights[key]
    output.copy_(product if bias is None else product + bias)


def register() -> torch.library.Library:
    """Define the operator; it exists while the returned library does."""
    library = torch.library.Library("_C", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(SCHEMA)  # type: ignore[no-untyped-call]
    library.impl("cpu_gemm_wna16", multiply, "CPU")  # type: ignore[no-untyped-call]
    library.impl("cpu_gemm_wna16", lambda *_: None, "Meta")  # type: ignore[no-untyped-call]
    return library


def replace() -> torch.library.Library:
    """Replace the operator's implementation, which exists, while the returned library does."""
    library = torch.library.Library("_C", "IMPL")  # type: ignore[no-untyped-call]
    library.impl(  # type: ignore[no-untyped-call]
        "cpu_gemm_wna16", multiply, "CPU", allow_override=True
    )
    return library
