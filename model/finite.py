"""Checks that logits and features are finite, and the error with cause and remedy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


class NotFiniteError(ValueError):
    """A model computed NaN or infinity where a finite number is needed.

    Args:
        problem: names the values and their location.
        remedy: see `find_remedy`.
        rows: indices in the batch of the affected prompts; empty if unknown.
    """

    def __init__(self, problem: str, remedy: str, rows: Sequence[int] = ()) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy
        self.rows = tuple(rows)

    def within(self, context: str) -> NotFiniteError:
        """Return the error with a prefix, such as a benchmark and its items."""
        return NotFiniteError(f"{context}: {self.problem}", self.remedy, self.rows)


def nonfinite_kind(values: Tensor) -> str:
    """Return `NaN` if any value is NaN, otherwise `infinity`."""
    return "NaN" if bool(values.isnan().any()) else "infinity"


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype on the command line, such as `fp16`."""
    return _SHORT.get(dtype, str(dtype).removeprefix("torch."))


def find_remedy(model: nn.Module, dtype: torch.dtype) -> str:
    """Find the cause of values that are not finite and word a remedy.

    Searches the weights for NaN and infinity, which takes one pass over them: call it only after a
    check has failed.
    """
    if (name := first_nonfinite_tensor(model)) is not None:
        return (
            f"the weights are damaged ({name} is not finite): fetch the checkpoint again, or "
            "quantize it again"
        )
    if dtype == torch.float16:
        return "the activations overflow fp16, which ends at 65504: use --dtype bf16 or fp32"
    wider = ", or use --dtype fp32" if dtype != torch.float32 else ""
    return (
        "all weights are finite, so the activations overflow: the checkpoint is damaged or was "
        f"quantized badly, fetch it or quantize it again{wider}"
    )


def first_nonfinite_tensor(model: nn.Module) -> str | None:
    """Return the first parameter or buffer with NaN or infinity; None if all are finite."""
    for named in (model.named_parameters(), model.named_buffers()):
        for name, tensor in named:
            readable = tensor.is_floating_point() and not tensor.is_meta
            if readable and not bool(torch.isfinite(tensor.float()).all()):
                return name
    return None


def check_finite(values: Tensor, subject: str, model: nn.Module, rows: Sequence[int] = ()) -> None:
    """Refuse values that are not finite.

    Args:
        values: any shape and float dtype; read once, with one transfer from the device.
        subject: names the values in the message with a verb, such as `the scores of answer 3 are`.
        model: searched for the cause if the check fails; its `dtype` is named.
        rows: see `NotFiniteError`.

    Raises:
        NotFiniteError: a value is NaN or infinite.
    """
    if not bool(torch.isfinite(values).all()):
        raise not_finite_error(values, subject, model, rows)


def not_finite_error(
    values: Tensor, subject: str, model: nn.Module, rows: Sequence[int] = ()
) -> NotFiniteError:
    """Build the error for values that are not finite; arguments as in `check_finite`."""
    dtype = getattr(model, "dtype", values.dtype)
    kind = nonfinite_kind(values)
    problem = f"the model computed {kind} in {dtype_name(dtype)}: {subject} not finite"
    return NotFiniteError(problem, find_remedy(model, dtype), rows)
