"""The command line: verbs that call the Python API and print its results.

Options come from the dataclasses of the API, see `parameters`. No module imported here imports
torch, so that `--help` is fast; verbs import what they need.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from .. import __version__
from ..bench.config import BenchOptions
from ..common.environment import is_distributed, process_rank
from ..common.threads import limit_spinning
from ..eval.config import (
    CompareOptions,
    EvaluateOptions,
    PlanOptions,
    RunOptions,
    SplitOptions,
)
from ..eval.pixels.config import PixelsOptions
from ..eval.search.config import SearchOptions
from ..quant.config import (
    ExportOptions,
    GenerateOptions,
    ImatrixOptions,
    InspectOptions,
    PackOptions,
    PushOptions,
    QuantizeOptions,
    RecoverOptions,
    TeachOptions,
    UnpackOptions,
    VerifyOptions,
)
from .exit_codes import DEFECT, VERDICT_CODES, Verbs, stop
from .parameters import command
from .starting import starting

DISTRIBUTED = ("quantize", "eval")
NOT_STORED = "no answers were stored; without --no-cache an evaluation can be resumed"
NO_RECIPE = "no recipe was written; the same command starts the search again"
HELP = "Quantize Qwen vision-language models and measure the accuracy loss."

Values = dict[str, Any]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, nothing else.")]

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help=HELP,
)


def main() -> NoReturn:
    """Run the command line and exit; a defect ends with a traceback and its own exit code."""
    limit_spinning()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        app()
    except Exception:
        traceback.print_exc()
    sys.exit(DEFECT)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"vlpress {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def common(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    show_traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Check that a verb can be distributed if torchrun started it."""
    if is_distributed() and ctx.invoked_subcommand not in DISTRIBUTED:
        raise typer.BadParameter(
            f"processes share the work of {' and '.join(DISTRIBUTED)}; start this one without "
            "torchrun"
        )


def _print(result: Values, json_output: bool, draw: Callable[[Values], str]) -> None:
    """Print a result on standard output, as JSON or drawn as a table; only on rank 0."""
    if process_rank() == 0:
        text = json.dumps(result, indent=2, ensure_ascii=False) if json_output else draw(result)
        typer.echo(text)


def _print_report(report: Values, folder: Path, json_output: bool) -> None:
    from ..eval.report.summary import summarize_comparison, summarize_report

    is_comparison = "candidates" in report
    _print(report, json_output, summarize_comparison if is_comparison else summarize_report)
    page = "comparison.html" if is_comparison else "report.html"
    typer.echo(f"report: {folder / page}", err=True)


@command(app, RunOptions)
def run(
    values: Values,
    gate: Annotated[
        bool, typer.Option("--gate", help="Exit with the verdict: 0 PASS, 1 FAIL, 4 INCONCLUSIVE.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Plan, quantize, write the checkpoint, load it back, evaluate both models, compare.

    The same command resumes an interrupted run.
    """
    with starting(RunOptions(**values)):
        from ..eval.run import run

    report = run(**values, progress=True)
    _print_report(report, values["out"] / "report", json_output)
    if gate:
        raise typer.Exit(VERDICT_CODES[report["verdict"]])


@command(app, PlanOptions)
def plan(values: Values, json_output: Json = False) -> None:
    """Show the effect of a recipe on every linear layer; memory, scratch and time estimates."""
    with starting(PlanOptions(**values)):
        from ..eval.planning.run_plan import plan
        from .console import plan_table

    _print(plan(**values, progress=True), json_output, plan_table)


@command(app, SplitOptions)
def split(values: Values, json_output: Json = False) -> None:
    """Split a file of questions, by image, into calibration samples and evaluation questions."""
    with starting(SplitOptions(**values), needs_torch=False):
        from ..eval.own.split import split
        from .console import split_lines

    _print(split(**values, progress=True), json_output, split_lines)


@command(app, QuantizeOptions)
def quantize(values: Values, json_output: Json = False) -> None:
    """Quantize a model and write the checkpoint, which appears complete or not at all."""
    with starting(QuantizeOptions(**values)):
        from ..quant.api import quantize
        from .console import inspect_table

    _print(quantize(**values, progress=True), json_output, inspect_table)


@command(app, RecoverOptions)
def recover(values: Values, json_output: Json = False) -> None:
    """Train few parameters of a quantized checkpoint, towards teachers or your own answers."""
    with starting(RecoverOptions(**values)):
        from ..quant.recover.api import recover
        from .console import inspect_table

    _print(recover(**values, progress=True), json_output, inspect_table)


@command(app, TeachOptions)
def teach(values: Values, json_output: Json = False) -> None:
    """Store a model's log-probabilities along the answers of samples, as a teacher of `recover`."""
    with starting(TeachOptions(**values)):
        from ..quant.recover.api import teach
        from .console import teacher_line

    _print(teach(**values, progress=True), json_output, teacher_line)


@command(app, ExportOptions)
def export(values: Values, json_output: Json = False) -> None:
    """Convert a checkpoint to another format; nothing is rounded again."""
    with starting(ExportOptions(**values)):
        from ..quant.api import export
        from .console import export_table

    _print(export(**values, progress=True), json_output, export_table)


@command(app, ImatrixOptions)
def imatrix(values: Values, json_output: Json = False) -> None:
    """Write llama.cpp's importance matrix, measured on samples with images."""
    with starting(ImatrixOptions(**values)):
        from ..quant.imatrix import imatrix
        from .console import imatrix_line

    _print(imatrix(**values, progress=True), json_output, imatrix_line)


@command(app, PackOptions)
def pack(values: Values, json_output: Json = False) -> None:
    """Pack a checkpoint without loss for storage and download; all verbs read it packed."""
    with starting(PackOptions(**values)):
        from ..quant.pack import pack
        from .console import packed_table

    _print(pack(**values, progress=True), json_output, packed_table)


@command(app, UnpackOptions)
def unpack(values: Values, json_output: Json = False) -> None:
    """Restore the files of a packed checkpoint, byte for byte."""
    with starting(UnpackOptions(**values)):
        from ..quant.pack import unpack
        from .console import unpacked_line

    _print(unpack(**values, progress=True), json_output, unpacked_line)


@command(app, EvaluateOptions, name="eval")
def evaluate(values: Values, json_output: Json = False) -> None:
    """Evaluate a model on benchmarks; predictions are stored as they arrive."""
    with starting(EvaluateOptions(**values)):
        from ..eval.api import evaluate
        from .console import scores_table

    try:
        scores = evaluate(**values, progress=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            NOT_STORED if values["out"] is None and values["no_cache"] else ""
        ) from None
    _print(scores, json_output, scores_table)


@command(app, CompareOptions)
def compare(values: Values, json_output: Json = False) -> None:
    """Judge stored predictions; needs no model. The exit code is the verdict."""
    with starting(CompareOptions(**values)):
        from ..eval.api import compare

    report = compare(**values)
    _print_report(report, values["out"], json_output)
    raise typer.Exit(VERDICT_CODES[report["verdict"]])


@command(app, PixelsOptions)
def pixels(values: Values, json_output: Json = False) -> None:
    """Evaluate a model at several visual-token budgets; find the smallest that passes.

    With --write the exit code is 1 or 4 if no budget passes on all benchmarks.
    """
    with starting(PixelsOptions(**values)):
        from ..eval.pixels.run import pixels
        from ..eval.report.budgets import summarize_budgets

    result = pixels(**values, progress=True)
    _print(result, json_output, summarize_budgets)
    typer.echo(f"report: {values['out'] / 'pixels.html'}", err=True)
    if values["write"] is not None:
        raise typer.Exit(VERDICT_CODES[result["verdict"]])


@command(app, SearchOptions)
def search(values: Values, json_output: Json = False) -> None:
    """Choose bits and grid of every layer under a budget; write the recipe for `quantize`."""
    with starting(SearchOptions(**values)):
        from ..eval.search.run import search
        from ..eval.search.summary import summarize_search

    try:
        result = search(**values, progress=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(NO_RECIPE) from None
    _print(result, json_output, summarize_search)


@command(app, GenerateOptions)
def generate(values: Values, json_output: Json = False) -> None:
    """Answer one question about images or a video; the answer is streamed."""
    with starting(GenerateOptions(**values)):
        from ..quant.generate import generate
        from .console import drafts_line

    def stream(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    answer = generate(**values, on_text=None if json_output else stream)
    _print(answer, json_output, lambda _: "")
    if "draft" in answer and not json_output:
        typer.echo(drafts_line(answer["draft"]), err=True)


@command(app, InspectOptions)
def inspect(values: Values, json_output: Json = False) -> None:
    """Show bits, scheme, error and size of every layer of a quantized checkpoint."""
    with starting(InspectOptions(**values)):
        from ..quant.api import inspect
        from .console import inspect_table

    _print(inspect(**values), json_output, inspect_table)


@command(app, VerifyOptions)
def verify(values: Values, json_output: Json = False) -> None:
    """Compare static int8 layers in integer arithmetic with the kernels; --integer names the check.

    The exit code is 1 if a layer does not agree.
    """
    with starting(VerifyOptions(**values)):
        from ..quant.integer.run import verify
        from .console import verify_table

    result = verify(**values, progress=True)
    _print(result, json_output, verify_table)
    raise typer.Exit(VERDICT_CODES["PASS" if result["agrees"] else "FAIL"])


@command(app, PushOptions)
def push(values: Values, json_output: Json = False) -> None:
    """Upload a quantized checkpoint with its model card to a model hub."""
    with starting(PushOptions(**values)):
        from ..quant.api import push

    _print(push(**values), json_output, lambda result: f"{result['url']}: {result['commit']}")


@command(app, BenchOptions)
def bench(values: Values, json_output: Json = False) -> None:
    """Measure the speed of quantized layers relative to torch's, or of a model in `generate`."""
    with starting(BenchOptions(**values)):
        from ..bench.run import bench
        from .console import kernels_table, speed_table

    table = kernels_table if values["what"] == "kernels" else speed_table
    _print(bench(**values), json_output, table)
