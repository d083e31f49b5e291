"""The `fidelity` section of a report, from the stored divergences of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...answering.predictions import Record, read_records
from ...fidelity.acceptance import summarize_acceptance
from ...fidelity.divergences import (
    COMMON,
    by_category,
    divergence_interval,
    find_kl_kind,
    gold_change,
    summarize_fidelity,
    unit_divergences,
)
from ...fidelity.noise import multiples, read_noise
from ...results import StoredRun, StoredTask, read_fidelity


def fidelity_section(base: StoredRun, candidate: StoredRun) -> dict[str, Any] | None:
    """Divergence of a candidate from the base.

    Returns:
        `summarize_fidelity` over all tasks, `units` and `kl_unit_mean` with its 95 % interval
        (nats), and the same under `per_benchmark`, with `categories` and `gold` in addition.
        `noise` is the base's divergence from itself (`read_noise`) with the candidate's
        `multiples` of it, except over common tokens. `as_draft` is the candidate as a draft for the
        base (`summarize_acceptance`), except over common tokens. The total is lumped if any task
        is. None if nothing was measured.

    Raises:
        ValueError: measured against another model, or not finished.
    """
    records_by_task = {
        name: records
        for name, task in candidate.tasks.items()
        if (records := _records(base, task)) is not None
    }
    pooled = [record for records in records_by_task.values() for record in records.values()]
    kind = find_kl_kind(pooled)
    total = summarize_fidelity(pooled, kind)
    if total is None:
        return None
    parts, values = {}, []
    for name, records in records_by_task.items():
        items = candidate.tasks[name].items
        values += list(unit_divergences(items, records, kind).values())
        if summary := summarize_fidelity(records.values()):
            own = summary["kl_kind"]
            parts[name] = {
                **summary,
                **_unit_mean(list(unit_divergences(items, records, own).values())),
                "categories": by_category(items, records, own),
                "gold": gold_change(items, records),
                "noise": _noise([base.tasks[name]], summary),
                "as_draft": summarize_acceptance(records.values()),
            }
    noise = _noise(base.tasks.values(), total)
    return {
        **total,
        **_unit_mean(values),
        "noise": noise,
        "as_draft": summarize_acceptance(pooled),
        "per_benchmark": parts,
    }


def _noise(tasks: Iterable[StoredTask], candidate: Mapping[str, Any]) -> dict[str, Any]:
    if candidate["kl_kind"] in COMMON.values():
        return {}  # the base's noise is over its own vocabulary
    floors = read_noise(tasks, candidate["kl_kind"])
    return {
        kind: {**entry, "multiples": multiples(candidate, entry["fidelity"])}
        for kind, entry in floors.items()
        if entry["fidelity"]
    }


def _records(base: StoredRun, task: StoredTask) -> dict[str, Record] | None:
    records = read_fidelity(task)
    if records is None:
        return None
    header, _ = read_records(task.folder / "fidelity.jsonl", "fidelity")
    if header["reference"] != base.fingerprint["model"]:
        raise ValueError(
            f"{task.folder} measured its fidelity against another model than {base.path}; "
            "evaluate the candidate again with this reference"
        )
    return records


def _unit_mean(values: Sequence[float]) -> dict[str, Any]:
    interval = divergence_interval(values)
    return {
        "units": len(values),
        "kl_unit_mean": sum(values) / len(values),
        "kl_unit_mean_ci95": interval and [interval.low, interval.high],
    }
