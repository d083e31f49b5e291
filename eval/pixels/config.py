"""Options of `pixels`, with their defaults."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...common.options import Option, Options, command_words, recorded
from ...quant.config import (
    DeviceOptions,
    ModelArgument,
    OutOption,
    OverwriteOptions,
    RuntimeOptions,
    SeedOption,
    ThreadOptions,
)
from ..config import AnswerOptions, DataRootOption, MarginOption
from .budgets import BUDGETS


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(Options):
    """Budgets to measure, and the checkpoint with the chosen one."""

    budgets: Annotated[
        str | int | Sequence[str | int] | None,
        Option(
            "Numbers of visual tokens that an image may have, after the merger; separated by "
            "commas, or repeated.",
            metavar="N,N,...",
            pattern=r"[1-9]\d{0,8}(,[1-9]\d{0,8})*",
            allowed="numbers from 1 to 999999999, separated by commas",
            default_text=",".join(map(str, BUDGETS)),
        ),
    ] = None
    write: Annotated[
        Path | str | None,
        Option(
            "Folder for a checkpoint with the smallest budget that passes on all benchmarks: the "
            "model's files with another preprocessor configuration.",
            metavar="DIR",
        ),
    ] = None


@dataclass(frozen=True)
class PixelsOptions(
    OverwriteOptions,
    ThreadOptions,
    SeedOption,
    RuntimeOptions,
    DeviceOptions,
    MarginOption,
    DataRootOption,
    AnswerOptions,
    BudgetOptions,
    OutOption,
    ModelArgument,
):
    """Options of `pixels`."""

    def command(self) -> str:
        """Return the command line that repeats this call, without options at their default."""
        values = recorded(self, always=("model", "out", "budgets", "bench"))
        return shlex.join(["vlpress", "pixels", *command_words(type(self), values)])
