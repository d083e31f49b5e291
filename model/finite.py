"""Checks that scores and features are finite, and what an error says when they are not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


class NotFiniteError(ValueError):
    """A model computed NaN or infinity where a finite number is needed.

    Args:
        found: What is not finite and where, for the message.
        remedy: What to do about it, see `remedy_for`.
        rows: Places in the batch of the prompts concerned; empty where that is not known.
    """

    def __init__(self, found: str, remedy: str, rows: Sequence[int] = ()) -> None:
        super().__init__(f"{found}; {remedy}")
        self.found = found
        self.remedy = remedy
        self.rows = tuple(rows)

    def within(self, where: str) -> NotFiniteError:
        """The same error with the place of the batch, such as a benchmark and its items."""
        return NotFiniteError(f"{where}: {self.found}", self.remedy, self.rows)


def kind_of(values: Tensor) -> str:
    """`NaN` if any value is NaN, otherwise `infinity`."""
    return "NaN" if bool(values.isnan().any()) else "infinity"


def dtype_name(dtype: torch.dtype) -> str:
    """The name that `--dtype` takes, such as `fp16`."""
    return _SHORT.get(dtype, str(dtype).removeprefix("torch."))


def remedy_for(model: nn.Module, dtype: torch.dtype) -> str:
    """What to do about values that are not finite.

    The weights are searched for NaN and infinity, which takes one pass over them: called only
    once something has failed.
    """
    if (name := not_finite_tensor(model)) is not None:
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


def not_finite_tensor(model: nn.Module) -> str | None:
    """Name of the first parameter or buffer with NaN or infinity; None if all are finite."""
    for named in (model.named_parameters(), model.named_buffers()):
        for name, tensor in named:
            readable = tensor.is_floating_point() and not tensor.is_meta
            if readable and not bool(torch.isfinite(tensor.float()).all()):
                return name
    return None


def check_finite(values: Tensor, what: str, model: nn.Module, rows: Sequence[int] = ()) -> None:
    """Refuse values that are not finite.

    Args:
        values: Any shape and float dtype; read once, with one transfer from the device.
        what: Names the values in the message, such as `the scores of answer 3`.
        model: Searched for the cause if the check fails; its `dtype` is named.
        rows: See `NotFiniteError`.

    Raises:
        NotFiniteError: A value is NaN or infinite.
    """
    if not bool(torch.isfinite(values).all()):
        raise not_finite(values, what, model, rows)


def not_finite(
    values: Tensor, what: str, model: nn.Module, rows: Sequence[int] = ()
) -> NotFiniteError:
    """The error about values that are known not to be finite; see `check_finite`."""
    dtype = getattr(model, "dtype", values.dtype)
    found = f"the model computed {kind_of(values)} in {dtype_name(dtype)}: {what} not finite"
    return NotFiniteError(found, remedy_for(model, dtype), rows)
