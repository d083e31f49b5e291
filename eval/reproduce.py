"""The command that makes an evaluation again, from what its folder says about itself."""

from __future__ import annotations

import shlex
from typing import Any

from .results import StoredRun
from .tasks import BUILTIN

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def reproduce_command(base: StoredRun, candidate: StoredRun, margin: float) -> str:
    """One line for a shell: evaluate both models as they were, then compare.

    Benchmark files are called by the name they are published under: where they lay is not stored,
    their md5 is.

    Args:
        base: the original's run.
        candidate: one with the same setup.
        margin: points that may be lost.
    """
    setup = _setup_options(base)
    measured = all((t.folder / "fidelity.jsonl").is_file() for t in candidate.tasks.values())
    reference = ["--reference", "base"] if measured else []
    lines = [
        ["vlpress", "eval", base.name, "-o", "base", *setup],
        ["vlpress", "eval", candidate.name, "-o", "candidate", *setup, *reference],
        ["vlpress", "compare", "base", "candidate", "-o", "report", "--margin", f"{margin:g}"],
    ]
    return " && ".join(shlex.join(line) for line in lines)


def _setup_options(run: StoredRun) -> list[str]:
    setup = run.fingerprint
    options: list[str] = []
    for name in run.tasks:
        options += ["--bench", name if name in BUILTIN else f"{name}={name}.tsv"]
    # All tasks of a run were opened with the same options.
    task: dict[str, Any] = next((t.info["fingerprint"] for t in run.tasks.values()), {})
    chosen = {
        "--limit": task.get("limit"),
        "--batch-size": setup.get("batch_size"),
        "--prompt-style": task.get("prompt_style"),
        "--rules": task.get("profile"),
        "--device": str(setup.get("device", "auto")).partition(":")[0],
        "--dtype": _DTYPES.get(str(setup.get("dtype"))),
        "--min-pixels": setup.get("pixels", {}).get("min"),
        "--max-pixels": setup.get("pixels", {}).get("max"),
        "--seed": setup.get("seed"),
    }
    for option, value in chosen.items():
        options += [option, str(value)] if value is not None else []
    return options + (["--blank-images"] if task.get("blank_images") else [])
