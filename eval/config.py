"""Options of evaluations, comparisons and `run`, with their defaults."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from ..common.options import Option, Options, command_words, recorded
from ..model.kv_quant.types import CacheChoice
from ..quant.config import (
    MODEL,
    MODEL_NAMES,
    OUT,
    CalibrationOptions,
    DeviceOptions,
    FormatOption,
    InputOptions,
    ModelSettings,
    OverwriteOptions,
    ProgressOption,
    RecipeOptions,
    SamplingOptions,
    ThreadOptions,
)
from ..quant.config import PlanOptions as QuantizationPlanOptions
from .stats.criterion import MARGIN_CRITERION, Criterion

BUILTIN_BENCHES = ("builtin-mmbench", "builtin-ocrbench", "builtin-mmmu")
BATCH_SIZE = 32
MARGIN = 2.0  # points
SERVED = "A served model"


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(SamplingOptions):
    """Benchmarks, the layout of their prompts, the sampling and the reading of answers."""

    bench: Annotated[
        str | Sequence[str] | None,
        Option(
            "Own questions: ANYNAME=FILE, a .jsonl, .csv or .tsv file. Published: NAME or "
            "NAME=PATH, a TSV, a folder of parquet files, or a hub id. Repeatable. Built in: "
            f"{', '.join(BUILTIN_BENCHES)}.",
            suggestions=BUILTIN_BENCHES,
        ),
    ] = None
    limit: Annotated[
        int | None,
        Option(
            "Only N questions of each benchmark, spread over its categories.",
            minimum=1,
            default_text="all",
        ),
    ] = None
    batch_size: Annotated[int, Option("Batch size.", minimum=1)] = BATCH_SIZE
    prompt_style: Annotated[
        str | None,
        Option("Prompt layout of the questions.", default_text="that of the model's family"),
    ] = None
    rules: Annotated[str | None, Option("Answer-extraction profile.", default_text="2025-08")] = (
        None
    )
    reasoning: Annotated[
        Literal["none", "think-tags", "think-opened"] | None,
        Option(
            "How reasoning is told from the answer, which alone is scored: none (all text is the "
            "answer), think-tags (up to </think>), think-opened (the same, and the prompt opens "
            "it: without </think> there is no answer).",
            default_text="that of the model's chat template, or of the reference",
        ),
    ] = None
    coordinates: Annotated[
        Literal["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "vlmevalkit"] | None,
        Option(
            "How places in images are asked for and read (RefCOCO, ScreenSpot): thousandths of the "
            "sides (qwen2-vl, qwen3-vl), pixels of the image as the model sees it (qwen2.5-vl), or "
            "by the size of the numbers (vlmevalkit).",
            default_text="that of the model's family, or of the reference",
        ),
    ] = None
    max_new_tokens: Annotated[
        str | int | Sequence[str | int] | None,
        Option(
            "Longest answer in tokens, reasoning included: N for all benchmarks, NAME=N for one or "
            "for a kind such as mmmu. Repeatable.",
            metavar="[NAME=]N",
            pattern=r"([\w.-]+=)?[1-9]\d{0,8}",
            allowed="N or NAME=N, with N from 1 to 999999999",
            default_text="2048, drawings 64; models that reason 8192, drawings 1024",
        ),
    ] = None
    samples: Annotated[
        int,
        Option(
            "Sampled answers per question, each with a seed of its own; the score of a question "
            "is their mean. Needs a --temperature above 0.",
            minimum=1,
        ),
    ] = 1


@dataclass(frozen=True, kw_only=True)
class ImageSizeOption(Options):
    """Size of benchmark images."""

    pixels: Annotated[
        str,
        Option(
            "Size of benchmark images: model (bounds of the checkpoint) or vlmevalkit (as for "
            "published scores: small images are enlarged)."
        ),
    ] = "model"


@dataclass(frozen=True, kw_only=True)
class DataRootOption(Options):
    """Place of published benchmark files."""

    data_root: Annotated[
        Path | str | None,
        Option(
            "Folder of published benchmark files, for --bench NAME without a path.",
            variable="LMUData",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(DataRootOption, ImageSizeOption, AnswerOptions):
    """All options of an evaluation's questions and texts."""

    text: Annotated[
        Path | str | None, Option("A .txt or .jsonl file to measure the perplexity on.")
    ] = None
    noise: Annotated[
        int | None,
        Option(
            "Rerun N questions per benchmark with another batch size and dtype to estimate the "
            "baseline's numerical noise.",
            minimum=0,
            default_text="32 in a run, 0 in an evaluation",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class QuestionOptions(BenchmarkOptions):
    """Benchmarks whose images may be replaced."""

    blank_images: Annotated[
        bool, Option("Replace images by uniform grey, to measure guessing without vision.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class EndpointOptions(Options):
    """A served model and the requests to its server."""

    endpoint: Annotated[
        str | None,
        Option(
            "Evaluate a served model over the OpenAI-compatible chat API, instead of MODEL.",
            metavar="URL",
            panel=SERVED,
        ),
    ] = None
    served_model: Annotated[
        str | None,
        Option(
            "The served model's name.",
            flags=("--model",),
            metavar="NAME",
            default_text="the server's only one",
            panel=SERVED,
        ),
    ] = None
    concurrency: Annotated[int, Option("Concurrent requests.", minimum=1, panel=SERVED)] = 8
    timeout: Annotated[
        float, Option("Timeout of a request in seconds.", minimum=1.0, panel=SERVED)
    ] = 600.0
    retries: Annotated[
        int,
        Option(
            "Retries of a request that fails with 429, 5xx, a timeout or a lost connection.",
            minimum=0,
            panel=SERVED,
        ),
    ] = 6
    api_key_env: Annotated[
        str | None,
        Option(
            "Environment variable that holds the API key.",
            metavar="NAME",
            default_text="OPENAI_API_KEY, if set",
            panel=SERVED,
        ),
    ] = None
    endpoint_extra: Annotated[
        str | None,
        Option(
            "Additional request fields; a null value removes a default field; recorded in the "
            "report.",
            metavar="JSON",
            panel=SERVED,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class MarginOption(Options):
    """Margin of a verdict."""

    margin: Annotated[
        float, Option("Points that may be lost before the verdict is FAIL.", minimum=0.0)
    ] = MARGIN


@dataclass(frozen=True, kw_only=True)
class CriterionOption(MarginOption):
    """Criterion of a verdict."""

    criterion: Annotated[
        Criterion,
        Option(
            "How a verdict is found: margin (the loss is shown to stay below --margin), or "
            "mlperf-99 (the score is at least 99 % of the original's, the rule of MLPerf "
            "Inference 6.1, without an interval)."
        ),
    ] = MARGIN_CRITERION


@dataclass(frozen=True)
class EvaluationArguments(Options):
    """Model and output folder of an evaluation, both optional."""

    model: Annotated[
        str | Path | None,
        Option(
            f"{MODEL_NAMES}; or give --endpoint.",
            is_argument=True,
            metavar="MODEL",
            suggestions=MODEL.suggestions,
        ),
    ] = None
    out: Annotated[
        Path | str | None,
        Option(
            "Folder for the answers, to resume and compare.",
            flags=OUT.flags,
            command_flag=OUT.command_flag,
            default_text="one in VLPRESS_CACHE or ~/.cache/vlpress",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class AcrossPixelsOption(Options):
    """Comparison of evaluations with different sizes of images."""

    across_pixels: Annotated[
        bool,
        Option(
            "Compare evaluations whose --max-pixels differ; the report notes both, and that a "
            "difference may come from the size of the images."
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class ReferenceOption(AcrossPixelsOption):
    """Reference of the divergence."""

    reference: Annotated[
        Path | str | None,
        Option("Folder of the original model's evaluation: adds the KL divergence to it."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class CacheOption(Options):
    """Storage of answers without an output folder."""

    no_cache: Annotated[
        bool,
        Option(
            "Without an output folder, discard the answers instead of keeping them in the cache "
            "folder.",
            is_recorded=False,
        ),
    ] = False


@dataclass(frozen=True)
class EvaluateOptions(
    OverwriteOptions,
    CacheOption,
    ModelSettings,
    EndpointOptions,
    ReferenceOption,
    QuestionOptions,
    EvaluationArguments,
):
    """Options of `evaluate`."""


@dataclass(frozen=True)
class CompareOptions(AcrossPixelsOption, CriterionOption):
    """Options of `compare`."""

    base: Annotated[
        Path | str, Option("The original's evaluation folder.", is_argument=True, metavar="BASE")
    ]
    candidate: Annotated[
        Path | str | Sequence[Path | str],
        Option("One or more folders to judge.", is_argument=True, metavar="CANDIDATE..."),
    ]
    out: Annotated[Path | str, OUT]
    _: KW_ONLY
    across_engines: Annotated[
        bool,
        Option("Compare answers of different engines; the report notes what else differs."),
    ] = False
    same_bytes: Annotated[
        bool,
        Option("Refuse candidates whose sizes differ by more than 5 %."),
    ] = False


@dataclass(frozen=True)
class PlanOptions(BenchmarkOptions, QuantizationPlanOptions):
    """Options of `plan`: those of a quantization's plan, and the benchmarks of an evaluation."""


@dataclass(frozen=True, kw_only=True)
class CandidateCacheOption(Options):
    """KV cache of the checkpoint's evaluation in a run."""

    kv_cache: Annotated[
        CacheChoice,
        Option(
            "KV cache that the checkpoint is evaluated with, as for eval; the original keeps one "
            "of its own dtype."
        ),
    ] = "recipe"


@dataclass(frozen=True, kw_only=True)
class RunOutOption(Options):
    """The output folder, a keyword because `model` has a default."""

    out: Annotated[Path | str, OUT]


@dataclass(frozen=True)
class RunModelArgument(Options):
    """The model to quantize."""

    model: Annotated[str | Path, MODEL] = "tiny"


@dataclass(frozen=True)
class RunOptions(
    OverwriteOptions,
    ThreadOptions,
    InputOptions,
    CandidateCacheOption,
    DeviceOptions,
    CriterionOption,
    BenchmarkOptions,
    FormatOption,
    CalibrationOptions,
    RecipeOptions,
    RunOutOption,
    RunModelArgument,
):
    """Options of `run`."""

    def command(self) -> str:
        """Return the command line that repeats this run, without options at their default."""
        values = recorded(self, always=("model", "out", "recipe", "bench"))
        return shlex.join(["vlpress", "run", *command_words(type(self), values)])


@dataclass(frozen=True)
class SplitOptions(ProgressOption):
    """Options of `split`."""

    file: Annotated[
        Path | str,
        Option(
            "A .jsonl, .csv or .tsv file of questions, see docs/own-tasks.md.",
            is_argument=True,
            metavar="FILE",
        ),
    ]
    _: KW_ONLY
    calib: Annotated[int, Option("Number of images for calibration.", minimum=1)]
    out: Annotated[
        Path | str | None,
        Option(
            "Folder for both files.",
            flags=OUT.flags,
            command_flag=OUT.command_flag,
            default_text="FILE's name with '-split', next to it",
        ),
    ] = None
    seed: Annotated[int, Option("Seed of the draw.", minimum=0)] = 0
    overwrite: Annotated[
        bool, Option("Replace files of another split in the folder.", is_recorded=False)
    ] = False
