"""Compare two evaluations: the report as JSON, Markdown and HTML, and the list of flips.

The input is stored predictions, so no model and no network are needed: scores, intervals and
verdicts are recomputed from them. Two runs are compared only if everything except the model is
equal, and over exactly the same questions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...common.atomic import write_json, write_text
from ...quant.recipe.adapter import ADAPTER
from ..comparability import area_notes, check_comparable, vocabulary_notes
from ..config import MARGIN
from ..fidelity.perplexity import compare_text
from ..fingerprint import MODEL_KEYS, largest_area
from ..results import (
    SCHEMA,
    StoredRun,
    StoredTask,
    find_signs,
    read_run,
    summarize_health,
)
from ..stats.criterion import MARGIN_CRITERION, MLPERF, Criterion, judge_share, threshold
from ..stats.multiple_testing import holm
from ..stats.paired import (
    breakdown,
    count_flips,
    image_clusters,
    judge_difference,
    paired_difference,
    pool_languages,
)
from ..stats.statistics import combine_verdicts
from ..stats.verdict import Verdict
from ..tasks.task import TaskScore, percent
from .flips import list_flips
from .health import MINIMUM_QUESTIONS, Reason, benchmark_reasons, cap_verdict, verdict_reasons
from .markdown import render_report
from .provenance import evaluated_section, generation_section
from .reproduce import reproduce_command
from .sections.fidelity import fidelity_section
from .sections.lengths import compare_lengths
from .sections.sampling import compare_sampling
from .sections.speed import memory_section, speed_section
from .words.answer_warnings import length_warnings, pair_warnings
from .words.drafts import drafts_section
from .words.kv_cache import kv_cache_section
from .words.verdict import find_scope, verdict_text
from .words.visual_tokens import visual_tokens_section

LARGEST_MARGIN = 100.0  # points: at this margin any loss is allowed
LANGUAGES: Mapping[str, tuple[str, ...]] = {
    "MMBench_DEV EN+CN": ("MMBench_DEV_EN", "MMBench_DEV_CN"),
    "MMBench_DEV_V11 EN+CN": ("MMBench_DEV_EN_V11", "MMBench_DEV_CN_V11"),
    "builtin-mmbench EN+CN": ("builtin-mmbench", "builtin-mmbench-cn"),
}
"""Name of the pooled result -> benchmarks with the same questions in several languages."""


def compare(
    base_dir: str | Path,
    cand_dir: str | Path,
    out_dir: str | Path,
    *,
    margin: float = MARGIN,
    criterion: Criterion = MARGIN_CRITERION,
    across_engines: bool = False,
    across_pixels: bool = False,
    about: Mapping[str, Any] | None = None,
    overview: str | None = None,
) -> dict[str, Any]:
    """Judge a candidate against the base and write the report.

    Args:
        base_dir: evaluation folder of the original model.
        cand_dir: evaluation folder of the candidate.
        out_dir: receives `report.json`, `report.md`, `report.html` and `flips.jsonl`.
        margin: allowed loss in points, in [0, 100).
        criterion: how the verdict is found; the margin is used by the one of that name only.
        across_engines: allow two different engines, such as this process and a server; the notes
            of the report then list the other differences.
        across_pixels: allow different largest areas of an image; the notes then give both.
        about: further keys of the report, such as `recipe`, `calibration` and `command`.
        overview: relative address of the page that compares several candidates.

    Returns:
        The content of `report.json`.

    Raises:
        FileNotFoundError: a folder is not an evaluation.
        ValueError: the runs are unfinished or not comparable, or the margin is out of range.
    """
    base, candidate = read_run(base_dir), read_run(cand_dir)
    report, flips = build_report(
        base,
        candidate,
        margin,
        criterion=criterion,
        across_engines=across_engines,
        across_pixels=across_pixels,
    )
    report |= about or {}
    from .html import report_page  # imports matplotlib, a third of a second

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
    criterion: Criterion = MARGIN_CRITERION,
    across_engines: bool = False,
    across_pixels: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compute a report and the list of flips from two stored runs.

    Raises:
        ValueError: the runs are unfinished or not comparable, or the margin is out of range.
    """
    check_margin(margin, criterion)
    if not base.tasks:
        raise ValueError(f"{base.path} holds no benchmark; evaluate the original on one first")
    notes = check_comparable(
        base, candidate, across_engines=across_engines, across_pixels=across_pixels
    )
    benchmarks: dict[str, Any] = {}
    flips: list[dict[str, Any]] = []
    scored: dict[str, tuple[TaskScore, TaskScore]] = {}
    for name, task in base.tasks.items():
        other = candidate.tasks[name]
        scored[name] = task.score(), other.score()
        benchmarks[name] = _benchmark(task, other, scored[name], margin, criterion)
        flips += list_flips(task, other, *scored[name])
    adjusted = holm({name: entry["mcnemar_p"] for name, entry in benchmarks.items()})
    for name, entry in benchmarks.items():
        entry["mcnemar_p_holm"] = adjusted[name]
    verdict = combine_verdicts([Verdict(b["verdict"]) for b in benchmarks.values()])
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "base": base.name,
        "candidate": candidate.name,
        "verdict": verdict,
        "verdict_reasons": verdict_reasons(benchmarks, margin),
        "criterion": criterion,
        "margin": margin if criterion == MARGIN_CRITERION else None,
        "notes": notes,
        "warnings": [f"{n}: {text}" for n, b in benchmarks.items() for text in b["warnings"]],
        "synthetic": any(b["synthetic"] for b in benchmarks.values()),
        "benchmarks": benchmarks,
        "pooled": _pooled(base, scored, benchmarks, margin, criterion),
        "fidelity": fidelity_section(base, candidate),
        "perplexity": None
        if vocabulary_notes(base, candidate)
        else compare_text(base.path, candidate.path),
        "size": _size(base, candidate),
        "speed": speed_section(base, candidate),
        "evaluated": evaluated_section(base, candidate),
        "generation": generation_section(base, candidate),
        "memory": memory_section(base, candidate),
        **kv_cache_section(base, candidate),
        **drafts_section(base, candidate),
        **visual_tokens_section(base, candidate),
        "fingerprint": _fingerprint(base, candidate),
        "command": reproduce_command(base, candidate, margin, criterion),
    }
    if area_notes(base, candidate):
        runs = {"base": base, "candidate": candidate}
        report["max_pixels"] = {side: largest_area(run.fingerprint) for side, run in runs.items()}
    words = verdict_text(report)
    report["scope"] = find_scope(benchmarks)
    report |= {"headline": words.title, "reason": words.reason, "next_steps": list(words.steps)}
    return report, flips


def check_margin(margin: float, criterion: Criterion = MARGIN_CRITERION) -> None:
    """Check the allowed loss, in points.

    Raises:
        ValueError: it is negative, 100 points or more, or NaN, or given for another criterion.
    """
    if criterion != MARGIN_CRITERION and margin != MARGIN:
        raise ValueError(
            f"--margin {margin:g} with --criterion {criterion}, which has no margin; give "
            "one of them"
        )
    if not 0 <= margin < LARGEST_MARGIN:
        raise ValueError(
            f"margin is {margin:g}; give the allowed loss in points, from 0 to below "
            f"{LARGEST_MARGIN:g}"
        )


def _benchmark(
    base: StoredTask,
    candidate: StoredTask,
    scores: tuple[TaskScore, TaskScore],
    margin: float,
    criterion: Criterion,
) -> dict[str, Any]:
    base_score, cand_score = scores
    pairs = list(zip(base_score.units, cand_score.units, strict=True))
    cluster_of = image_clusters(base.items)
    clusters = [cluster_of[unit.id] for unit, _ in pairs]
    rows = list(zip(base.answers, candidate.answers, strict=True))
    lengths = compare_lengths(base, candidate)
    is_blank = base.info["fingerprint"]["blank_images"]
    base_signs, cand_signs = find_signs(base, base_score), find_signs(candidate, cand_score)
    reasons = benchmark_reasons(base_signs, cand_signs, is_blank=is_blank)
    judged = judge_difference(pairs, clusters, margin)
    judged |= _judge_share(base_score.percent, cand_score.percent, criterion)
    if judged["questions_still_needed"] is not None:
        at_least = MINIMUM_QUESTIONS - len(pairs)
        judged["questions_still_needed"] = max(judged["questions_still_needed"], at_least)
    return {
        "metric": base_score.metric,
        "synthetic": base.info["synthetic"],
        "limited": base.info["fingerprint"]["limit"] is not None,
        "profile": base.info["profile"],
        "prompt_style": base.info["fingerprint"]["prompt_style"],
        "pixels": base.info["fingerprint"]["pixels"]["budget"],
        "blank_images": is_blank,
        "reasoning_rule": base.reasoning_rule,
        "max_new_tokens": base.info["fingerprint"]["max_new_tokens"],
        "n": len(base_score.units),
        "n_rows": base_score.n_rows,
        "base": base_score.percent,
        "candidate": cand_score.percent,
        **compare_sampling((base, candidate), scores),
        **lengths,
        **paired_difference(pairs, clusters),
        **judged,
        "verdict": cap_verdict(judged["verdict"], reasons),
        "health_reasons": [reason.to_dict() for reason in reasons],
        "chance": base_signs.chance,
        "signs": {"base": asdict(base_signs), "candidate": asdict(cand_signs)},
        "flips": count_flips(pairs),
        "identical_answers": percent(b.prediction == c.prediction for b, c in rows),
        "parse_failures": {
            "base": base_score.parse_failures,
            "candidate": cand_score.parse_failures,
        },
        "categories": breakdown(pairs, clusters, lambda unit: unit.category),
        "groups": breakdown(pairs, clusters, lambda unit: unit.group),
        "extra": {"base": dict(base_score.extra), "candidate": dict(cand_score.extra)},
        "health": {
            "base": summarize_health(base, base_score),
            "candidate": summarize_health(candidate, cand_score),
        },
        "notes": list(base.info["notes"]),
        "warnings": pair_warnings(base, candidate) + length_warnings(lengths.get("lengths")),
    }


def _judge_share(base: float, candidate: float, criterion: Criterion) -> dict[str, Any]:
    """Return the verdict by MLPerf's rule with its threshold in percent; empty for a margin."""
    if criterion != MLPERF:
        return {}
    verdict = judge_share(base, candidate)
    return {"verdict": verdict, "threshold": threshold(base), "questions_still_needed": None}


def _pooled(
    base: StoredRun,
    scored: Mapping[str, tuple[TaskScore, TaskScore]],
    benchmarks: Mapping[str, Mapping[str, Any]],
    margin: float,
    criterion: Criterion,
) -> dict[str, dict[str, Any]]:
    """Results pooled over the languages of a benchmark.

    A health reason that caps the verdict of one language caps the pooled verdict too.
    """
    results = {}
    for name, parts in LANGUAGES.items():
        if all(part in scored for part in parts):
            pairs = {
                part: (
                    list(zip(scored[part][0].units, scored[part][1].units, strict=True)),
                    base.tasks[part].items,
                )
                for part in parts
            }
            entry = pool_languages(pairs, margin)
            entry |= _judge_share(entry["base"], entry["candidate"], criterion)
            reasons = [
                Reason(**{**reason, "text": f"{part}: {reason['text']}"})
                for part in parts
                for reason in benchmarks[part]["health_reasons"]
            ]
            entry["verdict"] = cap_verdict(entry["verdict"], reasons)
            entry["health_reasons"] = [reason.to_dict() for reason in reasons]
            results[name] = entry
    return results


def _size(base: StoredRun, candidate: StoredRun) -> dict[str, Any]:
    """Bytes of the weight files; bits per weight relative to the base's number of weights.

    Tensor bytes by part are those of `BYTE_PARTS`. Values are None if a server does not report
    them, or an earlier version did not store them.
    """
    base_bytes, cand_bytes = base.info["model"]["bytes"], candidate.info["model"]["bytes"]
    weights = base.info["model"]["weights"]
    is_known = cand_bytes is not None and weights is not None
    return {
        "base_bytes": base_bytes,
        "candidate_bytes": cand_bytes,
        "bits_per_weight": 8 * cand_bytes / weights if is_known else None,
        "base_parts": base.info["model"].get("parts"),
        "candidate_parts": candidate.info["model"].get("parts"),
    }


def _fingerprint(base: StoredRun, candidate: StoredRun) -> dict[str, Any]:
    def model(run: StoredRun) -> dict[str, Any]:
        optional = (ADAPTER,)  # reports of models without one are as they were before it existed
        keys = (key for key in MODEL_KEYS if key not in optional or key in run.fingerprint)
        return {key: run.fingerprint.get(key) for key in keys}

    def setup(run: StoredRun) -> dict[str, Any]:
        return {k: v for k, v in run.fingerprint.items() if k not in MODEL_KEYS}

    return {
        "setup": setup(base),
        **({} if setup(base) == setup(candidate) else {"candidate_setup": setup(candidate)}),
        "tasks": {name: task.info["fingerprint"] for name, task in base.tasks.items()},
        "base": model(base),
        "candidate": model(candidate),
    }
