"""The `speed` section of a report: rates of both evaluations, and alternating throughput.

Throughput is stored in the candidate's run folder, with the identity of both models and the setup
of the measurement; a report shows it only if these still match.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....bench.machine_load import describe_load
from ....common.atomic import write_json
from ...fingerprint import MODEL_KEYS
from ...results import StoredRun, read_run, summarize_speed

FILE = "throughput.json"
RESULTS = ("rates", "memory", "reason")
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
    """Speed of both models.

    Returns:
        `base` and `candidate`: rates over all stored answers, per second, with the machine `load`
        during the evaluation (None if unknown); `alternating`: the result of
        `throughput.measure_throughput`, or None; `note`: the reason for None, or empty.
    """
    throughput = read_throughput(base, candidate)
    return {
        "base": _rates(base),
        "candidate": _rates(candidate),
        "alternating": throughput.get("rates"),
        "note": "" if throughput.get("rates") else throughput.get("reason", NOT_MEASURED),
    }


@dataclass(frozen=True)
class SpeedRow:
    """One line of a speed table."""

    label: str
    base: float | None  # per second; None: unknown, as with a server that counts no tokens
    candidate: float | None
    ratio: float | None = None  # candidate / base; None unless measured in alternation
    spread: tuple[float, float] | None = None  # smallest and largest ratio


def speed_rows(speed: Mapping[str, Any]) -> list[SpeedRow]:
    """Lines of the speed table: alternating measurements, or else those of the evaluations.

    Args:
        speed: result of `speed_section`.
    """
    if speed["alternating"]:
        rows = []
        for key, label in ALTERNATING.items():
            rate = speed["alternating"][key]
            spread = rate["spread"][0], rate["spread"][1]
            rows.append(SpeedRow(label, rate["base"], rate["candidate"], rate["ratio"], spread))
        return rows
    return [
        SpeedRow(label, speed["base"][key], speed["candidate"][key])
        for key, label in SEPARATE.items()
    ]


def speed_notes(speed: Mapping[str, Any]) -> list[str]:
    """Method, time and machine load of the speed measurement, one sentence each."""
    if rates := speed["alternating"]:
        return [
            f"Speed: both models answered the same {rates['questions']} questions in alternation, "
            f"{rates['batches']} batches of {rates['batch_size']}; medians, and the median ratio "
            "with its smallest and largest value.",
            f"Measured {describe_load(rates['load'])}.",
        ]
    notes = [f"Speed: {speed['note']}."]
    for side in ("base", "candidate"):
        if load := speed[side]["load"]:
            notes.append(f"The {side} was evaluated {describe_load(load)}.")
    return notes


def memory_section(base: StoredRun, candidate: StoredRun) -> dict[str, Any]:
    """Memory of both models.

    Returns:
        `base` and `candidate`: bytes of the weights, and the peak of each evaluation with its
        `kind`; `alternating`: the result of `memory.measure_memory`, or None.
    """

    def peak(run: StoredRun) -> dict[str, Any]:
        return {"weights_bytes": run.info["model"]["bytes"], **run.info.get("memory", {})}

    alternating = read_throughput(base, candidate).get("memory")
    return {"base": peak(base), "candidate": peak(candidate), "alternating": alternating}


def memory_note(memory: Mapping[str, Any]) -> str:
    """Method of the memory measurement in one sentence; empty without a measurement.

    Args:
        memory: result of `memory_section`.
    """
    if measured := memory["alternating"]:
        return (
            f"Peak memory: the rise of the {measured['kind']} when a model is loaded, plus the "
            f"largest rise while it answers, for the same {measured['batches']} batches of "
            f"{measured['batch_size']} questions in alternation."
        )
    kind = memory["candidate"].get("kind")
    return f"Peak memory of the evaluation: {kind}." if kind else ""


def _rates(run: StoredRun) -> dict[str, Any]:
    return {**summarize_speed(run), "load": run.info.get("load")}


def read_throughput(base: StoredRun, candidate: StoredRun) -> dict[str, Any]:
    """Read the throughput stored for two evaluations.

    Returns:
        `rates`, `memory` and `reason`; empty if nothing is stored for exactly these models and this
        setup.

    Raises:
        ValueError: the file is damaged.
    """
    path = candidate.path / FILE
    if not path.is_file():
        return {}
    try:
        stored = dict(json.loads(path.read_text("utf-8")))
        is_current = stored["of"] == _identities(base, candidate)
        return {key: stored.get(key) for key in RESULTS} if is_current else {}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and measure again") from None


def write_throughput(
    base: Path,
    candidate: Path,
    *,
    rates: Mapping[str, Any] | None = None,
    memory: Mapping[str, Any] | None = None,
    reason: str = "",
) -> None:
    """Store throughput, or the reason why it was not measured, in the candidate's run folder.

    Args:
        base: evaluation folder of the original.
        candidate: evaluation folder of the candidate.
        rates: result of `measure_throughput`.
        memory: result of `measure_memory`; None where it cannot be measured.
        reason: reason for missing rates.
    """
    of = _identities(read_run(base), read_run(candidate))
    write_json(candidate / FILE, {"of": of, "rates": rates, "memory": memory, "reason": reason})


def _identities(base: StoredRun, candidate: StoredRun) -> dict[str, Any]:
    """Models, kernels, the parts of the setup that affect speed, and the questions."""
    setup = ("device", "dtype", "threads")
    return {
        "items": {
            name: [task.info["fingerprint"].get(key) for key in ("md5", "items")]
            for name, task in base.tasks.items()
        },
        "base": {key: base.fingerprint.get(key) for key in (*MODEL_KEYS, *setup)},
        "candidate": {key: candidate.fingerprint.get(key) for key in (*MODEL_KEYS, *setup)},
    }
