"""Evaluation of a served model over the OpenAI-compatible chat API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.output_dir import refuse_foreign
from ..common.progress import Reporter
from ..quant.config import DeviceOptions, RuntimeOptions
from .answering.openai_client import Endpoint, normalize_url, read_api_key, request_fields
from .answering.openai_responder import (
    EndpointResponder,
    choose_model,
    evaluate_endpoint,
    sent_decoding,
    served_fingerprint,
)
from .config import EvaluateOptions
from .local import RUN_FILE, discard_stale
from .planning.checks import check_questions
from .planning.stages import SERVED, describe
from .resolve import open_tasks_in
from .results import read_run
from .tasks import PLACES, REASONING
from .tasks.askable import mark_as_reference, require_input_sizes
from .tasks.generated.reasoning import NONE
from .tasks.prompts import default_prompt_style


def evaluate_served(out: Path, options: EvaluateOptions, reporter: Reporter) -> dict[str, Any]:
    """Evaluate a served model into a folder, resuming an interrupted evaluation.

    Args:
        out: folder of the evaluation, locked by the caller.
        options: endpoint, benchmarks and settings.
        reporter: shows progress.

    Returns:
        The scores, as `scores.json` holds them.

    Raises:
        FileNotFoundError: a benchmark file or the reference does not exist.
        ValueError: an option does not fit, `out` holds other work, or the server refuses a
            request or does not answer.
    """
    endpoint = _endpoint(options)
    reference = None if options.reference is None else Path(options.reference)
    check_questions(options, options)
    refuse_foreign(out, RUN_FILE)
    style = options.prompt_style or _reference_style(reference)
    rule = options.reasoning or _reference_rule(reference)
    places = options.coordinates or _reference_places(reference)
    tasks = open_tasks_in(style, rule, places, options, options)
    if reference is not None:
        tasks = mark_as_reference(tasks, read_run(reference))
    require_input_sizes(tasks)
    with closing(EndpointResponder(endpoint)) as responder:
        models = responder.models()
    endpoint = replace(endpoint, model=endpoint.model or choose_model(models))
    seed = options.seed or 0
    decoding = sent_decoding(endpoint, options.samples, seed)
    setup = served_fingerprint(endpoint, models, decoding)
    discard_stale(out, lambda: setup, tasks, overwrite=options.overwrite, fresh=options.fresh)
    if reference is not None:
        _note_limits(reference, setup, reporter)
    stored = None if options.out is None and options.no_cache else out
    reporter.note(describe(f"evaluating {endpoint.model}{decoding.note}", tasks, stored))
    with reporter.stages(SERVED) as update:
        result = evaluate_endpoint(
            endpoint,
            tasks,
            out,
            batch_size=options.batch_size,
            seed=seed,
            samples=options.samples,
            reference=reference,
            on_progress=update,
        )
    return result.to_dict()


def _note_limits(reference: Path, setup: Mapping[str, Any], reporter: Reporter) -> None:
    """Report the limits of a comparison between a reference and a served model."""
    reporter.note("the divergence is not measured: a server gives no full log-probabilities")
    if read_run(reference).fingerprint.get("engine") != setup["engine"]:
        reporter.warn(f"{reference} is of another engine: compare will need --across-engines")


def _endpoint(options: EvaluateOptions) -> Endpoint:
    if options.group(RuntimeOptions) != RuntimeOptions():
        raise ValueError(
            "--activations, --head, --kv-cache and --reduce are for a MODEL here, not an endpoint"
        )
    if options.group(DeviceOptions) != DeviceOptions():
        raise ValueError(
            "--device and --dtype are of a model in this process; the server has chosen its own"
        )
    fields = request_fields(
        seed=options.seed or 0,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
        extra=_parse_extra(options.endpoint_extra),
    )
    return Endpoint(
        normalize_url(str(options.endpoint)),
        options.served_model or "",
        fields,
        api_key=read_api_key(options.api_key_env),
        concurrency=options.concurrency,
        timeout=options.timeout,
        retries=options.retries,
    )


def _parse_extra(text: str | None) -> dict[str, Any]:
    try:
        fields = json.loads(text) if text else {}
    except ValueError as error:
        raise ValueError(f"--endpoint-extra {text!r} is not valid JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"--endpoint-extra {text!r} is not a JSON object of request fields")
    return fields


def _reference_style(reference: Path | None) -> str:
    """Return the prompt style of the original's evaluation; servers do not report the family."""
    if reference is None:
        choices = ", ".join(
            f"{default_prompt_style(family)} for {name}"
            for family, name in (
                ("qwen2_vl", "Qwen2-VL"),
                ("qwen2_5_vl", "Qwen2.5-VL"),
                ("qwen3_vl", "Qwen3-VL"),
                ("qwen3_5", "Qwen3.5"),
                ("llava", "LLaVA-1.5"),
            )
        )
        raise ValueError(
            "a server does not report the family of its model: give --prompt-style "
            f"({choices}), or the original's evaluation with --reference"
        )
    styles = {t.info["fingerprint"]["prompt_style"] for t in read_run(reference).tasks.values()}
    if len(styles) != 1:
        raise ValueError(f"{reference} holds {len(styles)} prompt styles; give --prompt-style")
    return str(styles.pop())


def _reference_rule(reference: Path | None) -> str:
    """Return the reasoning rule of the original's evaluation; without one it is none.

    A server does not report its chat template. Replies with a reasoning are refused under none.
    """
    if reference is None:
        return NONE
    tasks = read_run(reference).tasks.values()
    rules = {task.info["fingerprint"].get(REASONING, NONE) for task in tasks}
    if len(rules) != 1:
        raise ValueError(f"{reference} holds {len(rules)} reasoning rules; give --reasoning")
    return str(rules.pop())


def _reference_places(reference: Path | None) -> str | None:
    """Return the rule of places of the original's evaluation; None if it has none."""
    if reference is None:
        return None
    tasks = read_run(reference).tasks.values()
    rules = {task.info["fingerprint"].get(PLACES) for task in tasks} - {None}
    if len(rules) > 1:
        raise ValueError(f"{reference} holds {len(rules)} rules of places; give --coordinates")
    return str(rules.pop()) if rules else None
