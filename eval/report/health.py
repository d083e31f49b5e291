"""Health rules: whether a model's answers can support a verdict at all.

A candidate with the answers of its base has lost nothing, but a broken base has nothing to lose.
Each rule compares one sign of a benchmark's answers with a named threshold. Violated rules cap the
verdict:

- by the base: the benchmark cannot show that the candidate lost nothing, so PASS becomes
  INCONCLUSIVE. FAIL remains, unless the base has nothing to lose (`NOTHING_TO_LOSE`);
- by the candidate only: PASS becomes INCONCLUSIVE, FAIL remains;
- blank images, or fewer than `MINIMUM_QUESTIONS` questions: as for the base.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ..answering.predictions import Prediction
from ..stats.chance_level import CHANCE_CONFIDENCE, chance_percent, is_choice, lower_bound_percent
from ..stats.criterion import SHARE
from ..stats.verdict import Verdict
from ..tasks.extract import REFUSAL, extract_choice
from ..tasks.task import Fields, Scorer, TaskScore, is_broken

UNREADABLE_LIMIT = 50.0
CUT_OFF_LIMIT = 50.0
EMPTY_LIMIT = 50.0
UNUSABLE_LIMIT = 50.0
IDENTICAL_LIMIT = 90.0
NEAR_CHANCE_POINTS = 5.0
MINIMUM_QUESTIONS = 5  # with fewer, even unanimous flips are not significant: 0.5 ** 4 > 0.05

THRESHOLDS: Mapping[str, float] = {
    "UNREADABLE_LIMIT": UNREADABLE_LIMIT,
    "CUT_OFF_LIMIT": CUT_OFF_LIMIT,
    "EMPTY_LIMIT": EMPTY_LIMIT,
    "UNUSABLE_LIMIT": UNUSABLE_LIMIT,
    "IDENTICAL_LIMIT": IDENTICAL_LIMIT,
    "CHANCE_CONFIDENCE": CHANCE_CONFIDENCE,
    "NEAR_CHANCE_POINTS": NEAR_CHANCE_POINTS,
    "MINIMUM_QUESTIONS": MINIMUM_QUESTIONS,
}
"""Thresholds of the rules by the names of their constants; limits are percent of the answers."""

NOTHING_TO_LOSE = frozenset({"identical", "chance"})
"""Rules whose violation by the base voids a FAIL: its score shows no ability that could be lost."""
BOTH = "both"
MODEL = "model"

Answers = Mapping[str, Prediction]


@dataclass(frozen=True)
class Signs:
    """Signs of one model's answers on one benchmark.

    Shares are percent of the answers, in [0, 100]; None if there are none to count.
    """

    questions: int
    score: float
    score_lower95: float | None
    """One-sided exact lower bound of the score, percent."""
    chance: float | None
    """Expected score of guessing, percent."""
    unreadable: float | None
    """Answers to multiple-choice questions that name no option, refusals included."""
    cut_off: float | None
    """Answers that ended at the token limit, or within the reasoning."""
    empty: float | None
    """Answers without text."""
    unusable: float | None
    """Answers that are unreadable, cut off or empty."""
    identical: float | None
    """Answers equal to the most common one; option letters count as answers."""
    is_constant: bool
    """Whether the most common answer is also given to (nearly) all questions where it is wrong."""


@dataclass(frozen=True)
class Reason:
    """One violated rule."""

    side: str  # base, candidate or both; model in the evaluation of a single one
    rule: str
    value: float | None
    threshold: float | None
    text: str

    def to_dict(self) -> dict[str, Any]:
        """The reason as stored in `report.json`."""
        return asdict(self)


def compute_signs(
    items: Sequence[Fields],
    answers: Sequence[Answers],
    score: TaskScore,
    scorer: Scorer,
    profile: str,
) -> Signs:
    """Compute the signs of one model on one benchmark; shares are means over the samples.

    Args:
        items: stored items, including broken ones.
        answers: of each sample by item id; every item that is not broken has one.
        score: score of all answers by `scorer`.
        scorer: scorer of the benchmark's kind.
        profile: extraction rules, a name of `extract.PROFILES`.
    """
    valid = [item for item in items if not is_broken(item)]
    hits, n = sum(unit.right_share for unit in score.units), len(score.units)
    samples = [[_Reply.of(item, each[item["id"]], profile) for item in valid] for each in answers]
    replies = [reply for sample in samples for reply in sample]
    constancy = [_constancy(sample, scorer, profile) for sample in samples]
    return Signs(
        questions=n,
        score=score.percent,
        score_lower95=lower_bound_percent(hits, n) if n else None,
        chance=chance_percent(items, score.units),
        unreadable=_share(r.is_unreadable for r in replies if is_choice(r.item)),
        cut_off=_share(r.is_cut_off for r in replies),
        empty=_share(r.is_empty for r in replies),
        unusable=_share(r.is_unreadable or r.is_cut_off or r.is_empty for r in replies),
        identical=fmean(share or 0.0 for share, _ in constancy) if valid else None,
        is_constant=all(is_constant for _, is_constant in constancy),
    )


@dataclass(frozen=True)
class _Reply:
    """One answer with its item and its extracted option."""

    item: Fields
    text: str
    letter: str | None  # None: no option extracted, or an open question
    is_cut_off: bool

    @classmethod
    def of(cls, item: Fields, answer: Prediction, profile: str) -> _Reply:
        letter = (
            extract_choice(answer.prediction, item["choices"], profile) if is_choice(item) else None
        )
        return cls(item, answer.prediction, letter, answer.is_cut_off)

    @property
    def is_unreadable(self) -> bool:
        return is_choice(self.item) and self.letter in (None, REFUSAL)

    @property
    def is_empty(self) -> bool:
        return not self.text.strip()

    @property
    def key(self) -> str:
        """Equal for equivalent answers: the letter, or the text without case and final period."""
        return " ".join((self.letter or self.text).casefold().split()).rstrip(". ")


def _share(values: Iterable[bool]) -> float | None:
    """Percent of true values; None without values."""
    flags = list(values)
    return 100 * sum(flags) / len(flags) if flags else None


def _constancy(
    replies: Sequence[_Reply], scorer: Scorer, profile: str
) -> tuple[float | None, bool]:
    """Share of the most common answer in percent, and whether it is independent of the question.

    It is independent if the model also gives it to (nearly) all questions for which it is wrong.
    If it is right for every question, as in a benchmark with one gold answer, it cannot be shown
    to be independent.
    """
    if not replies:
        return None, False
    common, count = Counter(r.key for r in replies).most_common(1)[0]
    share = 100 * count / len(replies)
    if share <= IDENTICAL_LIMIT:
        return share, False
    is_right = _answered_by(common, replies, scorer, profile)
    others = [r.key == common for r in replies if not is_right[r.item["id"]]]
    return share, bool(others) and 100 * sum(others) / len(others) > IDENTICAL_LIMIT


def _answered_by(
    common: str, replies: Sequence[_Reply], scorer: Scorer, profile: str
) -> dict[str, bool]:
    """Score one answer against every row, each row as a question of its own; by item id."""
    # The same key may come from a letter or from a text, by the kind of question.
    texts = {is_choice(r.item): r.letter or r.text for r in reversed(replies) if r.key == common}
    default = next(iter(texts.values()))
    rows = [{**r.item, "unit": r.item["id"], "base": True} for r in replies]
    given = {r.item["id"]: texts.get(is_choice(r.item), default) for r in replies}
    return {unit.id: unit.correct for unit in scorer(rows, given, profile).units}


def list_violations(side: str, signs: Signs) -> list[Reason]:
    """List the rules that one model's answers violate.

    Args:
        side: `base`, `candidate` or `model`.
        signs: signs of its answers.
    """
    owner = f"the {side}'s"
    shares = (
        ("unreadable", "UNREADABLE_LIMIT", "answers to multiple-choice questions name no option"),
        ("cut_off", "CUT_OFF_LIMIT", "answers were cut off at the token limit"),
        ("empty", "EMPTY_LIMIT", "answers are empty"),
    )
    reasons = [
        reason
        for rule, limit, fault in shares
        if (reason := _over(side, rule, getattr(signs, rule), limit, f"{owner} {fault}"))
    ]
    together = f"{owner} answers are unreadable, cut off or empty"
    if not reasons and (
        reason := _over(side, "unusable", signs.unusable, "UNUSABLE_LIMIT", together)
    ):
        reasons.append(reason)
    same = f"{owner} answers are the same, although the right answers differ"
    if signs.is_constant and (
        reason := _over(side, "identical", signs.identical, "IDENTICAL_LIMIT", same)
    ):
        reasons.append(reason)
    return [*reasons, *_at_chance(side, signs)]


def _over(side: str, rule: str, share: float | None, limit: str, fault: str) -> Reason | None:
    """A reason if a share, in percent, exceeds the limit of that name."""
    threshold = THRESHOLDS[limit]
    if share is None or share <= threshold:
        return None
    text = f"{share:.1f} % of {fault} ({limit} {threshold:g} %)"
    return Reason(side, rule, share, threshold, text)


def _at_chance(side: str, signs: Signs) -> list[Reason]:
    """One reason if the score's lower bound does not exceed that of guessing, or hardly does."""
    bound, chance = signs.score_lower95, signs.chance
    if bound is None or chance is None or bound > chance + NEAR_CHANCE_POINTS:
        return []
    score = f"the {side}'s score of {signs.score:.1f} % is not shown to be"
    if bound <= chance:
        text = (
            f"{score} above guessing: its lower bound of {bound:.1f} % does not exceed "
            f"{chance:.1f} % (CHANCE_CONFIDENCE {CHANCE_CONFIDENCE:g})"
        )
        return [Reason(side, "chance", bound, chance, text)]
    text = (
        f"{score} more than {NEAR_CHANCE_POINTS:g} points above guessing, which scores "
        f"{chance:.1f} %: its lower bound is {bound:.1f} % (NEAR_CHANCE_POINTS "
        f"{NEAR_CHANCE_POINTS:g})"
    )
    return [Reason(side, "near_chance", bound, chance + NEAR_CHANCE_POINTS, text)]


def benchmark_reasons(base: Signs, candidate: Signs, *, is_blank: bool) -> list[Reason]:
    """List the reasons that keep a benchmark's verdict from PASS, regardless of its interval.

    Args:
        base: signs of the base's answers.
        candidate: signs of the candidate's answers.
        is_blank: whether the images of both runs were replaced by grey.
    """
    reasons = []
    if is_blank:
        text = "every image was replaced by grey: the scores say nothing about seeing"
        reasons.append(Reason(BOTH, "blank_images", None, None, text))
    if base.questions < MINIMUM_QUESTIONS:
        text = f"{base.questions} questions are too few (MINIMUM_QUESTIONS {MINIMUM_QUESTIONS})"
        reasons.append(Reason(BOTH, "few_questions", base.questions, MINIMUM_QUESTIONS, text))
    return [*reasons, *list_violations("base", base), *list_violations("candidate", candidate)]


def cap_verdict(verdict: Verdict, reasons: Iterable[Reason]) -> Verdict:
    """Cap the verdict of an interval by the violated rules (see the module docstring)."""
    violated = list(reasons)
    if verdict is Verdict.FAIL:
        void = any(r.side == "base" and r.rule in NOTHING_TO_LOSE for r in violated)
        return Verdict.INCONCLUSIVE if void else verdict
    return Verdict.INCONCLUSIVE if violated else verdict


def verdict_reasons(benchmarks: Mapping[str, Mapping[str, Any]], margin: float) -> list[str]:
    """Explain a verdict other than PASS, one line per benchmark and side; empty for PASS.

    Args:
        benchmarks: entries of `report.json`.
        margin: allowed loss in points; not used for entries with the threshold of MLPerf's rule.
    """
    lines = []
    for name, entry in benchmarks.items():
        bounds = f"one-sided bounds {entry['lower95']:+.2f} and {entry['upper95']:+.2f} points"
        health: dict[str, list[str]] = {}
        for reason in entry["health_reasons"]:
            health.setdefault(reason["side"], []).append(reason["text"])
        if entry["verdict"] == Verdict.FAIL and "threshold" in entry:
            lines.append(
                f"{name}: the score of {entry['candidate']:.2f} % is below "
                f"{entry['threshold']:.2f} %, which is {100 * SHARE:.0f} % of the base's "
                f"{entry['base']:.2f} %"
            )
        elif entry["verdict"] == Verdict.FAIL:
            lines.append(f"{name}: more than {margin:g} points are lost ({bounds})")
        elif entry["verdict"] == Verdict.INCONCLUSIVE and not health:
            lines.append(
                f"{name}: {entry['n']} questions do not settle whether more than {margin:g} points "
                f"are lost ({bounds}{_needed(entry)})"
            )
        lines += [f"{name}: {'; '.join(texts)}" for texts in health.values()]
    return lines


def _needed(entry: Mapping[str, Any]) -> str:
    count = entry.get("questions_still_needed")
    return f"; about {count} more are needed for PASS" if count else ""
