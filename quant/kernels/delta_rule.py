"""One token of the gated delta rule on the CPU.

Letters: B = prompts, K = key heads, R = value heads per key head, D and E = widths of key and value
heads, as in `model/gated_delta.py`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model.gated_delta import recurrent_delta_rule
from .library import Kernels, require_library


class _DeltaRule(ctypes.Structure):
    """Mirrors `delta_rule.h`."""

    _fields_ = (
        ("prompts", ctypes.c_int64),
        ("key_heads", ctypes.c_int64),
        ("value_heads", ctypes.c_int64),
        ("key_dim", ctypes.c_int64),
        ("value_dim", ctypes.c_int64),
        ("q", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("decay", ctypes.c_void_p),
        ("beta", ctypes.c_void_p),
        ("state", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class CpuDeltaRule:
    """The compiled kernel as `GatedDeltaNet.step_rule`.

    The state is read once from memory and updated in place, where torch's operations would read it
    five times and write it three times.
    """

    kernels: Kernels

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Apply the rule to one token, see `recurrent_delta_rule`; the state is overwritten.

        Tensors that are not float32 on the CPU, and those that need gradients, are computed by
        torch.
        """
        tensors = q, k, v, g, beta, state
        needs_grad = torch.is_grad_enabled() and any(each.requires_grad for each in tensors)
        if needs_grad or any(
            each.dtype != torch.float32 or each.device.type != "cpu" for each in tensors
        ):
            return recurrent_delta_rule(*tensors)
        batch, key_heads, groups, key_dim, value_dim = state.shape
        state = state.contiguous()
        out = v.new_empty(batch, key_heads, groups, 1, value_dim)
        inputs = [each.contiguous() for each in (q, k, v, g.exp(), beta)]
        arguments = _DeltaRule(
            batch,
            key_heads,
            key_heads * groups,
            key_dim,
            value_dim,
            *(each.data_ptr() for each in inputs),
            state.data_ptr(),
            out.data_ptr(),
        )
        require_library().vlpress_delta_rule(
            self.kernels.handle, ctypes.addressof(arguments), torch.get_num_threads()
        )
        return out, state
