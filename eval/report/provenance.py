"""Date and machine of both evaluations, and the generation settings of model and evaluation.

Published checkpoints carry sampling settings in `generation_config.json` that serving engines use
by default, such as the repetition penalty of 1.05 of Qwen2.5-VL. Evaluations have no penalties and
decode greedily unless a temperature is given, so a report shows both where they differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ...model.config import read_checkpoint_json
from ..results import StoredRun

GENERATION_FILE = "generation_config.json"
SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p")
PENALTIES = ("repetition_penalty", "no_repeat_ngram_size", "num_beams")
GREEDY_TEMPERATURE = 1e-3
"""Temperatures up to this one select the most probable token, as published files do with 1e-6."""

Settings = Mapping[str, Any]


def read_generation_settings(folder: Path | None) -> dict[str, Any] | None:
    """Read the decoding settings of a checkpoint; None without a folder or a file.

    Raises:
        ValueError: the file is damaged.
    """
    if folder is None or not (folder / GENERATION_FILE).is_file():
        return None
    stored = read_checkpoint_json(folder / GENERATION_FILE)
    return {key: stored[key] for key in (*SAMPLING, *PENALTIES) if stored.get(key) is not None}


def evaluated_section(base: StoredRun, candidate: StoredRun) -> dict[str, Any]:
    """Date and machine of both evaluations; None where an older version stored none."""

    def of(run: StoredRun) -> dict[str, Any]:
        load: Mapping[str, Any] = run.info.get("load") or {}
        keys = ("began", "ended", "processor", "cores", "threads")
        setup = {key: run.fingerprint.get(key) for key in ("device", "dtype")}
        return {**{key: load.get(key) for key in keys}, **setup}

    return {"base": of(base), "candidate": of(candidate)}


def describe_evaluation(evaluated: Mapping[str, Settings]) -> str:
    """Date and machine in one phrase; both of them if they differ.

    Args:
        evaluated: result of `evaluated_section`.
    """
    base, candidate = _phrase(evaluated["base"]), _phrase(evaluated["candidate"])
    return candidate if base == candidate else f"{candidate}; the base {base}"


def _phrase(side: Settings) -> str:
    date = f"{datetime.fromisoformat(side['ended']):%Y-%m-%d}" if side["ended"] else "date unknown"
    device = str(side["device"] or "")
    if device.startswith("cuda"):
        machine = device.partition(": ")[2] or device
    else:
        parts = [str(part) for part in (side["processor"], device.partition(": ")[2]) if part]
        machine = f"{parts[0]} ({', '.join(parts[1:])})" if len(parts) > 1 else "".join(parts)
    threads = f", {side['threads']} of {side['cores']} cores" if side["cores"] else ""
    return f"{date} on {machine or 'an unknown machine'}{threads}"


def generation_section(base: StoredRun, candidate: StoredRun) -> dict[str, Any]:
    """Generation settings of the evaluation and of both checkpoints.

    Returns:
        `evaluated`: settings of the evaluation; `checkpoint`: those in `generation_config.json` of
        `base` and `candidate`, None if unknown; `differences`: settings of the checkpoints, as
        text, that change answers relative to the evaluation.
    """
    checkpoints = {
        side: run.info["model"].get("generation_config")
        for side, run in (("base", base), ("candidate", candidate))
    }
    evaluated = base.fingerprint.get("generation", {})
    changed = [_changes(settings, evaluated) for settings in checkpoints.values() if settings]
    return {
        "evaluated": dict(base.fingerprint.get("generation", {})),
        "checkpoint": checkpoints,
        "differences": list(dict.fromkeys(text for texts in changed for text in texts)),
    }


def _changes(settings: Settings, evaluated: Settings) -> list[str]:
    """Settings of a checkpoint that differ from those of an evaluation, which has no penalties."""
    texts = []
    is_greedy = (
        not settings.get("do_sample", False)
        or settings.get("temperature", 1.0) <= GREEDY_TEMPERATURE
        or settings.get("top_k") == 1
    )
    if "samples" in evaluated:
        # Without a limit of its own a checkpoint has none.
        given = {"temperature": settings.get("temperature", 1.0)}
        given |= {"top_p": settings.get("top_p", 1.0), "top_k": settings.get("top_k", 0)}
        texts += ["greedy decoding"] if is_greedy else []
        texts += [f"{k} {v}" for k, v in given.items() if not is_greedy and v != evaluated[k]]
        texts += [f"min_p {settings['min_p']}"] if settings.get("min_p") else []
    elif not is_greedy:
        texts += [f"{key} {settings[key]}" for key in SAMPLING if key in settings]
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1}
    texts += [f"{k} {settings[k]}" for k, v in neutral.items() if settings.get(k, v) != v]
    return texts


def generation_caveat(generation: Mapping[str, Any]) -> str | None:
    """A sentence on settings of the checkpoint that the evaluation does not use; None without any.

    Args:
        generation: result of `generation_section`.
    """
    if not generation["differences"]:
        return None
    settings = generation["evaluated"]
    chose = "chose the most probable token each time, without a penalty (greedy decoding)"
    if "samples" in settings:
        limits = ", ".join(f"{key} {settings[key]}" for key in ("temperature", "top_p", "top_k"))
        chose = f"sampled with {limits}, without a penalty"
    return (
        f"The checkpoint's {GENERATION_FILE} sets {', '.join(generation['differences'])}, and "
        f"serving engines use that file by default. This evaluation {chose}, so served answers can "
        "differ from these."
    )


def describe_generation(settings: Settings | None) -> str:
    """Generation settings as text, such as `temperature 0.0, repetition_penalty 1.0`."""
    if settings is None:
        return "unknown"
    known = {
        key: "the server's default" if value is None else value for key, value in settings.items()
    }
    return ", ".join(f"{key} {value}" for key, value in known.items()) or "no decoding settings"
