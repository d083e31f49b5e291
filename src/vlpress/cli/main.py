"""The command line: a thin typer front over the rooms.

Verbs turn options into a request, call one function and show what it returns. Nothing here
imports torch before a verb runs, so that ``--help`` is immediate.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from .. import __version__
from ..common.locking import sole_use
from ..common.threads import use_threads
from ..eval.config import Questions, RunRequest, Served
from ..quant.config import Calibration, Settings
from . import options
from .exit_codes import DEFECT, VERDICT_CODES, Verbs, is_shared, stop

if TYPE_CHECKING:
    from ..common.distributed import Communicator
    from ..common.progress import Reporter

SHARED = ("quantize", "eval")
NOT_KEPT = "no answers were kept; with --out DIR an evaluation can be resumed"

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make Qwen2-VL and Qwen2.5-VL models small, and prove what it cost.",
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"vlpress {__version__}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line and exit; a defect gets a traceback and its own exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        app()
    except Exception:
        traceback.print_exc()
    sys.exit(DEFECT)


def _reporter(comm: Communicator | None = None) -> Reporter:
    """Show progress, and what the rooms log as warnings, on standard error.

    Of processes that share the work, the first one shows it.
    """
    from ..common.progress import Reporter, WarningHandler, nowhere

    reporter = Reporter() if comm is None or comm.index == 0 else nowhere()
    logging.getLogger("vlpress").handlers = [WarningHandler(reporter)]
    return reporter


@contextmanager
def _unkept(applies: bool) -> Iterator[None]:
    """Say on interruption that there is nothing to go on from."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(NOT_KEPT if applies else "") from None


def _runtime(activations: str, head: str, kv_cache: str) -> dict[str, Any]:
    """What `Settings` calls the choices that `options` has checked."""
    return {"activations": activations, "head": head, "kv_cache": kv_cache}


def _settings(*values: Any, threads: int | None, **named: Any) -> Settings:
    """The settings of a verb, whose number of threads holds from here on."""
    use_threads(threads)
    return replace(Settings(*values, **named), threads=threads)


def _tuple(values: list[str] | None) -> tuple[str, ...] | None:
    return tuple(values) if values else None


@contextmanager
def _shared(out: Path) -> Iterator[Communicator]:
    """The processes that share the work, the first of which keeps others out of its folder."""
    from ..common.distributed import init_distributed

    with init_distributed() as comm, sole_use(out) if comm.index == 0 else nullcontext():
        yield comm


def _emit(result: dict[str, Any], as_json: bool, draw: Callable[[dict[str, Any]], str]) -> None:
    """Print a result on standard output: JSON or what ``draw`` makes of it."""
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else draw(result))


def _show_report(report: dict[str, Any], folder: Path, as_json: bool) -> None:
    from .console import comparison_table, headline

    several = "candidates" in report
    _emit(report, as_json, comparison_table if several else headline)
    written = "comparison.html" if several else "report.html"
    typer.echo(f"report: {folder / written}", err=True)


@app.callback()
def common(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    show_traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where in the code an error came from.")
    ] = False,
) -> None:
    """Make Qwen2-VL and Qwen2.5-VL models small, and prove what it cost."""
    if is_shared() and ctx.invoked_subcommand not in SHARED:
        raise typer.BadParameter(
            f"processes share the work of {' and '.join(SHARED)}; start this one without torchrun"
        )


@app.command()
def run(
    out: options.Out,
    model: options.Model = RunRequest.model,
    recipe: options.Recipe = RunRequest.recipe,
    tp: options.Tp = None,
    bench: options.Bench = None,
    data_root: options.DataRoot = Questions.data_root,
    calib: options.Calib = Calibration.source,
    calib_samples: options.CalibSamples = Calibration.samples,
    skip_bad_samples: options.SkipBadSamples = Calibration.skip_bad,
    memory: options.Memory = Calibration.memory,
    limit: options.Limit = Questions.limit,
    batch_size: options.BatchSize = Questions.batch_size,
    prompt_style: options.PromptStyle = Questions.prompt_style,
    rules: options.Rules = Questions.rules,
    pixels: options.Pixels = Questions.pixels,
    text: options.Text = Questions.text,
    noise: options.Noise = Questions.noise,
    margin: options.Margin = RunRequest.margin,
    gate: Annotated[
        bool, typer.Option("--gate", help="Exit with the verdict: 0 PASS, 1 FAIL, 4 INCONCLUSIVE.")
    ] = False,
    device: options.Device = Settings.device,
    dtype: options.Dtype = Settings.dtype,
    max_pixels: options.MaxPixels = Settings.max_pixels,
    min_pixels: options.MinPixels = Settings.min_pixels,
    seed: options.Seed = Settings.seed,
    threads: options.Threads = Settings.threads,
    json_output: options.Json = False,
    overwrite: options.Overwrite = False,
    fresh: options.Fresh = False,
) -> None:
    """Plan, quantize, write the checkpoint, load it back, evaluate both models, compare.

    A run that was stopped goes on where it was when the same command is given again.
    """
    from ..eval.run import run as run_all

    request = RunRequest(
        out=out,
        model=model,
        recipe=recipe,
        tp=tp,
        calibration=Calibration(calib, calib_samples, memory, skip_bad_samples),
        questions=Questions(
            _tuple(bench),
            data_root=data_root,
            limit=limit,
            batch_size=batch_size,
            prompt_style=prompt_style,
            rules=rules,
            pixels=pixels,
            text=text,
            noise=noise,
        ),
        settings=_settings(device, dtype, min_pixels, max_pixels, seed, threads=threads),
        margin=margin,
        overwrite=overwrite,
        fresh=fresh,
    )
    with sole_use(out):
        report = run_all(request, _reporter())
    _show_report(report, out / "report", json_output)
    if gate:
        raise typer.Exit(VERDICT_CODES[report["verdict"]])


@app.command()
def plan(
    model: options.Model,
    recipe: options.Recipe = RunRequest.recipe,
    tp: options.Tp = None,
    calib: options.Calib = Calibration.source,
    calib_samples: options.CalibSamples = Calibration.samples,
    skip_bad_samples: options.SkipBadSamples = Calibration.skip_bad,
    memory: options.Memory = Calibration.memory,
    format_: options.Format = "auto",
    device: options.Device = Settings.device,
    dtype: options.Dtype = Settings.dtype,
    max_pixels: options.MaxPixels = Settings.max_pixels,
    min_pixels: options.MinPixels = Settings.min_pixels,
    seed: options.Seed = Settings.seed,
    threads: options.Threads = Settings.threads,
    json_output: options.Json = False,
) -> None:
    """Show what would happen to every linear layer, and why; memory, scratch and time estimates."""
    from ..quant.api import plan_model
    from .console import plan_table

    calibration = Calibration(calib, calib_samples, memory, skip_bad_samples)
    settings = _settings(device, dtype, min_pixels, max_pixels, seed, threads=threads)
    result = plan_model(model, recipe, calibration, settings, tp, format_, reporter=_reporter())
    _emit(result, json_output, plan_table)


@app.command()
def quantize(
    model: options.Model,
    out: options.Out,
    recipe: options.Recipe = RunRequest.recipe,
    tp: options.Tp = None,
    calib: options.Calib = Calibration.source,
    calib_samples: options.CalibSamples = Calibration.samples,
    skip_bad_samples: options.SkipBadSamples = Calibration.skip_bad,
    memory: options.Memory = Calibration.memory,
    format_: options.Format = "auto",
    device: options.Device = Settings.device,
    dtype: options.Dtype = Settings.dtype,
    max_pixels: options.MaxPixels = Settings.max_pixels,
    min_pixels: options.MinPixels = Settings.min_pixels,
    seed: options.Seed = Settings.seed,
    threads: options.Threads = Settings.threads,
    json_output: options.Json = False,
    overwrite: options.Overwrite = False,
    fresh: options.Fresh = False,
) -> None:
    """Quantize a model and write the checkpoint; it appears whole or not at all."""
    from ..quant.api import quantize_to
    from .console import inspect_table

    with _shared(out) as comm:
        result = quantize_to(
            out,
            model=model,
            recipe=recipe,
            calibration=Calibration(calib, calib_samples, memory, skip_bad_samples),
            settings=_settings(device, dtype, min_pixels, max_pixels, seed, threads=threads),
            format_=format_,
            overwrite=overwrite,
            fresh=fresh,
            reporter=_reporter(comm),
            tp=tp,
            comm=comm,
        )
    if comm.index == 0:
        _emit(result, json_output, inspect_table)


@app.command()
def export(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CKPT", help="A quantized checkpoint: a folder or a hub id.")
    ],
    out: options.Out,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="What to make of it: gptq, gptq_v2, compressed-tensors, awq.",
            show_default=False,
        ),
    ],
    threads: options.Threads = Settings.threads,
    json_output: options.Json = False,
    overwrite: options.Overwrite = False,
    fresh: options.Fresh = False,
) -> None:
    """Write a quantized checkpoint in another format; nothing is rounded again."""
    from ..quant.api import export_to
    from .console import inspect_table

    use_threads(threads)
    with sole_use(out):
        result = export_to(
            checkpoint, out, format_, overwrite=overwrite, fresh=fresh, reporter=_reporter()
        )
    _emit(result, json_output, inspect_table)


@app.command(name="eval")
def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A checkpoint folder, a hub id, 'tiny' or 'tiny-outliers'; or give --endpoint.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Where answers are kept, to be resumed and compared.",
            show_default="nowhere",
        ),
    ] = None,
    bench: options.Bench = None,
    data_root: options.DataRoot = Questions.data_root,
    limit: options.Limit = Questions.limit,
    batch_size: options.BatchSize = Questions.batch_size,
    prompt_style: options.PromptStyle = Questions.prompt_style,
    rules: options.Rules = Questions.rules,
    pixels: options.Pixels = Questions.pixels,
    text: options.Text = Questions.text,
    noise: options.Noise = Questions.noise,
    blank_images: Annotated[
        bool,
        typer.Option("--blank-images", help="Show grey pictures: what can be guessed unseen."),
    ] = Questions.blank_images,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            help="Folder of the original model's evaluation: adds the KL divergence to it.",
            show_default=False,
        ),
    ] = None,
    endpoint: options.EndpointUrl = None,
    served_model: options.ServedModel = Served.model,
    concurrency: options.Concurrency = Served.concurrency,
    timeout: options.Timeout = Served.timeout,
    retries: options.Retries = Served.retries,
    api_key_env: options.ApiKeyEnv = Served.api_key_env,
    endpoint_extra: options.EndpointExtra = Served.extra,
    device: options.Device = Settings.device,
    dtype: options.Dtype = Settings.dtype,
    activations: options.Activations = Settings.activations,
    head: options.Head = Settings.head,
    kv_cache: options.KVCache = Settings.kv_cache,
    max_pixels: options.MaxPixels = Settings.max_pixels,
    min_pixels: options.MinPixels = Settings.min_pixels,
    seed: options.Seed = Settings.seed,
    threads: options.Threads = Settings.threads,
    json_output: options.Json = False,
    overwrite: options.Overwrite = False,
    fresh: options.Fresh = False,
) -> None:
    """Ask a model the benchmarks' questions; predictions are stored as they come."""
    from .console import scores_table

    _check_one_model(model, endpoint, served_model)
    if endpoint is not None and (activations, head, kv_cache) != ("recipe", "recipe", "model"):
        raise typer.BadParameter(
            "--activations, --head and --kv-cache are for a MODEL here, not an endpoint"
        )
    if is_shared() and (out is None or endpoint is not None):
        raise typer.BadParameter("processes that share an evaluation need --out, and a MODEL here")
    folder = (
        tempfile.TemporaryDirectory(prefix="vlpress-") if out is None else nullcontext(str(out))
    )
    with folder as kept, _unkept(out is None):
        asked: dict[str, Any] = {
            "questions": Questions(
                _tuple(bench),
                data_root=data_root,
                limit=limit,
                batch_size=batch_size,
                prompt_style=prompt_style,
                rules=rules,
                pixels=pixels,
                blank_images=blank_images,
                text=text,
                noise=noise,
            ),
            "settings": _settings(
                device,
                dtype,
                min_pixels,
                max_pixels,
                seed,
                threads=threads,
                **_runtime(activations, head, kv_cache),
            ),
            "reference": reference,
            "overwrite": overwrite,
            "fresh": fresh,
        }
        if endpoint is not None:
            from ..eval.served import evaluate_served_to

            served = Served(
                endpoint,
                served_model,
                concurrency,
                timeout,
                retries,
                api_key_env,
                endpoint_extra,
            )
            with sole_use(Path(kept)):
                result = evaluate_served_to(
                    Path(kept), served=served, reporter=_reporter(), **asked
                )
        else:
            from ..eval.api import evaluate_to

            with _shared(Path(kept)) as comm:
                result = evaluate_to(
                    Path(kept), model=str(model), reporter=_reporter(comm), comm=comm, **asked
                )
            if comm.index:
                return
    _emit(result, json_output, scores_table)


def _check_one_model(model: str | None, endpoint: str | None, served_model: str | None) -> None:
    if (model is None) == (endpoint is None):
        found = "both" if model else "neither"
        raise typer.BadParameter(f"{found} given; give MODEL, or --endpoint URL --model NAME")
    if endpoint is None and served_model is not None:
        raise typer.BadParameter("--model names a served model; it needs --endpoint URL")


@app.command()
def compare(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="The original's evaluation folder.")],
    candidate: Annotated[
        list[Path], typer.Argument(metavar="CANDIDATE...", help="One or more folders to judge.")
    ],
    out: options.Out,
    margin: options.Margin = RunRequest.margin,
    across_engines: options.AcrossEngines = False,
    json_output: options.Json = False,
) -> None:
    """Judge stored predictions; needs no model. The exit code is the verdict."""
    from ..eval.api import compare_all

    result = compare_all(base, candidate, out, margin=margin, across_engines=across_engines)
    _show_report(result, out, json_output)
    raise typer.Exit(VERDICT_CODES[result["verdict"]])


@app.command()
def generate(
    model: options.Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The question.")],
    image: Annotated[
        list[str] | None,
        typer.Option("--image", help="An image file, or a file:// or data: URL; repeatable."),
    ] = None,
    video: Annotated[str | None, typer.Option("--video", help="A video file.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token.")
    ] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0)] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="0 = no limit.")] = 0,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", min=0.0, help="1 = none.")
    ] = 1.0,
    device: options.Device = Settings.device,
    dtype: options.Dtype = Settings.dtype,
    activations: options.Activations = Settings.activations,
    head: options.Head = Settings.head,
    kv_cache: options.KVCache = Settings.kv_cache,
    max_pixels: options.MaxPixels = Settings.max_pixels,
    min_pixels: options.MinPixels = Settings.min_pixels,
    seed: options.Seed = Settings.seed,
    threads: options.Threads = Settings.threads,
    json_output: options.Json = False,
) -> None:
    """Answer one question about images or a video, written out as it is found."""
    from ..model.generation import Sampling
    from ..quant.generate import answer

    def stream(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    result = answer(
        model,
        prompt,
        images=image or [],
        video=video,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_p, top_k, repetition_penalty, seed or 0),
        settings=_settings(
            device,
            dtype,
            min_pixels,
            max_pixels,
            seed,
            threads=threads,
            **_runtime(activations, head, kv_cache),
        ),
        on_text=None if json_output else stream,
    )
    _emit(result, json_output, lambda _: "")


@app.command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="A quantized checkpoint.")],
    json_output: options.Json = False,
) -> None:
    """Show bits, scheme, error and size of every layer of a quantized checkpoint."""
    from ..quant.api import inspect_checkpoint
    from .console import inspect_table

    _emit(inspect_checkpoint(checkpoint), json_output, inspect_table)


@app.command()
def bench(
    what: Annotated[str, typer.Argument(help="kernels or model.")] = "kernels",
    model: Annotated[
        str, typer.Option("--model", "-m", help="For model: a checkpoint folder or a hub id.")
    ] = "tiny",
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            help="For kernels: in_features x out_features; repeat it for several.",
            show_default="the MLPs of 3B and 7B",
        ),
    ] = None,
    rows: Annotated[
        list[int] | None,
        typer.Option(
            "--rows",
            min=1,
            help="For kernels: tokens at a time; repeat it for several.",
            show_default="1, 4, 16, 256, 1024",
        ),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", min=1, help="For model: length of the prompts.")
    ] = 1024,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", min=2, help="For model: length of the answers.")
    ] = 32,
    device: options.Device = Settings.device,
    dtype: options.Dtype = Settings.dtype,
    activations: options.Activations = Settings.activations,
    head: options.Head = Settings.head,
    kv_cache: options.KVCache = Settings.kv_cache,
    threads: options.Threads = Settings.threads,
    json_output: options.Json = False,
) -> None:
    """Measure speed here: quantized layers beside torch's own, or a model as generate runs it."""
    from ..bench.run import bench_kernels, bench_model
    from .console import kernels_table, speed_table

    if what == "kernels":
        if device not in ("auto", "cpu"):
            raise typer.BadParameter(f"--device {device}; layers are timed on the CPU only so far")
        use_threads(threads)
        _emit(bench_kernels(size or (), rows or ()), json_output, kernels_table)
    elif what == "model":
        runtime = _runtime(activations, head, kv_cache)
        settings = _settings(device, dtype, threads=threads, **runtime)
        found = bench_model(model, settings, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
        _emit(found, json_output, speed_table)
    else:
        raise typer.BadParameter(f"{what!r}; allowed: kernels, model")
