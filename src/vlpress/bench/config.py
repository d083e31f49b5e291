"""Options of `bench`, with their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

from ..common.options import Option, Options
from ..quant.config import (
    BUILTIN_MODELS,
    MODEL_NAMES,
    DeviceOptions,
    RuntimeOptions,
    ThreadOptions,
)


@dataclass(frozen=True)
class WorkloadOptions(Options):
    """Layers or model to measure, and sizes of the inputs."""

    what: Annotated[Literal["kernels", "model"], Option("kernels or model.", is_argument=True)] = (
        "kernels"
    )
    _: KW_ONLY
    model: Annotated[
        str,
        Option(
            f"For model: {MODEL_NAMES[0].lower()}{MODEL_NAMES[1:]}.",
            flags=("--model", "-m"),
            suggestions=BUILTIN_MODELS,
        ),
    ] = "tiny"
    size: Annotated[
        str | Sequence[str] | None,
        Option(
            "For kernels: in_features x out_features; repeatable.",
            default_text="the MLPs of 3B and 7B",
        ),
    ] = None
    rows: Annotated[
        Sequence[int] | None,
        Option(
            "For kernels: tokens per call; repeatable.",
            minimum=1,
            default_text="1, 4, 16, 256, 1024",
        ),
    ] = None
    prompt_tokens: Annotated[int, Option("For model: prompt length.", minimum=1)] = 1024
    new_tokens: Annotated[int, Option("For model: answer length.", minimum=2)] = 32


@dataclass(frozen=True)
class BenchOptions(ThreadOptions, RuntimeOptions, DeviceOptions, WorkloadOptions):
    """Options of `bench`."""
