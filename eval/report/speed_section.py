"""The speed part of a report: rates of each evaluation, and throughput measured in alternation.

Throughput is stored beside the candidate's answers, with the identity of both models and the setup
that it was measured in; a report shows it only for those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...bench.machine_load import describe_load
from ...common.atomic import write_json
from ..fingerprint import MODEL_KEYS
from ..results import StoredRun, read_run, speed

FILE = "throughput.json"
ALTERNATING = {
    "items_per_second": "questions per second",
    "prefill_tokens_per_second": "prefill, tokens per second",
    "decode_tokens_per_second": "decode, tokens per second",
}
SEPARATE = {
    "items_per_second": "questions per second, each in its own evaluation",
    "tokens_per_second": "answer tokens per second, each in its own evaluation",
}
NOT_MEASURED = (
    "the two models were not timed in alternation; their rates are those of two separate "
    "evaluations, which may have run under different load"
)


def speed_section(base: StoredRun, candidate: StoredRun) -> dict[str, Any]:
    """What a report says of speed.

    Returns:
        `base` and `candidate`: the rates over all stored answers of each, with the `load` under
        which they were measured (None where unknown); `alternating`: see
        `throughput.measure_throughput`, or None; `note`: why there is none, or empty.
    """
    found = read_throughput(base, candidate)
    return {
        "base": _own(base),
        "candidate": _own(candidate),
        "alternating": found.get("rates"),
        "note": "" if found.get("rates") else found.get("reason", NOT_MEASURED),
    }


@dataclass(frozen=True)
class SpeedRow:
    """One line of a speed table."""

    label: str
    base: float | None  # per second; None: unknown, as with a server that counts no tokens
    candidate: float | None
    ratio: float | None = None  # candidate / base; None where the two do not compare
    spread: tuple[float, float] | None = None  # smallest and largest ratio


def speed_rows(speed: Mapping[str, Any]) -> list[SpeedRow]:
    """Lines of the speed table: alternating measurements, or else those of the evaluations.

    Args:
        speed: what `speed_section` returned.
    """
    if speed["alternating"]:
        found = []
        for key, label in ALTERNATING.items():
            rate = speed["alternating"][key]
            spread = rate["spread"][0], rate["spread"][1]
            found.append(SpeedRow(label, rate["base"], rate["candidate"], rate["ratio"], spread))
        return found
    return [
        SpeedRow(label, speed["base"][key], speed["candidate"][key])
        for key, label in SEPARATE.items()
    ]


def speed_notes(speed: Mapping[str, Any]) -> list[str]:
    """What, when and beside which load the speed was measured, a sentence each."""
    if found := speed["alternating"]:
        return [
            f"Speed: both models answered the same {found['questions']} questions in alternation, "
            f"{found['batches']} batches of {found['batch_size']}; medians, and the median ratio "
            "with its smallest and largest value.",
            f"Measured {describe_load(found['load'])}.",
        ]
    notes = [f"Speed: {speed['note']}."]
    for side in ("base", "candidate"):
        if load := speed[side]["load"]:
            notes.append(f"The {side} was evaluated {describe_load(load)}.")
    return notes


def _own(run: StoredRun) -> dict[str, Any]:
    return {**speed(run), "load": run.info.get("load")}


def read_throughput(base: StoredRun, candidate: StoredRun) -> dict[str, Any]:
    """The throughput stored for two evaluations; empty if there is none for exactly these.

    Raises:
        ValueError: the file is damaged.
    """
    path = candidate.path / FILE
    if not path.is_file():
        return {}
    try:
        stored = dict(json.loads(path.read_text("utf-8")))
        is_current = stored["of"] == _identities(base, candidate)
        return {key: stored.get(key) for key in ("rates", "reason")} if is_current else {}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and measure again") from None


def write_throughput(
    base: Path, candidate: Path, *, rates: Mapping[str, Any] | None = None, reason: str = ""
) -> None:
    """Store measured throughput with a candidate's evaluation, or why it was not measured.

    Args:
        base: folder of the original's evaluation.
        candidate: folder of the candidate's.
        rates: what `measure_throughput` returned.
        reason: why there are no rates.
    """
    of = _identities(read_run(base), read_run(candidate))
    write_json(candidate / FILE, {"of": of, "rates": rates, "reason": reason})


def _identities(base: StoredRun, candidate: StoredRun) -> dict[str, Any]:
    """The models and kernels, and what else of the setup decides about speed."""
    setup = ("device", "dtype", "threads")
    return {
        "base": {key: base.fingerprint.get(key) for key in (*MODEL_KEYS, *setup)},
        "candidate": {key: candidate.fingerprint.get(key) for key in (*MODEL_KEYS, *setup)},
    }
