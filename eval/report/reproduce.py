"""Commands that repeat a pair of evaluations and their comparison, from the stored runs."""

from __future__ import annotations

import json
import shlex
from typing import Any

from ...common.options import command_words
from ...quant.runtime.description import described_rule, described_type
from ..answering.openai_client import PIXELS, request_fields
from ..comparability import area_notes, describe_engine
from ..config import CompareOptions, EvaluateOptions
from ..fidelity.noise import read_noise
from ..fidelity.perplexity import FILE as TEXT
from ..fingerprint import VISUAL_TOKENS, uses_adapter
from ..results import StoredRun, read_quantization
from ..stats.criterion import MARGIN_CRITERION, Criterion
from ..tasks import BUILTIN, PLACES, REASONING
from ..tasks.generated.answer_limits import default_limit
from ..tasks.resolution import DEFAULT as MODEL_PIXELS

SAMPLING = ("samples", "temperature", "top_p", "top_k")
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def reproduce_command(
    base: StoredRun, candidate: StoredRun, margin: float, criterion: Criterion = MARGIN_CRITERION
) -> str:
    """Return a shell command that evaluates both models in the stored setups and compares them.

    Benchmark files are named as they were published, and a text `text.txt`: digests of these
    files are stored, their paths are not.

    Args:
        base: the original's run.
        candidate: a run with the same setup, or of another engine.
        margin: points that may be lost.
        criterion: how the verdict is found.
    """
    base_options, candidate_options = _options(base, "base"), _options(candidate, "candidate")
    base_options["noise"] = _noise_units(base)
    if all((task.folder / "fidelity.jsonl").is_file() for task in candidate.tasks.values()):
        candidate_options["reference"] = "base"
        candidate_options["across_pixels"] = bool(area_notes(base, candidate))
    comparison = {
        "base": "base",
        "candidate": ["candidate"],
        "out": "report",
        "margin": margin if criterion == MARGIN_CRITERION else None,
        "criterion": None if criterion == MARGIN_CRITERION else criterion,
        "across_engines": describe_engine(base) != describe_engine(candidate),
        "across_pixels": bool(area_notes(base, candidate)),
    }
    commands = [
        ["vlpress", "eval", *command_words(EvaluateOptions, base_options)],
        ["vlpress", "eval", *command_words(EvaluateOptions, candidate_options)],
        ["vlpress", "compare", *command_words(CompareOptions, comparison)],
    ]
    return " && ".join(map(shlex.join, commands))


def _options(run: StoredRun, out: str) -> dict[str, Any]:
    """The options of `eval` that repeat a run, in the order of the command."""
    setup = run.fingerprint
    # All tasks of a run were opened with the same options.
    tasks: list[dict[str, Any]] = [t.info["fingerprint"] for t in run.tasks.values()]
    task: dict[str, Any] = next(iter(tasks), {})
    limits = [each["limit"] for each in tasks if each["limit"]]  # none of those asked completely
    budget = task.get("pixels", {}).get("budget", MODEL_PIXELS)
    bounds = setup.get("pixels", {}) if budget == MODEL_PIXELS else {}
    generation = setup.get("generation", {})
    is_sampled = "samples" in generation
    return {
        **_model(run),
        "out": out,
        "bench": [_bench(run, name) for name in run.tasks],
        "limit": max(limits, default=None),
        "batch_size": setup.get("batch_size"),
        "prompt_style": task.get("prompt_style"),
        "coordinates": next((each[PLACES] for each in tasks if PLACES in each), None),
        "rules": task.get("profile"),
        "device": str(setup["device"]).partition(":")[0] if "device" in setup else None,
        "dtype": _DTYPES.get(str(setup.get("dtype"))),
        "pixels": None if budget == MODEL_PIXELS else budget,
        "min_pixels": bounds.get("min"),
        "max_pixels": bounds.get("max"),
        "seed": setup.get("seed"),
        **{key: generation[key] if is_sampled else None for key in SAMPLING},
        "max_new_tokens": _limits(run),
        "reasoning": task.get(REASONING),
        "blank_images": bool(task.get("blank_images")),
        "text": "text.txt" if (run.path / TEXT).is_file() else None,
    }


def _limits(run: StoredRun) -> list[str] | None:
    """Limits of answers that are not the default, by benchmark; None without any."""
    limits = []
    for name, stored in run.tasks.items():
        limit = stored.info["fingerprint"]["max_new_tokens"]
        synthetic = stored.info["synthetic"]
        if limit != default_limit(stored.reasoning_rule, synthetic=synthetic):
            limits.append(f"{name}={limit}")
    return limits or None


def _bench(run: StoredRun, name: str) -> str:
    if name in BUILTIN:
        return name
    info = run.tasks[name].info
    return f"{name}={info.get('source') or name}" if info["kind"] == "own" else f"{name}={name}.tsv"


def _noise_units(run: StoredRun) -> int | None:
    """Questions per benchmark of the measured noise floor; None if it was not measured."""
    floors = [next(iter(read_noise([task]).values()), None) for task in run.tasks.values()]
    return max((floor["units"] for floor in floors if floor), default=None)


def _model(run: StoredRun) -> dict[str, Any]:
    """Options that name a model in this process, or a served one and its request fields."""
    if "engine" not in run.fingerprint:
        described = run.fingerprint.get("kv_cache", "model")
        cache = None if described == "model" else described_type(described)
        rule = run.fingerprint.get(VISUAL_TOKENS)
        # Of a checkpoint with a rule of its own, one that was not applied is told so again.
        is_plain = rule is None and VISUAL_TOKENS not in (read_quantization(run) or {})
        reduce = None if is_plain else described_rule(rule)
        plain = None if uses_adapter(run.fingerprint) else True
        return {"model": run.name, "kv_cache": cache, "reduce": reduce, "no_adapter": plain}
    model, request = run.fingerprint["model"], run.fingerprint["request"]
    pixels = run.fingerprint["pixels"]
    generation = run.fingerprint["generation"]
    sampling = {key: generation[key] for key in SAMPLING[1:] if "samples" in generation}
    default = request_fields(
        seed=run.fingerprint["seed"],
        min_pixels=pixels["min"],
        max_pixels=pixels["max"],
        **sampling,
    )
    extra: dict[str, Any] = {name: None for name in default if name not in request}
    extra |= {name: value for name, value in request.items() if default.get(name) != value}
    if PIXELS in extra:  # the bounds have options of their own
        bounds = ("min_pixels", "max_pixels")
        extra[PIXELS] = {k: v for k, v in request[PIXELS].items() if k not in bounds}
    return {
        "endpoint": model["url"],
        "served_model": model["name"],
        "endpoint_extra": json.dumps(extra) if extra else None,
    }
