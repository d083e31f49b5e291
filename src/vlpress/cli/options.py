"""The options that several verbs share, with their help texts and their checks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ..quant.recipe.presets import PRESETS

ENDPOINT = "A served model"
ACTIVATIONS = ("recipe", "int8")
HEADS = ("recipe", "w8a16", "w4a16")
CACHES = ("model", "int8")
DTYPES = ("auto", "bf16", "fp16", "fp32")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def _check_device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise typer.BadParameter(f"{value!r}; allowed: auto, cpu, cuda, cuda:N")
    return value


def _one_of(*allowed: str) -> Callable[[str], str]:
    """A check for options that name one of a few things."""

    def check(value: str) -> str:
        if value not in allowed:
            raise typer.BadParameter(f"{value!r}; allowed: {', '.join(allowed)}")
        return value

    return check


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A checkpoint folder, a hub id, or the built-in 'tiny' or 'tiny-outliers'.",
        show_default=False,
    ),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Where the result goes.", show_default=False)
]
Recipe = Annotated[
    str, typer.Option("--recipe", "-r", help=f"A preset ({', '.join(PRESETS)}) or a TOML file.")
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="Checkpoint format: gptq, gptq_v2, compressed-tensors, awq; auto takes gptq where it "
        "can hold the result, else compressed-tensors.",
    ),
]
Tp = Annotated[
    int | None,
    typer.Option(
        "--tp",
        min=1,
        help="Devices that an engine will split the model over; inner widths are padded to suit.",
        show_default="the recipe's, or 1",
    ),
]
Bench = Annotated[
    list[str] | None,
    typer.Option(
        "--bench",
        help="NAME or NAME=PATH, PATH being a TSV, a folder of parquet files, a hub id, or "
        "a .jsonl of your own; repeat it. Built in: "
        "builtin-mmbench, builtin-ocrbench, builtin-mmmu.",
        show_default=False,
    ),
]
Text = Annotated[
    Path | None,
    typer.Option(
        "--text",
        help="A .txt or .jsonl file to read for its perplexity.",
        show_default=False,
    ),
]
Noise = Annotated[
    int | None,
    typer.Option(
        "--noise",
        min=0,
        help="Questions of each benchmark that the original answers again with another batch size "
        "and another dtype: the noise that its own numbers have.",
        show_default="32 in a run, 0 in an evaluation",
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        envvar="LMUData",
        help="Folder of published benchmark files, for --bench NAME without a path.",
        show_default=False,
    ),
]
Calib = Annotated[
    str | None,
    typer.Option(
        "--calib",
        help="Calibration samples: a .jsonl or .txt file, a dataset folder or hub id. "
        "Without it: built-in drawings.",
        show_default=False,
    ),
]
Memory = Annotated[
    float,
    typer.Option(
        "--memory",
        min=0.0,
        help="GiB of activations that calibration keeps in memory; all of them are in files too.",
    ),
]
CalibSamples = Annotated[
    int | None,
    typer.Option(
        "--calib-samples",
        min=1,
        help="How many calibration samples to use.",
        show_default="the recipe's",
    ),
]
SkipBadSamples = Annotated[
    int,
    typer.Option(
        "--skip-bad-samples",
        min=0,
        help="How many calibration samples that cannot be used are replaced by others, with a "
        "warning; one more is an error.",
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", callback=_check_device, help="auto, cpu, cuda or cuda:N."),
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", callback=_one_of(*DTYPES), help="auto, bf16, fp16 or fp32."),
]
Activations = Annotated[
    str,
    typer.Option(
        "--activations",
        callback=_one_of(*ACTIVATIONS),
        help="int8 rounds the inputs of weight-only layers too, for speed; recipe does as the "
        "checkpoint says.",
    ),
]
Head = Annotated[
    str,
    typer.Option(
        "--head",
        callback=_one_of(*HEADS),
        help="w8a16 or w4a16 rounds the output head when the model is loaded, a tied one too.",
    ),
]
KVCache = Annotated[
    str,
    typer.Option(
        "--kv-cache",
        callback=_one_of(*CACHES),
        help="int8 keeps keys and values of an answer rounded, with a scale for each token and "
        "head; model keeps the model's type.",
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option("--max-pixels", min=1, help="Largest image area.", show_default="the model's"),
]
MinPixels = Annotated[
    int | None,
    typer.Option("--min-pixels", min=1, help="Smallest image area.", show_default="the model's"),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, help="Seed of everything random.", show_default="the recipe's, or 0"
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="CPU threads to compute with.",
        show_default="OMP_NUM_THREADS, or one per core",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, nothing else.")]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Discard work in the output folder that answers another question."
    ),
]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", help="Discard all earlier work in the output folder; do not resume."),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=1,
        help="Only N questions of each benchmark, spread over its categories.",
        show_default="all",
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Items answered at once.")]
Margin = Annotated[
    float,
    typer.Option("--margin", min=0.0, help="Points that may be lost before the verdict is FAIL."),
]
PromptStyle = Annotated[
    str | None,
    typer.Option(
        "--prompt-style",
        help="How questions are worded.",
        show_default="that of the model's family",
    ),
]
Pixels = Annotated[
    str,
    typer.Option(
        "--pixels",
        help="How large the benchmarks' pictures are shown: model (as the checkpoint says) or "
        "vlmevalkit (as for published scores: small ones are enlarged).",
    ),
]
Rules = Annotated[
    str | None,
    typer.Option("--rules", help="Answer-extraction profile.", show_default="2025-08"),
]

EndpointUrl = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="Ask a served model over the OpenAI-compatible chat API, in the place of MODEL.",
        show_default=False,
        rich_help_panel=ENDPOINT,
    ),
]
ServedModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="The served model's name.",
        show_default="the server's only one",
        rich_help_panel=ENDPOINT,
    ),
]
Concurrency = Annotated[
    int,
    typer.Option(
        "--concurrency", min=1, help="Requests under way at once.", rich_help_panel=ENDPOINT
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", min=1.0, help="Seconds that one request may take.", rich_help_panel=ENDPOINT
    ),
]
Retries = Annotated[
    int,
    typer.Option(
        "--retries",
        min=0,
        help="Of a request that fails with 429, 5xx, a timeout or a lost connection.",
        rich_help_panel=ENDPOINT,
    ),
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        "--api-key-env",
        metavar="NAME",
        help="Environment variable that holds the API key.",
        show_default="OPENAI_API_KEY, if set",
        rich_help_panel=ENDPOINT,
    ),
]
EndpointExtra = Annotated[
    str | None,
    typer.Option(
        "--endpoint-extra",
        metavar="JSON",
        help="Further request fields; null leaves one of ours out. They are stored.",
        show_default=False,
        rich_help_panel=ENDPOINT,
    ),
]
AcrossEngines = Annotated[
    bool,
    typer.Option(
        "--across-engines",
        help="Compare what different engines answered; the report notes what else differs.",
    ),
]
