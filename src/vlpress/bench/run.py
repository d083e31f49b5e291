"""`vlpress bench`: speed of kernels and models on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..common.options import verb
from ..common.threads import use_threads
from ..quant.config import ModelSettings
from ..quant.resolve import Source
from . import gpu_kernel_speed, kernel_speed, model_speed
from .config import BenchOptions


@verb(BenchOptions)
def bench(options: BenchOptions) -> dict[str, Any]:
    """Measure the speed of single layers, or of a model.

    Raises:
        FileNotFoundError: the model does not exist.
        ValueError: an option is not supported, or a layer's output is wrong.
        OSError: the kernels are not built.
    """
    if options.what == "kernels":
        use_threads(options.threads)
        device = "cpu" if options.device == "auto" else options.device
        return bench_kernels(options.size or (), options.rows or (), device)
    use_threads(options.threads)
    return bench_model(
        options.model,
        options.group(ModelSettings),
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
    )


def bench_kernels(
    sizes: Sequence[str] = (), rows: Sequence[int] = (), device: str = "cpu"
) -> dict[str, Any]:
    """Time single layers.

    Args:
        sizes: in_features x out_features such as `2048x11008`; empty for the MLPs of the 3B and 7B
            models.
        rows: tokens per call; empty for `kernel_speed.ROWS`, or `gpu_kernel_speed.ROWS`.
        device: cpu, or a CUDA device.

    Returns:
        As `kernel_speed.measure` or `gpu_kernel_speed.measure`.

    Raises:
        ValueError: a size is malformed or not a multiple of the group size, a layer's output is
            wrong, or there is no such device.
        OSError: the kernels are not built.
    """
    shapes = [_shape(size) for size in sizes] or kernel_speed.SHAPES
    if device == "cpu":
        return kernel_speed.measure(shapes, rows or kernel_speed.ROWS)
    return gpu_kernel_speed.measure(torch.device(device), shapes, rows or gpu_kernel_speed.ROWS)


def _shape(size: str) -> tuple[int, int]:
    parts = size.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"size {size!r}; give in_features x out_features, such as 2048x11008")
    k, n = map(int, parts)
    if k % kernel_speed.GROUP:
        raise ValueError(
            f"size {size!r}: {k} is no multiple of the group size {kernel_speed.GROUP}"
        )
    return k, n


def bench_model(
    name: str, settings: ModelSettings, *, prompt_tokens: int, new_tokens: int
) -> dict[str, Any]:
    """Time a model as `generate` runs it.

    Args:
        name: a checkpoint folder, a hub id, or the built-in model.
        settings: device and dtype.
        prompt_tokens: length of the prompts.
        new_tokens: length of the answers.

    Returns:
        As `model_speed.measure`, and `model`.

    Raises:
        FileNotFoundError: the model does not exist.
        ValueError: the checkpoint is damaged or of an unknown type.
    """
    model = Source.find(name, settings).load()
    speed = model_speed.measure(model, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    return {"model": name, **speed}
