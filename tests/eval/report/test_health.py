"""Health rules: violations, their limits, and their effect on a verdict."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import paths
import pytest

from vlpress.eval.answering.predictions import Prediction
from vlpress.eval.report import health
from vlpress.eval.report.health import (
    NOTHING_TO_LOSE,
    THRESHOLDS,
    Reason,
    Signs,
    benchmark_reasons,
    cap_verdict,
    compute_signs,
    list_violations,
)
from vlpress.eval.stats.verdict import Verdict
from vlpress.eval.tasks import TASK_KINDS
from vlpress.eval.tasks.task import Fields

DOCS = paths.ROOT / "docs" / "report.md"
Say = Callable[[Fields], str]


def choice_rows(n: int, golds: str = "ABCD") -> list[Fields]:
    return [
        {
            "id": str(i),
            "unit": str(i),
            "question": "?",
            "choices": {"A": "cat", "B": "dog", "C": "bird", "D": "fish"},
            "answer": golds[i % len(golds)],
            "category": "c",
            "group": "g",
            "split": None,
            "base": True,
        }
        for i in range(n)
    ]


def text_rows(n: int, golds: Sequence[str] = (), category: str = "c") -> list[Fields]:
    return [
        {
            "id": str(i),
            "unit": str(i),
            "question": "?",
            "answers": [golds[i % len(golds)] if golds else f"word {i}"],
            "metric": "exact",
            "choices": {},
            "category": category,
            "group": "g",
        }
        for i in range(n)
    ]


def signs(rows: Sequence[Fields], say: Say, *, cut: Any = (), kind: str = "mmbench") -> Signs:
    answers = {r["id"]: Prediction(r["id"], say(r), 1, r["id"] not in cut, 0.1) for r in rows}
    scorer, profile = TASK_KINDS[kind].score, "2025-08"
    score = scorer(rows, {key: a.prediction for key, a in answers.items()}, profile)
    return compute_signs(rows, [answers], score, scorer, profile)


def rules(observed: Signs) -> list[str]:
    return [reason.rule for reason in list_violations("base", observed)]


def gold(row: Fields) -> str:
    return str(row["answer"])


def accepted(row: Fields) -> str:
    return str(row["answers"][0])


def test_a_good_model_violates_nothing() -> None:
    observed = signs(choice_rows(40), gold)
    assert (observed.score, observed.chance, observed.unreadable, observed.cut_off) == (
        100,
        25,
        0,
        0,
    )
    assert observed.identical == 25 and not observed.is_constant
    assert rules(observed) == []
    assert rules(signs(text_rows(40), accepted, kind="own")) == []


def test_a_weak_but_honest_model_violates_nothing() -> None:
    draw = random.Random(0)

    def weak(row: Fields) -> str:  # 40 % known, the rest guessed
        return gold(row) if draw.random() < 0.4 else draw.choice("ABCD")

    assert rules(signs(choice_rows(300), weak)) == []

    def weak_text(row: Fields) -> str:
        return accepted(row) if draw.random() < 0.3 else f"no {draw.random()}"

    assert rules(signs(text_rows(60), weak_text, kind="own")) == []


@pytest.mark.parametrize(
    ("bad", "rule"), [("no idea", "unreadable"), ("  ", "empty"), ("Z", "unreadable")]
)
def test_shares_count_above_their_limit(bad: str, rule: str) -> None:
    def say(limit: int) -> Say:
        return lambda row: bad if int(row["id"]) < limit else gold(row)

    assert rule not in rules(signs(choice_rows(40), say(20)))
    assert rule in rules(signs(choice_rows(40), say(21)))


def test_answers_cut_off() -> None:
    assert "cut_off" not in rules(signs(choice_rows(10), gold, cut="01234"))
    assert rules(signs(choice_rows(10), gold, cut="012345")) == ["cut_off"]


def test_unusable_answers_of_different_kinds_add_up() -> None:
    def say(row: Fields) -> str:
        return {"0": "", "1": "", "2": "", "3": "no idea"}.get(row["id"], gold(row))

    observed = signs(choice_rows(10), say, cut="45")
    assert (observed.empty, observed.cut_off, observed.unreadable, observed.unusable) == (
        30,
        20,
        40,
        60,
    )
    assert rules(observed) == ["unusable"]


def test_open_questions_have_no_options_to_name() -> None:
    observed = signs(text_rows(10), accepted, kind="own")
    assert observed.unreadable is None and observed.chance == 0
    mixed = [*text_rows(8), {**choice_rows(9)[8], "metric": "choice", "answers": ["A"]}]
    assert signs(mixed, lambda row: "hm", kind="own").unreadable == 100


def test_open_questions_of_mmmu_are_not_unreadable() -> None:
    rows = [{**row, "choices": {}, "answer": "42"} for row in choice_rows(6)]
    assert signs(rows, lambda row: "7", kind="mmmu").unreadable is None


@pytest.mark.parametrize("answer", ["A", "A. cat", "!!!!!!!!", "a"])
def test_one_answer_to_every_choice(answer: str) -> None:
    observed = signs(choice_rows(40), lambda row: answer)
    assert observed.identical == 100 and observed.is_constant
    assert "identical" in rules(observed)


def test_one_letter_with_other_words_is_one_answer() -> None:
    observed = signs(choice_rows(40), lambda row: f"Option {row['id']} B")
    assert (observed.identical, observed.is_constant) == (100, True)


def test_one_answer_above_chance_is_still_no_skill() -> None:
    """Most golds are A, so a constant A beats guessing."""
    observed = signs(choice_rows(100, "AAAAAAB"), lambda row: "A")
    assert observed.score_lower95 is not None and observed.chance == 25
    assert observed.score_lower95 > 60
    assert rules(observed) == ["identical"]


def test_a_constant_gold_answer_may_be_given_throughout() -> None:
    assert rules(signs(choice_rows(40, "C"), gold)) == []
    assert rules(signs(text_rows(40, ["no"]), accepted, kind="own")) == []
    nearly: Say = lambda row: "D" if row["id"] == "3" else "C"  # noqa: E731
    assert rules(signs(choice_rows(40, "C"), nearly)) == []


def test_a_rare_gold_answered_correctly_shows_skill() -> None:
    golds = ["no"] * 19 + ["yes"]
    assert rules(signs(text_rows(60, golds), accepted, kind="own")) == []
    assert rules(signs(text_rows(60, golds), lambda row: "no", kind="own")) == ["identical"]


def test_chance_takes_rotations_into_account() -> None:
    rows = [{**row, "unit": str(int(row["id"]) // 4)} for row in choice_rows(80)]
    observed = signs(rows, lambda row: gold(row) if int(row["id"]) < 16 else "no idea, dog or cat")
    assert (observed.questions, observed.score) == (20, 20)
    assert observed.chance == pytest.approx(100 / 256)
    assert "chance" not in rules(observed)
    alone = signs(choice_rows(20), lambda row: gold(row) if int(row["id"]) < 4 else "hm")
    assert "chance" in rules(alone), "20 % of single questions with four options is chance"


@pytest.mark.parametrize(("right", "violated"), [(0, True), (1, False)])
def test_open_questions_need_one_right_answer(right: int, violated: bool) -> None:
    observed = signs(
        text_rows(50),
        lambda row: accepted(row) if int(row["id"]) < right else f"no {row['id']}",
        kind="own",
    )
    assert ("chance" in rules(observed)) is violated


@pytest.mark.parametrize(("right", "rule"), [(0, "chance"), (12, "near_chance"), (70, None)])
def test_a_score_slightly_above_zero_shows_too_little_ability(right: int, rule: str | None) -> None:
    observed = signs(
        text_rows(1000),
        lambda row: accepted(row) if int(row["id"]) < right else f"no {row['id']}",
        kind="own",
    )
    pair = benchmark_reasons(observed, observed, is_blank=False)
    assert [(r.side, r.rule) for r in pair] == [
        (side, rule) for side in ("base", "candidate") if rule
    ]
    assert cap_verdict(Verdict.PASS, pair) is (Verdict.INCONCLUSIVE if rule else Verdict.PASS)


def test_guesses_at_yes_or_no_are_chance() -> None:
    draw = random.Random(1)
    rows = text_rows(100, ["yes", "no"])
    assert rules(signs(rows, lambda row: draw.choice(["yes", "no"]), kind="own")) == ["chance"]
    assert rules(signs(rows, accepted, kind="own")) == []


def test_broken_rows_alone() -> None:
    rows = [{**row, "fault": "no image"} for row in text_rows(6)]
    observed = signs(rows, accepted, kind="own")
    assert (observed.cut_off, observed.identical, observed.unusable) == (None, None, None)
    assert rules(observed) == ["chance"]


def test_benchmark_level_rules() -> None:
    good, few = signs(choice_rows(40), gold), signs(choice_rows(4), gold)
    assert benchmark_reasons(good, good, is_blank=False) == []
    assert [r.rule for r in benchmark_reasons(few, few, is_blank=False)] == ["few_questions"]
    blank = benchmark_reasons(good, good, is_blank=True)
    assert [(r.side, r.rule) for r in blank] == [("both", "blank_images")]
    mute = signs(choice_rows(40), lambda row: "")
    sides = {r.side for r in benchmark_reasons(good, mute, is_blank=False)}
    assert sides == {"candidate"}


def reason(side: str, rule: str) -> Reason:
    return Reason(side, rule, 1.0, 0.0, "text")


def test_a_violation_caps_the_verdict() -> None:
    every = ["unreadable", "cut_off", "empty", "unusable", "identical", "chance", "near_chance"]
    sided = [(side, rule) for side in ("base", "candidate") for rule in every]
    sided += [("both", "blank_images"), ("both", "few_questions")]
    for side, rule in sided:
        violated = [reason(side, rule)]
        assert cap_verdict(Verdict.PASS, violated) is Verdict.INCONCLUSIVE
        assert cap_verdict(Verdict.INCONCLUSIVE, violated) is Verdict.INCONCLUSIVE
        void = side == "base" and rule in NOTHING_TO_LOSE
        assert cap_verdict(Verdict.FAIL, violated) is (
            Verdict.INCONCLUSIVE if void else Verdict.FAIL
        )
    for verdict in Verdict:
        assert cap_verdict(verdict, []) is verdict


def test_reasons_have_numbers_and_name_their_limit() -> None:
    for observed in list_violations("base", signs(choice_rows(40), lambda row: "")):
        assert observed.value is not None and observed.threshold is not None
        assert (
            f"{observed.value:.1f} %" in observed.text
            or f"{observed.threshold:.1f} %" in observed.text
        )
        assert any(name in observed.text for name in THRESHOLDS)


def test_documented_thresholds_are_those_of_the_code() -> None:
    documented = {}
    for line in DOCS.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 2 and cells[1].strip("`") in THRESHOLDS:
            documented[cells[1].strip("`")] = float(cells[2].split()[0])
    assert documented == THRESHOLDS
    for name, value in THRESHOLDS.items():
        assert getattr(health, name) == value
