"""Health rules: whether a model's answers can support a verdict at all.

A candidate that answers like its base has lost nothing, unless the base had nothing to lose. Each
rule compares one sign of a benchmark's answers with a named threshold. A verdict is capped by the
rules that are violated:

- the base violates one: the benchmark cannot show that the candidate lost nothing, so PASS
  becomes INCONCLUSIVE. FAIL stays, unless the base has nothing to lose (`NOTHING_TO_LOSE`);
- only the candidate violates one: PASS becomes INCONCLUSIVE, FAIL stays;
- the images were blank, or there are fewer than `MINIMUM_QUESTIONS` questions: as for the base.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..answering.predictions import Prediction
from ..stats.chance_level import CHANCE_CONFIDENCE, chance_percent, is_choice, lower_bound_percent
from ..stats.verdict import Verdict
from ..tasks.extract import REFUSAL, extract_choice
from ..tasks.task import Fields, Scorer, TaskScore, is_broken

UNREADABLE_LIMIT = 50.0
CUT_OFF_LIMIT = 50.0
EMPTY_LIMIT = 50.0
UNUSABLE_LIMIT = 50.0
IDENTICAL_LIMIT = 90.0
MINIMUM_QUESTIONS = 5  # of fewer, not even equal outcomes of all would be significant at 95 %

THRESHOLDS: Mapping[str, float] = {
    "UNREADABLE_LIMIT": UNREADABLE_LIMIT,
    "CUT_OFF_LIMIT": CUT_OFF_LIMIT,
    "EMPTY_LIMIT": EMPTY_LIMIT,
    "UNUSABLE_LIMIT": UNUSABLE_LIMIT,
    "IDENTICAL_LIMIT": IDENTICAL_LIMIT,
    "CHANCE_CONFIDENCE": CHANCE_CONFIDENCE,
    "MINIMUM_QUESTIONS": MINIMUM_QUESTIONS,
}
"""Every threshold of a rule, by the name of its constant: limits in percent of the answers."""

NOTHING_TO_LOSE = frozenset({"identical", "chance"})
"""Rules whose violation by the base voids a FAIL: its score shows no ability."""
BOTH = "both"
MODEL = "model"

Answers = Mapping[str, Prediction]


@dataclass(frozen=True)
class Signs:
    """What the rules look at, of one model on one benchmark; shares are in percent.

    A share of nothing is None.
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
    """Answers that ended at the token limit."""
    empty: float | None
    """Answers without text."""
    unusable: float | None
    """Answers that are unreadable, cut off or empty."""
    identical: float | None
    """Answers equal to the most common one; option letters count as answers."""
    is_constant: bool
    """Whether that one is given also to (nearly) all questions that it does not answer."""


@dataclass(frozen=True)
class Reason:
    """One violated rule."""

    side: str  # base, candidate, both; model where there is only one
    rule: str
    value: float | None
    threshold: float | None
    text: str

    def to_dict(self) -> dict[str, Any]:
        """A JSON value."""
        return asdict(self)


def read_signs(
    items: Sequence[Fields], answers: Answers, score: TaskScore, scorer: Scorer, profile: str
) -> Signs:
    """The signs of one model on one benchmark.

    Args:
        items: stored items, broken ones included.
        answers: by item id; every item that is not broken has one.
        score: what `scorer` gives for them.
        scorer: of the benchmark's kind.
        profile: rules by which options are extracted.
    """
    asked = [item for item in items if not is_broken(item)]
    said = [_Said.of(item, answers[item["id"]], profile) for item in asked]
    hits, n = sum(unit.correct for unit in score.units), len(score.units)
    identical, is_constant = _constancy(said, scorer, profile)
    return Signs(
        questions=n,
        score=score.percent,
        score_lower95=lower_bound_percent(hits, n) if n else None,
        chance=chance_percent(items, score.units),
        unreadable=_share(s.is_unreadable for s in said if is_choice(s.item)),
        cut_off=_share(s.is_cut_off for s in said),
        empty=_share(s.is_empty for s in said),
        unusable=_share(s.is_unreadable or s.is_cut_off or s.is_empty for s in said),
        identical=identical,
        is_constant=is_constant,
    )


@dataclass(frozen=True)
class _Said:
    """One answer as the rules see it."""

    item: Fields
    text: str
    letter: str | None  # None: names no option, or has none to name
    is_cut_off: bool

    @classmethod
    def of(cls, item: Fields, answer: Prediction, profile: str) -> _Said:
        letter = (
            extract_choice(answer.prediction, item["choices"], profile) if is_choice(item) else None
        )
        return cls(item, answer.prediction, letter, not answer.stopped)

    @property
    def is_unreadable(self) -> bool:
        return is_choice(self.item) and self.letter in (None, REFUSAL)

    @property
    def is_empty(self) -> bool:
        return not self.text.strip()

    @property
    def key(self) -> str:
        """Equal for answers that say the same."""
        return " ".join((self.letter or self.text).casefold().split()).rstrip(". ")


def _share(values: Iterable[bool]) -> float | None:
    found = list(values)
    return 100 * sum(found) / len(found) if found else None


def _constancy(said: Sequence[_Said], scorer: Scorer, profile: str) -> tuple[float | None, bool]:
    """Share of the most common answer, and whether a model gives it without regard to questions.

    It does so if it gives this answer also to the questions to which it is wrong. Where the
    answer is right for all of them, as in a benchmark with one gold answer, nothing tells.
    """
    if not said:
        return None, False
    common, count = Counter(s.key for s in said).most_common(1)[0]
    share = 100 * count / len(said)
    if share <= IDENTICAL_LIMIT:
        return share, False
    is_right = _answered_by(common, said, scorer, profile)
    others = [s.key == common for s in said if not is_right[s.item["id"]]]
    return share, bool(others) and 100 * sum(others) / len(others) > IDENTICAL_LIMIT


def _answered_by(
    common: str, said: Sequence[_Said], scorer: Scorer, profile: str
) -> dict[str, bool]:
    """Which rows one answer would be right for, each row as a question of its own."""
    texts = {is_choice(s.item): s.letter or s.text for s in reversed(said) if s.key == common}
    some = next(iter(texts.values()))
    rows = [{**s.item, "unit": s.item["id"], "base": True} for s in said]
    given = {s.item["id"]: texts.get(is_choice(s.item), some) for s in said}
    return {unit.id: unit.correct for unit in scorer(rows, given, profile).units}


def violations(side: str, signs: Signs) -> list[Reason]:
    """The rules that one model's answers violate.

    Args:
        side: `base`, `candidate` or `model`.
        signs: of its answers.
    """
    whose = f"the {side}'s"
    shares = (
        ("unreadable", "UNREADABLE_LIMIT", "answers to multiple-choice questions name no option"),
        ("cut_off", "CUT_OFF_LIMIT", "answers were cut off at the token limit"),
        ("empty", "EMPTY_LIMIT", "answers are empty"),
    )
    found = [
        reason
        for rule, limit, what in shares
        if (reason := _over(side, rule, getattr(signs, rule), limit, f"{whose} {what}"))
    ]
    together = f"{whose} answers are unreadable, cut off or empty"
    if not found and (
        reason := _over(side, "unusable", signs.unusable, "UNUSABLE_LIMIT", together)
    ):
        found.append(reason)
    same = f"{whose} answers are the same, although the right answers differ"
    if signs.is_constant and (
        reason := _over(side, "identical", signs.identical, "IDENTICAL_LIMIT", same)
    ):
        found.append(reason)
    return [*found, *_at_chance(side, signs)]


def _over(side: str, rule: str, share: float | None, limit: str, what: str) -> Reason | None:
    threshold = THRESHOLDS[limit]
    if share is None or share <= threshold:
        return None
    text = f"{share:.1f} % of {what} ({limit} {threshold:g} %)"
    return Reason(side, rule, share, threshold, text)


def _at_chance(side: str, signs: Signs) -> list[Reason]:
    """One reason if the score is not shown to be above that of guessing."""
    bound, chance = signs.score_lower95, signs.chance
    if bound is None or chance is None or bound > chance:
        return []
    text = (
        f"the {side}'s score of {signs.score:.1f} % is not shown to be above guessing: its lower "
        f"bound of {bound:.1f} % does not exceed {chance:.1f} % (CHANCE_CONFIDENCE "
        f"{CHANCE_CONFIDENCE:g})"
    )
    return [Reason(side, "chance", bound, chance, text)]


def benchmark_reasons(base: Signs, candidate: Signs, *, is_blank: bool) -> list[Reason]:
    """All that keeps a benchmark's verdict from PASS, whatever its interval says.

    Args:
        base: signs of the base's answers.
        candidate: signs of the candidate's answers.
        is_blank: whether both answered without the images.
    """
    found = []
    if is_blank:
        text = "every image was replaced by grey: the scores say nothing about seeing"
        found.append(Reason(BOTH, "blank_images", None, None, text))
    if base.questions < MINIMUM_QUESTIONS:
        text = f"{base.questions} questions are too few (MINIMUM_QUESTIONS {MINIMUM_QUESTIONS})"
        found.append(Reason(BOTH, "few_questions", base.questions, MINIMUM_QUESTIONS, text))
    return [*found, *violations("base", base), *violations("candidate", candidate)]


def capped(verdict: Verdict, reasons: Iterable[Reason]) -> Verdict:
    """The verdict that an interval gives, limited by the violated rules; see the module."""
    found = list(reasons)
    if verdict is Verdict.FAIL:
        void = any(r.side == "base" and r.rule in NOTHING_TO_LOSE for r in found)
        return Verdict.INCONCLUSIVE if void else verdict
    return Verdict.INCONCLUSIVE if found else verdict


def verdict_reasons(benchmarks: Mapping[str, Mapping[str, Any]], margin: float) -> list[str]:
    """Why a report's verdict is not PASS, one line per benchmark and side; empty for PASS.

    Args:
        benchmarks: entries of `report.json`.
        margin: points that may be lost.
    """
    found = []
    for name, entry in benchmarks.items():
        bounds = f"one-sided bounds {entry['lower95']:+.2f} and {entry['upper95']:+.2f} points"
        health: dict[str, list[str]] = {}
        for reason in entry["health_reasons"]:
            health.setdefault(reason["side"], []).append(reason["text"])
        if entry["verdict"] == Verdict.FAIL:
            found.append(f"{name}: more than {margin:g} points are lost ({bounds})")
        elif entry["verdict"] == Verdict.INCONCLUSIVE and not health:
            found.append(
                f"{name}: {entry['n']} questions do not settle whether more than {margin:g} points "
                f"are lost ({bounds})"
            )
        found += [f"{name}: {'; '.join(texts)}" for texts in health.values()]
    return found
