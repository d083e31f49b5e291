"""Lengths of stored answers of models that think; the fixture writes them as predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eval_models import CUT, right
from workbench import Workbench

from vlpress.eval import compare
from vlpress.eval.answering.sampling import Decoding
from vlpress.eval.report.report import build_report
from vlpress.eval.report.sections.lengths import compare_lengths, is_longer, repeats_more
from vlpress.eval.results import read_run
from vlpress.eval.stats.statistics import PairedOutcome, paired_interval
from vlpress.eval.tasks.task import Item

pytestmark = pytest.mark.usefixtures("packaged")

OCR = "builtin-ocrbench"
MMBENCH = "builtin-mmbench"
TWO = Decoding(2, 0.6)
LOOP = "Wait, no. " * 8
Thinks = Callable[..., Path]


@pytest.fixture
def thinks(bench: Workbench) -> Thinks:
    """Store answers after a reasoning of the given number of words, and its tags as one more."""

    def store(name: str, words: Callable[[Item], int], **options: Any) -> Path:
        def say(item: Item) -> str:
            thought = " ".join(f"word{n}" for n in range(words(item)))
            return f"{thought} </think> {options_say(item)}"

        options_say = options.pop("say", right)
        opened = {"reasoning": "think-opened"}
        chosen = {"names": [OCR], "open": opened, **options}
        return bench.run(name, say, **chosen)

    return store


def lengths(base: Path, candidate: Path, name: str = OCR) -> dict[str, Any]:
    runs = [read_run(path).tasks[name] for path in (base, candidate)]
    return dict(compare_lengths(runs[0], runs[1])["lengths"])


def test_tokens_are_counted_apart_and_compared(thinks: Thinks) -> None:
    base = thinks("base", lambda item: int(item.id))  # 0 to 8 words and the tag
    candidate = thinks("cand", lambda item: 2 * int(item.id), say=lambda i: f"{right(i)} indeed")
    found = lengths(base, candidate)
    assert found["reasoning_tokens"] == {
        "base": {"mean": 5, "median": 5},
        "candidate": {"mean": 9, "median": 9},
        "ratio": 81 / 45,
        "ci95": None,  # 9 questions are too few
    }
    assert found["answer_tokens"]["base"] == {"mean": 1, "median": 1}
    assert found["answer_tokens"]["ratio"] == 2
    assert found["cut_off"]["base"] == found["repeating"]["candidate"] == 0
    assert not is_longer(found) and not repeats_more(found)


def test_a_longer_reasoning_is_a_finding(thinks: Thinks, bench: Workbench) -> None:
    names = [MMBENCH, "builtin-ocrbench"]
    base = thinks("base", lambda item: 9 + len(item.id), names=names, decoding=TWO)
    candidate = thinks("cand", lambda item: 29 + len(item.id), names=names, decoding=TWO)
    few = lengths(base, candidate, MMBENCH)
    assert few["reasoning_tokens"]["ci95"] is None and not is_longer(few)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlpress.eval.stats.ratio.LEAST_CLUSTERS", 8)
        report = compare(base, candidate, bench.folder / "report")
    entry = report["benchmarks"][MMBENCH]["lengths"]["reasoning_tokens"]
    assert entry["ratio"] == pytest.approx((8 * (33 + 3 * 37)) / (8 * (13 + 3 * 17)))
    assert entry["ci95"][0] == entry["ci95"][1] == pytest.approx(entry["ratio"])
    [warning] = [text for text in report["warnings"] if text.startswith(MMBENCH)]
    assert "2.25 times" in warning and "LONGER_REASONING 1.3" in warning
    assert f"over 30 % longer on {MMBENCH} and {OCR}." in report["reason"]
    page = (bench.folder / "report" / "report.html").read_text("utf-8")
    text = (bench.folder / "report" / "report.md").read_text("utf-8")
    for written in (page, text):
        assert "tokens of" in written and "answers that" in written and "2.25" in written


def test_a_cut_off_thought_is_no_answer(thinks: Thinks, bench: Workbench) -> None:
    def cut(item: Item) -> str:
        return f"it is {right(item)}{CUT}" if int(item.id) < 3 else f"x </think> {right(item)}"

    base = thinks("base", lambda _: 1)
    opened = {"reasoning": "think-opened"}
    candidate = bench.run("cand", cut, names=[OCR], open=opened)
    report, _ = build_report(read_run(base), read_run(candidate))
    entry = report["benchmarks"][OCR]
    assert (entry["base"], entry["candidate"]) == (100, pytest.approx(100 * 6 / 9))
    assert entry["lengths"]["cut_off"]["candidate"] == pytest.approx(100 / 3)
    assert entry["lengths"]["cut_off"]["delta"] == pytest.approx(100 / 3)
    stored = read_run(candidate).tasks[OCR].predictions["0"]
    assert (stored.prediction, stored.reasoning) == ("", "it is word0")


def test_loops_are_compared_by_question(thinks: Thinks) -> None:
    base = thinks("base", lambda _: 2, decoding=TWO)
    looping = thinks("cand", lambda _: 2, decoding=TWO, say=lambda item: LOOP + right(item))
    assert lengths(base, looping)["repeating"]["candidate"] == 0  # the loop ends
    stuck = thinks("stuck", lambda _: 2, decoding=TWO, say=lambda item: right(item) + LOOP)
    found = lengths(base, stuck)
    assert found["repeating"]["delta"] == 100 and found["repeating"]["ci95"][0] > 30
    assert repeats_more(found)
    report, _ = build_report(read_run(base), read_run(stuck))
    assert f"repeat themselves on {OCR}." in report["reason"]


def test_shares_of_several_answers_have_the_variance_of_means(thinks: Thinks) -> None:
    base = thinks("base", lambda _: 2, decoding=TWO)
    half = thinks(
        "half", lambda _: 2, decoding=TWO, say=lambda i: right(i) + (CUT if i.sample == 1 else "")
    )
    found = lengths(base, half)["cut_off"]
    assert (found["base"], found["candidate"], found["delta"]) == (0, 50, 50)
    # Nine questions count as at most eighteen.
    expected = paired_interval(PairedOutcome(9, 0, 4.5), design_effect=0.5)
    assert found["ci95"] == pytest.approx([100 * expected.low, 100 * expected.high])


def test_answers_without_reasoning_have_no_lengths(bench: Workbench) -> None:
    base, candidate = bench.run("base", names=[OCR]), bench.run("cand", names=[OCR])
    report = compare(base, candidate, bench.folder / "report")
    assert "lengths" not in report["benchmarks"][OCR]
    page = (bench.folder / "report" / "report.html").read_text("utf-8")
    assert "Lengths of reasonings" not in page and "Sampled answers" not in page
