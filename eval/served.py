"""Asking a served model: the work behind ``eval --endpoint``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.output_dir import refuse_foreign
from ..common.progress import Reporter
from ..quant.config import Settings
from .answering.openai_client import Endpoint, base_url, read_api_key, request_fields
from .answering.openai_responder import (
    EndpointResponder,
    choose_model,
    evaluate_endpoint,
    served_fingerprint,
)
from .api import RUN_FILE, make_room
from .config import Questions, Served
from .resolve import check_questions, open_tasks_in
from .results import read_run
from .tasks.askable import mark_as_reference
from .tasks.prompts import default_prompt_style


def evaluate_served_to(
    out: Path,
    *,
    served: Served,
    questions: Questions,
    settings: Settings,
    reference: Path | None,
    overwrite: bool,
    fresh: bool,
    reporter: Reporter,
) -> dict[str, Any]:
    """Evaluate a served model into a folder, resuming what is there; return its scores.

    Raises:
        FileNotFoundError: a benchmark file or the reference does not exist.
        ValueError: something does not fit, ``out`` holds other work, or the server refuses or
            does not answer.
    """
    endpoint = _endpoint(served, settings)
    check_questions(questions, settings)
    refuse_foreign(out, RUN_FILE)
    style = questions.prompt_style or _reference_style(reference)
    tasks = open_tasks_in(style, questions, settings)
    if reference is not None:
        tasks = mark_as_reference(tasks, read_run(reference))
    with closing(EndpointResponder(endpoint)) as responder:
        models = responder.models()
    endpoint = replace(endpoint, model=endpoint.model or choose_model(models))
    seed = settings.seed or 0
    setup = served_fingerprint(endpoint, models, seed=seed)
    make_room(out, lambda: setup, tasks, overwrite=overwrite, fresh=fresh)
    if reference is not None:
        _say_what_a_reference_gives(reference, setup, reporter)
    with reporter.stages("evaluate") as update:
        result = evaluate_endpoint(
            endpoint,
            tasks,
            out,
            batch_size=questions.batch_size,
            seed=seed,
            reference=reference,
            on_progress=update,
        )
    return result.to_dict()


def _say_what_a_reference_gives(
    reference: Path, setup: Mapping[str, Any], reporter: Reporter
) -> None:
    reporter.note("the divergence is not measured: a server gives no full log-probabilities")
    if read_run(reference).fingerprint.get("engine") != setup["engine"]:
        reporter.warn(f"{reference} is of another engine: compare will need --across-engines")


def _endpoint(served: Served, settings: Settings) -> Endpoint:
    if settings.device != "auto" or settings.dtype != "auto":
        raise ValueError(
            "--device and --dtype are of a model in this process; the server has chosen its own"
        )
    fields = request_fields(
        seed=settings.seed or 0,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        extra=_parse_extra(served.extra),
    )
    return Endpoint(
        base_url(served.url),
        served.model or "",
        fields,
        api_key=read_api_key(served.api_key_env),
        concurrency=served.concurrency,
        timeout=served.timeout,
        retries=served.retries,
    )


def _parse_extra(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError as error:
        raise ValueError(f"--endpoint-extra {text!r} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"--endpoint-extra {text!r} is no JSON object of request fields")
    return found


def _reference_style(reference: Path | None) -> str:
    """The prompt style of the original's evaluation: a server does not say what it serves."""
    if reference is None:
        choices = ", ".join(
            f"{default_prompt_style(family)} for {name}"
            for family, name in (("qwen2_vl", "Qwen2-VL"), ("qwen2_5_vl", "Qwen2.5-VL"))
        )
        raise ValueError(
            "a server does not say which family its model is of: give --prompt-style "
            f"({choices}), or the original's evaluation with --reference"
        )
    styles = {t.info["fingerprint"]["prompt_style"] for t in read_run(reference).tasks.values()}
    if len(styles) != 1:
        raise ValueError(f"{reference} holds {len(styles)} prompt styles; give --prompt-style")
    return str(styles.pop())
