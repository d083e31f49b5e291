"""The verbs `evaluate` and `compare` of the Python API."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..common.environment import is_distributed
from ..common.options import elements, verb
from ..common.output_dir import shared_use, sole_use
from ..common.progress import Reporter, reporting
from ..common.threads import use_threads
from . import compare as compare_one
from . import compare_many
from .answering.answer_cache import cache_folder, describe_cache, prune_cache
from .comparability import check_same_bytes
from .config import CompareOptions, EvaluateOptions
from .local import evaluate_local
from .served import evaluate_served


@verb(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Evaluate a model, or a served one with `endpoint`, on benchmarks.

    Answers are stored in `out` as they arrive, and an interrupted call resumes when it is
    repeated; without `out` they are in a cache folder (`answering.answer_cache`), where those that
    have not been used for 30 days are removed. Processes that torchrun started share the batches
    of a local model. `vlpress.eval.evaluate_model` evaluates a model that is in memory.

    Returns:
        The content of `scores.json`.

    Raises:
        FileNotFoundError: the model, a benchmark file or the reference does not exist.
        ValueError: an option does not fit, `out` holds other work, is in use, or the server
            refuses a request.
        ConnectionAbortedError: another process of a distributed run ended.
    """
    _check_model(options)
    use_threads(options.threads)
    folder: AbstractContextManager[str]
    note = ""
    if options.out is not None:
        folder = nullcontext(str(options.out))
    elif options.no_cache:
        folder = TemporaryDirectory(prefix="vlpress-")
    else:
        cached = cache_folder(options)
        note = describe_cache(cached, prune_cache(cached))
        folder = nullcontext(str(cached))
        # A stored evaluation of another setup is of an earlier state of model or software.
        options = replace(options, overwrite=True)
    with folder as name:
        out = Path(name)
        if options.endpoint is None:
            with shared_use(out, progress=options.progress) as (comm, reporter):
                _note(note, reporter)
                return evaluate_local(out, options, reporter, comm)
        with sole_use(out), reporting(options.progress) as reporter:
            _note(note, reporter)
            return evaluate_served(out, options, reporter)


def _note(note: str, reporter: Reporter) -> None:
    if note:
        reporter.note(note)


def _check_model(options: EvaluateOptions) -> None:
    """Check that there is one model, and an output folder where processes share the work."""
    if (options.model is None) == (options.endpoint is None):
        given = "both" if options.model else "neither"
        raise ValueError(f"{given} given; give MODEL, or --endpoint URL --model NAME")
    if options.endpoint is None and options.served_model is not None:
        raise ValueError("--model names a served model; it needs --endpoint URL")
    if is_distributed() and (options.out is None or options.endpoint is not None):
        raise ValueError("processes that share an evaluation need --out, and a MODEL here")


@verb(CompareOptions)
def compare(options: CompareOptions) -> dict[str, Any]:
    """Judge stored evaluations of one or several candidates; needs no model.

    Returns:
        The content of `report.json`, or of `comparison.json` for several candidates.

    Raises:
        FileNotFoundError: a folder is not an evaluation.
        ValueError: the evaluations are unfinished or not comparable, or have other sizes than
            `same_bytes` allows.
    """
    base, out = Path(options.base), Path(options.out)
    candidates = [Path(path) for path in elements(options.candidate)]
    judging: dict[str, Any] = {
        "margin": options.margin,
        "criterion": options.criterion,
        "across_engines": options.across_engines,
        "across_pixels": options.across_pixels,
    }
    if options.same_bytes:
        check_same_bytes(candidates)
    if len(candidates) == 1:
        return compare_one(base, candidates[0], out, **judging)
    return compare_many(base, candidates, out, **judging)
