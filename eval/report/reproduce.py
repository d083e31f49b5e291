"""The command that makes an evaluation again, from what its folder says about itself."""

from __future__ import annotations

import json
import shlex
from typing import Any

from ..answering.openai_client import PIXELS, request_fields
from ..comparability import engine_name
from ..fidelity.noise import read_noise
from ..fidelity.perplexity import FILE as TEXT
from ..results import StoredRun
from ..tasks import BUILTIN
from ..tasks.resolution import DEFAULT as MODEL_PIXELS

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def reproduce_command(base: StoredRun, candidate: StoredRun, margin: float) -> str:
    """One line for a shell: evaluate both models as they were, then compare.

    Benchmark files are called by the name they are published under, a text `text.txt`: where they
    lay is not stored, their digests are.

    Args:
        base: the original's run.
        candidate: one with the same setup, or of another engine.
        margin: points that may be lost.
    """
    measured = all((t.folder / "fidelity.jsonl").is_file() for t in candidate.tasks.values())
    evaluated = [
        ["vlpress", "eval", *_model(run), "-o", name, *_setup_options(run)]
        for name, run in (("base", base), ("candidate", candidate))
    ]
    for words, run in zip(evaluated, (base, candidate), strict=True):
        words += ["--text", "text.txt"] if (run.path / TEXT).is_file() else []
    evaluated[0] += _noise(base)
    evaluated[1] += ["--reference", "base"] if measured else []
    compared = ["vlpress", "compare", "base", "candidate", "-o", "report", "--margin"]
    compared.append(f"{margin:g}")
    if engine_name(base) != engine_name(candidate):
        compared.append("--across-engines")
    return " && ".join(shlex.join(line) for line in [*evaluated, compared])


def _noise(run: StoredRun) -> list[str]:
    """How many questions of each benchmark were asked again."""
    units = [
        found["units"]
        for task in run.tasks.values()
        if (found := next(iter(read_noise([task]).values()), None))
    ]
    return ["--noise", str(max(units))] if units else []


def _model(run: StoredRun) -> list[str]:
    """What is evaluated: a model in this process, or a served one and how it was asked."""
    if "engine" not in run.fingerprint:
        return [run.name]
    model, asked = run.fingerprint["model"], run.fingerprint["request"]
    pixels = run.fingerprint["pixels"]
    ours = request_fields(
        seed=run.fingerprint["seed"], min_pixels=pixels["min"], max_pixels=pixels["max"]
    )
    extra: dict[str, Any] = {name: None for name in ours if name not in asked}
    extra |= {name: value for name, value in asked.items() if ours.get(name) != value}
    if PIXELS in extra:  # bounds are options of their own
        bounds = ("min_pixels", "max_pixels")
        extra[PIXELS] = {k: v for k, v in asked[PIXELS].items() if k not in bounds}
    options = ["--endpoint", model["url"], "--model", model["name"]]
    return options + (["--endpoint-extra", json.dumps(extra)] if extra else [])


def _setup_options(run: StoredRun) -> list[str]:
    setup = run.fingerprint
    options: list[str] = []
    for name in run.tasks:
        ending = ".jsonl" if run.tasks[name].info["kind"] == "own" else ".tsv"
        options += ["--bench", name if name in BUILTIN else f"{name}={name}{ending}"]
    # All tasks of a run were opened with the same options.
    task: dict[str, Any] = next((t.info["fingerprint"] for t in run.tasks.values()), {})
    budget = task.get("pixels", {}).get("budget", MODEL_PIXELS)
    named = budget != MODEL_PIXELS
    chosen = {
        "--limit": task.get("limit"),
        "--batch-size": setup.get("batch_size"),
        "--prompt-style": task.get("prompt_style"),
        "--rules": task.get("profile"),
        "--device": str(setup["device"]).partition(":")[0] if "device" in setup else None,
        "--dtype": _DTYPES.get(str(setup.get("dtype"))),
        "--pixels": budget if named else None,
        "--min-pixels": None if named else setup.get("pixels", {}).get("min"),
        "--max-pixels": None if named else setup.get("pixels", {}).get("max"),
        "--seed": setup.get("seed"),
    }
    for option, value in chosen.items():
        options += [option, str(value)] if value is not None else []
    return options + (["--blank-images"] if task.get("blank_images") else [])
