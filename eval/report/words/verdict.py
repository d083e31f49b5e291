"""A verdict in words: what was shown, on which questions, and what to do next.

Only a PASS on all questions of real benchmarks is called a permission to ship. Drawings and samples
of the questions (`--limit`) get words of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from ...stats.verdict import Verdict
from ..sections.lengths import LONGER_REASONING, is_longer, repeats_more
from ..tables.formatting import join_names, points
from .criterion_words import CriterionWords, criterion_words, is_mlperf

LOOK = (
    "Look at the answers before asking more questions: a dtype that overflows, a damaged "
    "checkpoint, or a prompt layout or token limit that does not fit."
)
IMPROVE = (
    "Quantize again so that fewer answers change: more bits (w8a16), smaller groups (w4a16-g32), "
    "or calibration samples that resemble the questions (--calib)."
)
LARGER_IMAGES = (
    "Evaluate with larger images (--max-pixels), so that fewer answers change: small text suffers "
    "first."
)
REAL_FILES = (
    "Evaluate a real model on published benchmark files (--bench NAME=PATH): drawings do not show "
    "how it answers about photos and documents."
)
ALL_QUESTIONS = "Repeat the evaluation without --limit, and decide by that report."
READ_FLIPS = (
    "Read the flipped answers, the losses first: they show what the candidate no longer does."
)
OTHER_ENGINE = (
    "Test the checkpoint in the engine that will serve it: another engine has other kernels and "
    "another speed."
)

Report = Mapping[str, Any]


class Scope(StrEnum):
    """The questions that a verdict is based on."""

    FULL = "full"  # all questions of benchmarks that are not drawings
    SAMPLE = "sample"  # --limit
    SYNTHETIC = "synthetic"  # drawings, all of them or a sample


_ON = {Scope.FULL: "", Scope.SAMPLE: " on a sample", Scope.SYNTHETIC: " on drawings"}
_ON_QUESTIONS = {Scope.SAMPLE: "on a sample of the questions", Scope.SYNTHETIC: "on drawings"}


@dataclass(frozen=True)
class VerdictText:
    """A verdict in words: its meaning, its reason, and the next steps."""

    title: str
    reason: str
    steps: Sequence[str]

    @property
    def advice(self) -> str:
        """The next steps as one text."""
        return " ".join(self.steps)


def find_scope(benchmarks: Mapping[str, Report]) -> Scope:
    """The weakest scope among the benchmarks of a report.

    Args:
        benchmarks: entries of `report.json`.
    """
    if any(entry["synthetic"] for entry in benchmarks.values()):
        return Scope.SYNTHETIC
    is_limited = any(entry.get("limited") for entry in benchmarks.values())
    return Scope.SAMPLE if is_limited else Scope.FULL


def verdict_label(verdict: str, scope: str) -> str:
    """The verdict with its scope, such as `PASS on drawings`; INCONCLUSIVE has none."""
    return verdict if verdict == Verdict.INCONCLUSIVE else verdict + _ON[Scope(scope)]


def verdict_text(report: Report) -> VerdictText:
    """Explain a report's verdict as a decision about shipping the candidate.

    Args:
        report: at least `benchmarks`, `verdict`, `margin` and, unless it is the margin,
            `criterion` of `report.json`.
    """
    scope = find_scope(report["benchmarks"])
    explain = {Verdict.PASS: _passed, Verdict.FAIL: _failed, Verdict.INCONCLUSIVE: _undecided}
    text = explain[Verdict(report["verdict"])](report, scope)
    return replace(text, reason=" ".join([text.reason, *_length_findings(report["benchmarks"])]))


def _length_findings(entries: Mapping[str, Report]) -> list[str]:
    """Sentences on reasonings that are longer than the base's, and on loops."""
    findings = {
        f"Its reasoning is shown to be over {100 * (LONGER_REASONING - 1):.0f} % longer": is_longer,
        "More of its answers are shown to repeat themselves": repeats_more,
    }
    named = {
        text: [name for name, entry in entries.items() if holds(entry.get("lengths"))]
        for text, holds in findings.items()
    }
    return [f"{text} on {join_names(names)}." for text, names in named.items() if names]


def _named(entries: Mapping[str, Report], verdict: Verdict) -> list[str]:
    return [name for name, entry in entries.items() if entry["verdict"] == verdict]


def _passed(report: Report, scope: Scope) -> VerdictText:
    entries, words = report["benchmarks"], criterion_words(report)
    where = "every benchmark" if len(entries) > 1 else join_names(list(entries))
    reason = f"On {where} {words.passed}."
    has_flips = any(entry["flips"]["right_to_wrong"] for entry in entries.values())
    flips = [READ_FLIPS] if has_flips else []
    if scope is Scope.FULL:
        title = f"The candidate may ship{words.by}."
        return VerdictText(title, reason, [*flips, OTHER_ENGINE])
    title = f"{words.kept} {_ON_QUESTIONS[scope]}."
    if scope is Scope.SAMPLE:
        return VerdictText(
            title, f"{reason} Not all questions were asked.", [ALL_QUESTIONS, *flips]
        )
    reason += " Drawings are no evidence about photos and documents."
    return VerdictText(title, reason, [REAL_FILES, *flips])


def _failed(report: Report, scope: Scope) -> VerdictText:
    failed = join_names(_named(report["benchmarks"], Verdict.FAIL))
    words = criterion_words(report)
    reason = f"{words.failed} on {failed}."
    title = (
        f"The candidate should not ship{words.by}."
        if scope is Scope.FULL
        else f"The candidate loses too much {_ON_QUESTIONS[scope]}."
    )
    return VerdictText(title, reason, [READ_FLIPS, _improve(report)])


def _improve(report: Report) -> str:
    """Advice for a candidate that loses too much."""
    return LARGER_IMAGES if report.get("max_pixels") else IMPROVE


def _undecided(report: Report, scope: Scope) -> VerdictText:
    entries, words = report["benchmarks"], criterion_words(report)
    undecided = {name: entries[name] for name in _named(entries, Verdict.INCONCLUSIVE)}
    unhealthy = {n: text for n, entry in undecided.items() if (text := _first_violation(entry))}
    if is_mlperf(report):  # only health rules leave it undecided, too few questions among them
        unhealthy = {n: entry["health_reasons"][0]["text"] for n, entry in undecided.items()}
    too_few = {name: entry for name, entry in undecided.items() if name not in unhealthy}
    reasons = [f"On {name}, {text}." for name, text in unhealthy.items()]
    steps = [LOOK] if unhealthy else []
    if too_few:
        reasons.append(
            "There are too few questions to tell whether the candidate loses more than the "
            f"{points(report['margin'])} allowed on {join_names(list(too_few))}."
        )
        reasons += _still_needed(too_few)
        steps += _more_questions(too_few, _improve(report))
    if passed := _named(entries, Verdict.PASS):
        reasons.append(f"On {join_names(passed)} {words.passed}.")
    if scope is Scope.SYNTHETIC:
        steps.append(REAL_FILES)
    title = (
        "Not decided yet: too few questions."
        if too_few
        else "The answers cannot support a verdict."
    )
    return VerdictText(title, " ".join(reasons), steps)


def _first_violation(entry: Report) -> str | None:
    """The first violated health rule of a benchmark; None if it only lacks questions."""
    texts = [r["text"] for r in entry["health_reasons"] if r["rule"] != "few_questions"]
    return texts[0] if texts else None


def _still_needed(entries: Mapping[str, Report]) -> list[str]:
    """Questions that a PASS needs in addition, at the observed rates of flips."""
    more = {name: count for name, entry in entries.items() if (count := _more(entry))}
    texts = []
    if more:
        counts = join_names([f"{count:,} more on {name}" for name, count in more.items()])
        texts.append(
            f"If answers keep changing at the rate seen so far, PASS needs about {counts}."
        )
    if others := [name for name in entries if name not in more]:
        texts.append(
            f"On {join_names(others)} the loss seen so far is not below the margin: more questions "
            "are more likely to end in FAIL than in PASS."
        )
    return texts


def _more_questions(entries: Mapping[str, Report], improve: str) -> list[str]:
    """Next steps for benchmarks with too few questions; `improve` where these do not help."""
    helped = {name: entry for name, entry in entries.items() if _more(entry)}
    limited = {name: entry for name, entry in helped.items() if entry.get("limited")}
    steps = []
    if limited:
        total = max(entry["n"] + (_more(entry) or 0) for entry in limited.values())
        steps.append(
            f"Ask more questions: repeat without --limit, or with --limit {total} or more."
        )
    if complete := [name for name in helped if name not in limited]:
        steps.append(
            f"All questions of {join_names(complete)} were asked: add a benchmark file with more "
            "questions of the same kind, or quantize so that fewer answers change."
        )
    if len(helped) < len(entries):
        steps.append(improve)
    return steps


def _more(entry: Report) -> int | None:
    count: int | None = entry.get("questions_still_needed")
    return count


def comparison_title(verdicts: Iterable[str], scope: str, words: CriterionWords) -> str:
    """The headline of a comparison of several candidates.

    Args:
        verdicts: of the candidates.
        scope: a `Scope`, the same for all of them.
        words: of the criterion, the same for all of them.
    """
    found = list(verdicts)
    where = "" if Scope(scope) is Scope.FULL else f" {_ON_QUESTIONS[Scope(scope)]}"
    if not (passed := found.count(Verdict.PASS)):
        return f"None of {len(found)} candidates {words.none}{where}."
    if not where:
        return f"{passed} of {len(found)} candidates may ship{words.by}."
    return f"{passed} of {len(found)} candidates {words.some}{where}."


def comparison_steps(verdicts: Iterable[str], scope: str) -> list[str]:
    """The next steps after a comparison of several candidates; arguments as in the title."""
    found = list(verdicts)
    steps = {Scope.FULL: [], Scope.SAMPLE: [ALL_QUESTIONS], Scope.SYNTHETIC: [REAL_FILES]}
    passed = found.count(Verdict.PASS)
    if passed > 1:
        choose = (
            "Choose among the candidates that pass by size, speed and divergence from the base."
        )
        return [*steps[Scope(scope)], choose]
    if passed == 1:
        return [*steps[Scope(scope)], "Read the flipped answers of the candidate that passes."]
    return ["Follow the next steps on each candidate's page."]
