"""Reports as Markdown for people: the verdict first, then what it rests on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..stats.multiple_testing import FEW
from .calibration_section import describe_samples, shown_warnings
from .health import THRESHOLDS
from .markdown_cells import bounds, escape, table
from .markdown_fidelity import fidelity
from .speed_section import SpeedRow, speed_notes, speed_rows

FLIPS_SHOWN = 40  # per benchmark; all of them are in flips.jsonl

Report = Mapping[str, Any]

_MEANING = {
    "PASS": "the candidate is shown to lose less than the margin on every benchmark",
    "FAIL": "the candidate is shown to lose more than the margin on a benchmark",
    "INCONCLUSIVE": "the questions do not suffice to tell whether the loss exceeds the margin",
}
_UNHEALTHY = "the answers cannot support a verdict, for the reasons below"


def render_report(report: Report, flips: Sequence[Mapping[str, Any]]) -> str:
    """Render one report."""
    sections = [
        _head(report),
        _headline(report["benchmarks"], report["pooled"]),
        fidelity(report),
        _costs(report),
        _health(report["benchmarks"]),
        _breakdowns(report["benchmarks"]),
        _flips(report["benchmarks"], flips),
        _setup(report["fingerprint"]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def render_comparison(comparison: Report) -> str:
    """Render the comparison of several candidates."""
    rows = []
    for name, entry in comparison["candidates"].items():
        fidelity = entry["fidelity"]
        scores = [
            f"{b['candidate']:.1f} ({b['delta']:+.1f}) {b['verdict']}"
            for b in entry["benchmarks"].values()
        ]
        kl = f"{fidelity['kl_mean']:.5f}" if fidelity else "not measured"
        bits = _known(entry["size"]["bits_per_weight"], ".2f")
        rows.append([escape(name), entry["verdict"], *scores, kl, bits])
    benchmarks = next(iter(comparison["candidates"].values()))["benchmarks"]
    head = ["candidate", "verdict", *map(escape, benchmarks), "KL, nats", "bits per weight"]
    lines = [
        f"# Candidates against {escape(comparison['base'])}",
        *_synthetic(comparison),
        table(rows, head),
        *_reasons(comparison["verdict_reasons"]),
        *(
            f"**Note on {escape(name)}**: {escape(note, 1000)}."
            for name, entry in comparison["candidates"].items()
            for note in entry["notes"]
        ),
    ]
    if comparison["pairs"]:
        lines += ["## Differences between candidates, second minus first", _pairs(comparison)]
    return "\n\n".join(lines) + "\n"


def _head(report: Report) -> str:
    verdict, margin = report["verdict"], f"{report['margin']:g}"
    drawn = " (synthetic benchmarks)" if report["synthetic"] else ""
    lines = [
        f"# {verdict}: {escape(report['candidate'])} against {escape(report['base'])}{drawn}",
        *_calibration(report),
        f"At a margin of {margin} points, {_meaning(report)}. A benchmark is PASS if the lower "
        f"one-sided 95 % bound of its Δ is above -{margin}, FAIL if the upper one is below.",
        *_reasons(report["verdict_reasons"]),
        *_synthetic(report),
        *_limited(report),
        *(f"**Note**: {escape(note, 1000)}." for note in report["notes"]),
    ]
    if any(entry["blank_images"] for entry in report["benchmarks"].values()):
        lines.append("**Blank pictures**: every picture was replaced by grey.")
    for name, entry in report["benchmarks"].items():
        lines += [f"Note on {escape(name)}: {escape(note, 400)}." for note in entry["notes"]]
    return "\n\n".join(lines)


def _meaning(report: Report) -> str:
    """What the verdict says; INCONCLUSIVE may come from the answers rather than their number."""
    verdict = report["verdict"]
    unhealthy = any(entry["health_reasons"] for entry in report["benchmarks"].values())
    return _UNHEALTHY if verdict == "INCONCLUSIVE" and unhealthy else _MEANING[verdict]


def _reasons(reasons: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {escape(reason, 2000)}" for reason in reasons)] if reasons else []


def _calibration(report: Report) -> list[str]:
    """What the candidate was made with, where the report's maker knows it."""
    if not (found := report.get("calibration")):
        return []
    recipe = f"Recipe {escape(report['recipe']['name'])}"
    if not found["samples"]:
        return [f"{recipe}, without calibration."]
    warnings = (f"**Warning**: {escape(warning, 400)}." for warning in shown_warnings(found))
    made = f"{recipe}, calibrated on {escape(describe_samples(found), 400)}."
    return [" ".join([made, *warnings])]


def _synthetic(report: Report) -> list[str]:
    if not report["synthetic"]:
        return []
    return ["**Synthetic**: built-in benchmark files are drawings, not the published benchmarks."]


def _limited(report: Report) -> list[str]:
    tasks = report["fingerprint"]["tasks"].items()
    parts = [f"{escape(name)} {task['limit']}" for name, task in tasks if task["limit"]]
    if not parts:
        return []
    return [f"**Limited**: only a sample of the questions was asked, at most: {', '.join(parts)}."]


def _headline(benchmarks: Mapping[str, Report], pooled: Mapping[str, Report]) -> str:
    rows = [
        [
            escape(name) + (" (synthetic)" if entry.get("synthetic") else ""),
            entry.get("metric", "pooled"),
            entry["n"],
            f"{entry['detectable']:.2f}",
            f"{entry['base']:.2f}",
            f"{entry['candidate']:.2f}",
            f"{entry['delta']:+.2f}",
            bounds(entry["ci95"], "+.2f"),
            f"{entry['lower95']:+.2f}, {entry['upper95']:+.2f}",
            f"{entry['mcnemar_p']:.3g}",
            f"{entry['mcnemar_p_holm']:.3g}" if "mcnemar_p_holm" in entry else "",
            entry["verdict"],
        ]
        for name, entry in [*benchmarks.items(), *pooled.items()]
    ]
    head = ["benchmark", "metric", "n", "detectable", "base", "candidate", "Δ", "95 % interval"]
    head += ["one-sided 95 % bounds", "McNemar p", "Holm p", "verdict"]
    return "\n\n".join(
        [
            "## Scores",
            table(rows, head),
            "Scores in percent of n questions; Δ, interval (Tango's score interval for paired "
            "proportions) and bounds in points; p from the exact McNemar test, then adjusted for "
            "the number of benchmarks. Detectable: the smallest true difference, in points, that "
            "so many questions would find four times in five.",
            _rules(benchmarks),
        ]
    )


def _rules(benchmarks: Mapping[str, Report]) -> str:
    parts = [
        f"{escape(name)}: {entry['n_rows']} rows, rules {entry['profile']}, "
        f"prompts {entry['prompt_style']}, pixels {entry['pixels']}, no judge model"
        for name, entry in benchmarks.items()
    ]
    return "; ".join(parts) + "."


def _costs(report: Report) -> str:
    size, speed, memory = report["size"], report["speed"], report["memory"]
    rows = [
        ["weights, bytes", _known(size["base_bytes"]), _known(size["candidate_bytes"])],
        ["peak memory, bytes", *(_peak(memory[side]) for side in ("base", "candidate"))],
        *(
            [row.label, _known(row.base, ".2f"), _known(row.candidate, ".2f"), _ratio(row)]
            for row in speed_rows(speed)
        ),
    ]
    kind = memory["candidate"].get("kind", "unknown")
    return "\n\n".join(
        [
            "## Size, speed, memory",
            table(rows, ["", "base", "candidate", "candidate / base"]),
            f"{_known(size['bits_per_weight'], '.2f')} bits per weight over the whole model, what "
            f"was not quantized included. Peak memory: {kind}.",
            " ".join(speed_notes(speed)),
        ]
    )


def _ratio(row: SpeedRow) -> str:
    if row.ratio is None or row.spread is None:
        return ""
    return f"{row.ratio:.2f} ({row.spread[0]:.2f} to {row.spread[1]:.2f})"


def _known(value: float | None, form: str = "") -> str:
    """A number, or that a served model does not tell it."""
    return "unknown" if value is None else f"{value:{form}}"


def _peak(memory: Report) -> str:
    return _known(memory["peak_bytes"]) if "peak_bytes" in memory else ""


def _health(benchmarks: Mapping[str, Report]) -> str:
    rows = []
    for name, entry in benchmarks.items():
        for side in ("base", "candidate"):
            h, signs = entry["health"][side], entry["signs"][side]
            rows.append(
                [
                    escape(name),
                    side,
                    h["broken"],
                    h["parse_failures"],
                    h["refusals"],
                    h["truncated"],
                    h["empty"],
                    _share(signs["identical"]),
                    _share(entry["chance"]),
                    _share(signs["score_lower95"]),
                    _known(h["mean_tokens"], ".1f"),
                ]
            )
    head = ["benchmark", "model", "broken", "not parsed", "refused", "cut off", "empty"]
    head += ["same answer, %", "chance, %", "lower bound of the score, %", "mean tokens"]
    limits = ", ".join(f"{name} {value:g}" for name, value in THRESHOLDS.items())
    counted = (
        "Counts of rows; broken ones could not be asked and count as wrong. A verdict is not PASS "
        f"if a model violates one of these limits (docs/report.md, Health): {limits}."
    )
    return f"## Health\n\n{table(rows, head)}\n\n{counted.replace('_', chr(92) + '_')}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _breakdowns(benchmarks: Mapping[str, Report]) -> str:
    sections = ["## Breakdowns"]
    for benchmark, entry in benchmarks.items():
        parts = entry["categories"]
        coarse = {name: v for name, v in entry["groups"].items() if name not in parts}
        parts = {**{f"all {name}": v for name, v in coarse.items()}, **parts}
        rows = [
            [
                escape(part),
                v["n"],
                f"{v['base']:.1f}",
                f"{v['candidate']:.1f}",
                f"{v['delta']:+.1f}",
                bounds(v["ci95"], "+.1f"),
                f"{v['right_to_wrong']} / {v['wrong_to_right']}",
                f"{v['p_adjusted']:.3g}" + (" (few)" if v["few"] else ""),
            ]
            for part, v in parts.items()
        ]
        head = ["category", "n", "base", "candidate", "Δ", "95 % interval", "lost / won"]
        head += ["adjusted p"]
        extra = entry["extra"]
        further = "; ".join(
            f"{escape(key)} {value:.1f} → {extra['candidate'][key]:.1f}"
            for key, value in extra["base"].items()
        )
        sections += [f"### {escape(benchmark)}", table(rows, head), _ADJUSTED]
        sections += [f"Further metrics: {further}."] if further else []
    return "\n\n".join(sections)


_ADJUSTED = (
    "Adjusted p: McNemar's, after Benjamini and Hochberg over the categories of a table, coarse "
    f"and fine ones apart. Few: fewer than {FEW} questions, which say next to nothing."
)


def _flips(benchmarks: Mapping[str, Report], flips: Sequence[Mapping[str, Any]]) -> str:
    sections = ["## Changed answers"]
    for name, entry in benchmarks.items():
        counts = entry["flips"]
        mine = [flip for flip in flips if flip["benchmark"] == name]
        mine.sort(key=lambda flip: flip["change"])  # right_to_wrong first
        shown = mine[:FLIPS_SHOWN]
        rows = [
            [
                escape(flip["row"]),
                flip["change"].replace("_", " "),
                escape(flip["category"]),
                escape(flip["question"]),
                escape(flip["gold"], 40),
                escape(flip["base"], 40),
                escape(flip["candidate"], 40),
            ]
            for flip in shown
        ]
        sections.append(
            f"### {escape(name)}\n\n{counts['right_to_wrong']} right to wrong, "
            f"{counts['wrong_to_right']} wrong to right, {counts['wrong_to_wrong']} wrong to "
            f"another wrong; {entry['identical_answers']:.1f} % of answers are identical."
        )
        if rows:
            head = ["row", "change", "category", "question", "gold", "base", "candidate"]
            sections.append(table(rows, head))
        if len(mine) > len(shown):
            rest = len(mine) - len(shown)
            sections.append(f"{rest} more in flips.jsonl.")
    return "\n\n".join(sections)


def _setup(fingerprint: Report) -> str:
    text = json.dumps(fingerprint, ensure_ascii=False, indent=2)
    return f"## Setup\n\n```json\n{text}\n```"


def _pairs(comparison: Report) -> str:
    rows = [
        [
            escape(pair["first"]),
            escape(pair["second"]),
            escape(name),
            f"{entry['delta']:+.2f} {bounds(entry['ci95'], '+.2f')}",
            f"{entry['mcnemar_p']:.3g}",
            "not measured"
            if entry["kl_delta"] is None
            else f"{entry['kl_delta']:+.5f} {bounds(entry['kl_delta_ci95'], '+.5f')}",
        ]
        for pair in comparison["pairs"]
        for name, entry in pair["benchmarks"].items()
    ]
    head = ["first", "second", "benchmark", "Δ points, 95 %", "McNemar p", "Δ KL nats, 95 %"]
    return table(rows, head)
