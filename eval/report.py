"""Compare evaluations: the report as JSON, Markdown and HTML, and the list of changed answers.

Works on stored predictions alone, offline and without a model: scores, intervals and verdicts are
computed afresh from them. Two runs are only compared if everything but the model is equal, and
over exactly the same questions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .comparability import check_comparable
from .fidelity_section import fidelity_section
from .fingerprint import MODEL_KEYS
from .html import report_page
from .markdown import render_report
from .perplexity import compare_text
from .reproduce import reproduce_command
from .results import (
    SCHEMA,
    StoredRun,
    StoredTask,
    health,
    read_run,
    speed,
    write_json,
    write_text,
)
from .statistics import (
    CI_KIND,
    Interval,
    PairedOutcome,
    Verdict,
    count_outcomes,
    judge,
    mcnemar,
    one_sided_bounds,
    overall,
    paired_interval,
)
from .tasks.task import Fields, TaskScore, Unit, is_broken, percent

MARGIN = 2.0  # points


def compare(
    base_dir: str | Path,
    cand_dir: str | Path,
    out_dir: str | Path,
    *,
    margin: float = MARGIN,
    across_engines: bool = False,
    about: Mapping[str, Any] | None = None,
    overview: str | None = None,
) -> dict[str, Any]:
    """Judge a candidate against the base and write the report.

    Args:
        base_dir: evaluation folder of the original model.
        cand_dir: evaluation folder of the candidate.
        out_dir: gets `report.json`, `report.md`, `report.html` and `flips.jsonl`.
        margin: points that the candidate may lose, not negative.
        across_engines: whether the two may have been answered by different engines, such as this
            process and a server; the report then notes what else differs.
        about: further keys of the report that its maker knows: `recipe`, `calibration`,
            `command`.
        overview: relative address of a page that this report belongs to.

    Returns:
        The content of `report.json`.

    Raises:
        FileNotFoundError: a folder is no evaluation.
        ValueError: the runs are unfinished or not comparable, or the margin is negative.
    """
    base, candidate = read_run(base_dir), read_run(cand_dir)
    report, flips = build_report(base, candidate, margin, across_engines=across_engines)
    report |= about or {}
    page = report_page(report, flips, base, candidate, overview=overview)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(flip, ensure_ascii=False) + "\n" for flip in flips]
    write_text(out / "flips.jsonl", "".join(lines))
    write_text(out / "report.md", render_report(report, flips))
    write_text(out / "report.html", page)
    write_json(out / "report.json", report)
    return report


def build_report(
    base: StoredRun,
    candidate: StoredRun,
    margin: float = MARGIN,
    *,
    across_engines: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compute a report and the list of changed answers from two stored runs.

    Raises:
        ValueError: the runs are unfinished or not comparable, or the margin is negative.
    """
    notes = check_comparable(base, candidate, across_engines=across_engines)
    benchmarks: dict[str, Any] = {}
    flips: list[dict[str, Any]] = []
    for name, task in base.tasks.items():
        other = candidate.tasks[name]
        scores = task.score(), other.score()
        benchmarks[name] = _benchmark(task, other, *scores, margin)
        flips += _flips(task, other, *scores)
    verdict = overall([Verdict(b["verdict"]) for b in benchmarks.values()])
    report = {
        "schema": SCHEMA,
        "base": base.name,
        "candidate": candidate.name,
        "verdict": verdict,
        "margin": margin,
        "notes": notes,
        "synthetic": any(b["synthetic"] for b in benchmarks.values()),
        "benchmarks": benchmarks,
        "fidelity": fidelity_section(base, candidate),
        "perplexity": compare_text(base.path, candidate.path),
        "size": _size(base, candidate),
        "speed": {"base": speed(base), "candidate": speed(candidate)},
        "memory": {"base": _memory(base), "candidate": _memory(candidate)},
        "fingerprint": _fingerprint(base, candidate),
        "command": reproduce_command(base, candidate, margin),
    }
    return report, flips


def _benchmark(
    base: StoredTask,
    candidate: StoredTask,
    base_score: TaskScore,
    cand_score: TaskScore,
    margin: float,
) -> dict[str, Any]:
    outcome = count_outcomes(
        [unit.correct for unit in base_score.units], [unit.correct for unit in cand_score.units]
    )
    pairs = list(zip(base_score.units, cand_score.units, strict=True))
    rows = [(base.predictions[i["id"]], candidate.predictions[i["id"]]) for i in base.asked]
    return {
        "metric": base_score.metric,
        "synthetic": base.info["synthetic"],
        "profile": base.info["profile"],
        "prompt_style": base.info["fingerprint"]["prompt_style"],
        "blank_images": base.info["fingerprint"]["blank_images"],
        "n": len(base_score.units),
        "n_rows": base_score.n_rows,
        "base": base_score.percent,
        "candidate": cand_score.percent,
        **paired_difference(outcome),
        **_judgement(outcome, margin),
        "flips": {
            "right_to_wrong": outcome.lost,
            "wrong_to_right": outcome.won,
            "wrong_to_wrong": sum(_changed_wrong(b, c) for b, c in pairs),
        },
        "identical_answers": percent(b.prediction == c.prediction for b, c in rows),
        "parse_failures": {
            "base": base_score.parse_failures,
            "candidate": cand_score.parse_failures,
        },
        "categories": _parts(pairs, "category"),
        "groups": _parts(pairs, "group"),
        "extra": {"base": dict(base_score.extra), "candidate": dict(cand_score.extra)},
        "health": {"base": health(base, base_score), "candidate": health(candidate, cand_score)},
        "notes": list(base.info["notes"]),
    }


def paired_difference(outcome: PairedOutcome) -> dict[str, Any]:
    """Difference in points, its 95 % interval, and McNemar's p."""
    interval = paired_interval(outcome)
    return {
        "delta": 100 * outcome.delta,
        "ci95": _points(interval),
        "ci_kind": CI_KIND,
        "mcnemar_p": mcnemar(outcome),
    }


def _judgement(outcome: PairedOutcome, margin: float) -> dict[str, Any]:
    bounds = one_sided_bounds(outcome)
    low, high = _points(bounds)
    return {"lower95": low, "upper95": high, "verdict": judge(Interval(low, high), margin)}


def _points(interval: Interval) -> list[float]:
    return [100 * interval.low, 100 * interval.high]


def _changed_wrong(base: Unit, candidate: Unit) -> bool:
    return not base.correct and not candidate.correct and base.answers != candidate.answers


def _parts(pairs: Sequence[tuple[Unit, Unit]], by: str) -> dict[str, dict[str, Any]]:
    """Scores per category or group, with the counts behind their difference."""
    chosen: dict[str, list[tuple[Unit, Unit]]] = {}
    for pair in pairs:
        chosen.setdefault(getattr(pair[0], by), []).append(pair)
    parts = {}
    for name in sorted(chosen):
        outcome = count_outcomes(
            [b.correct for b, _ in chosen[name]], [c.correct for _, c in chosen[name]]
        )
        parts[name] = {
            "n": outcome.n,
            "base": percent(b.correct for b, _ in chosen[name]),
            "candidate": percent(c.correct for _, c in chosen[name]),
            "delta": 100 * outcome.delta,
            "ci95": _points(paired_interval(outcome)),
            "right_to_wrong": outcome.lost,
            "wrong_to_right": outcome.won,
        }
    return parts


def _flips(
    base: StoredTask, candidate: StoredTask, base_score: TaskScore, cand_score: TaskScore
) -> list[dict[str, Any]]:
    """Every unit that changed, with the first row that was taken to say something else."""
    items = {item["id"]: item for item in base.items}
    flips = []
    for b, c in zip(base_score.units, cand_score.units, strict=True):
        if b.correct == c.correct and not _changed_wrong(b, c):
            continue
        differing = [
            row
            for row in b.rows
            if not is_broken(items[row])
            and base.predictions[row].prediction != candidate.predictions[row].prediction
        ]
        # "B" and "B." are different texts that say the same: the row that decided is another one.
        # Only the case of a formula counts in its score and not in what it is taken to say.
        said = zip(b.rows, b.answers, c.answers, strict=True)
        row = next((row for row, ours, theirs in said if ours != theirs), differing[0])
        flips.append(
            {
                "benchmark": base.name,
                "unit": b.id,
                "change": f"{_word(b)}_to_{_word(c)}",
                "category": b.category,
                "row": row,
                "rows_that_differ": differing,
                "question": items[row]["question"],
                "choices": items[row].get("choices") or None,
                "gold": _gold(items[row]),
                "base": base.predictions[row].prediction,
                "candidate": candidate.predictions[row].prediction,
            }
        )
    return flips


def _word(unit: Unit) -> str:
    return "right" if unit.correct else "wrong"


def _gold(item: Fields) -> str:
    choices = item.get("choices", {})
    golds = [str(answer) for answer in item.get("answers") or [item.get("answer")]]
    return " / ".join(f"{g}. {choices[g]}" if g in choices else g for g in golds)


def _size(base: StoredRun, candidate: StoredRun) -> dict[str, Any]:
    """Bytes of the weights; bits are spread over the base's weights, whatever the format adds.

    None is what is not known of a served model.
    """
    base_bytes, cand_bytes = base.info["model"]["bytes"], candidate.info["model"]["bytes"]
    weights = base.info["model"]["weights"]
    is_known = cand_bytes is not None and weights is not None
    return {
        "base_bytes": base_bytes,
        "candidate_bytes": cand_bytes,
        "bits_per_weight": 8 * cand_bytes / weights if is_known else None,
    }


def _memory(run: StoredRun) -> dict[str, Any]:
    return {"weights_bytes": run.info["model"]["bytes"], **run.info.get("memory", {})}


def _fingerprint(base: StoredRun, candidate: StoredRun) -> dict[str, Any]:
    def model(run: StoredRun) -> dict[str, Any]:
        return {key: run.fingerprint.get(key) for key in MODEL_KEYS}

    def setup(run: StoredRun) -> dict[str, Any]:
        return {k: v for k, v in run.fingerprint.items() if k not in MODEL_KEYS}

    return {
        "setup": setup(base),
        **({} if setup(base) == setup(candidate) else {"candidate_setup": setup(candidate)}),
        "tasks": {name: task.info["fingerprint"] for name, task in base.tasks.items()},
        "base": model(base),
        "candidate": model(candidate),
    }
