"""Options of `search`, with their defaults."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ...common.options import Option, Options, command_words, recorded
from ...quant.config import (
    CalibrationOptions,
    DeviceOptions,
    InputOptions,
    ModelArgument,
    ProgressOption,
    TensorParallelOption,
    ThreadOptions,
)
from ...quant.search.sizes import SIZE_ALLOWED, SIZE_PATTERN

CHECKED = 8
"""Default number of choices whose predicted loss is compared with the measured one."""


@dataclass(frozen=True)
class RecipeFileOption(Options):
    """The recipe that is written."""

    out: Annotated[
        Path | str,
        Option(
            "Recipe file (TOML) to write.",
            flags=("--out", "-o"),
            command_flag="-o",
            metavar="FILE",
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class SearchBudget(Options):
    """Limits of the checkpoint, and the measurement of losses."""

    budget: Annotated[
        str | None,
        Option(
            "Largest size of the checkpoint's tensors, such as 2.4GB or 900MiB.",
            metavar="SIZE",
            pattern=SIZE_PATTERN,
            allowed=SIZE_ALLOWED,
        ),
    ] = None
    bits: Annotated[
        float | None,
        Option(
            "Largest average number of stored bits per decoder weight, scales included.",
            minimum=2.0,
            maximum=16.0,
        ),
    ] = None
    latency: Annotated[
        float | None,
        Option(
            "Largest time per generated token in milliseconds, in the linear layers of decoder and "
            "head, each timed on this machine.",
            metavar="MS",
            minimum=0.0,
        ),
    ] = None
    keep: Annotated[
        float | None,
        Option(
            "Largest average share of decoder weights that are not zero; every layer gets a share "
            "of its own, see --score.",
            metavar="SHARE",
            minimum=0.0,
            maximum=1.0,
        ),
    ] = None
    score: Annotated[
        Literal["magnitude", "wanda", "sparsegpt"] | None,
        Option(
            "Which weights of a layer become zero with --keep: those with the smallest score.",
            default_text="sparsegpt",
        ),
    ] = None
    errors: Annotated[
        Literal["rtn", "gptq"],
        Option(
            "Method whose weight errors the losses are predicted from: rtn, or gptq, which the "
            "recipe uses and which takes many times longer."
        ),
    ] = "rtn"
    check: Annotated[
        int,
        Option(
            "Number of choices whose predicted loss is compared with the divergence that each of "
            "them causes alone; 0 = none.",
            minimum=0,
        ),
    ] = CHECKED
    overwrite: Annotated[bool, Option("Replace an existing recipe file.", is_recorded=False)] = (
        False
    )


@dataclass(frozen=True)
class SearchOptions(
    ProgressOption,
    ThreadOptions,
    InputOptions,
    DeviceOptions,
    CalibrationOptions,
    TensorParallelOption,
    SearchBudget,
    RecipeFileOption,
    ModelArgument,
):
    """Options of `search`."""

    def command(self) -> str:
        """Return the command line that repeats this call, without options at their default."""
        values = recorded(self, always=("model", "budget", "bits", "latency", "keep", "out"))
        return shlex.join(["vlpress", "search", *command_words(type(self), values)])


def check_limits(options: SearchBudget) -> None:
    """Refuse a search without a budget.

    Raises:
        ValueError: none of --budget, --bits and --keep is given, or --score without --keep.
    """
    if options.budget is None and options.bits is None and options.keep is None:
        raise ValueError(
            "no budget is given; give --budget SIZE (bytes of the checkpoint), --bits N (average "
            "per decoder weight), --keep SHARE (of decoder weights that are not zero), or several"
        )
    if options.score is not None and options.keep is None:
        raise ValueError(
            f"--score {options.score} without --keep; give --keep SHARE, the share of decoder "
            "weights that are not zero, or leave --score out"
        )


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a recipe file that exists or cannot be written.

    Raises:
        FileNotFoundError: its folder does not exist.
        ValueError: it is a folder, exists without `overwrite`, or does not end in `.toml`.
    """
    if out.suffix != ".toml":
        raise ValueError(f"--out {out}: is no recipe file; give a name that ends in .toml")
    if out.is_dir():
        raise ValueError(f"--out {out}: is a folder; give a file that ends in .toml")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out {out}: {out.parent} does not exist; create it first")
    if out.exists() and not overwrite:
        raise ValueError(f"--out {out}: exists; give another name, or --overwrite")
