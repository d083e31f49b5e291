"""The comparison with VLMEvalKit must detect differences, and must not invent results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from common.published_forms import (
    CHARTQA,
    MMMU_PRO,
    MMMU_PRO_VISION,
    TEXTVQA,
    write_further_forms,
)
from eval_files import BENCHMARK_VECTORS
from PIL import Image
from vlmevalkit import comparisons, phrases, vectors
from vlmevalkit.comparisons import MODEL, PHRASED
from workers.vlmevalkit.absent_modules import AbsentModule

from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.benchmarks.ocrbench import score_table
from vlpress.eval.tasks.files.image_store import StoredImage
from vlpress.eval.tasks.task import Task, TaskScore, Unit

CHOICES = {"A": "cat", "B": "dog"}
FIELDS = {"id": "3", "unit": "3", "choices": CHOICES, "answer": "B", "category": "c", "group": "g"}


def unit(key: str, correct: bool) -> Unit:
    return Unit(key, correct, "c", "Doc-oriented VQA", (key,), ("",))


def score(*correct: bool) -> TaskScore:
    units = tuple(unit(str(key), value) for key, value in enumerate(correct))
    table = {"dev": {"Overall": sum(correct) / len(correct), "c": 0.5}}
    return TaskScore("accuracy", units, len(units), 0, 0, 0, {}, table)


def task(scored: TaskScore) -> Task:
    return Task("t", "mmmu", "accuracy", (), (), "2024", True, {}, lambda *_: scored)


def test_phrased_choices_name_the_right_option_except_every_seventh() -> None:
    number = len(phrases.CHOICE_PHRASES)  # the first phrase: a letter alone
    assert phrases.phrase_choice(FIELDS, number) == "B"
    assert phrases.phrase_choice(FIELDS, 7 * number) == "A"


def test_phrased_texts_are_the_accepted_answer() -> None:
    answers = [phrases.phrase_text({"answers": ["ab"]}, number) for number in range(4)]
    assert answers == ["ab", "The text reads: AB.", "a b", "\nab\n"]


@pytest.mark.parametrize("hits", [{"0": True, "1": False}, {"0": True, "1": True}, {"0": True}])
def test_one_other_question_fails(hits: dict[str, bool]) -> None:
    records = [{"split": "dev", "Overall": 0.5, "c": 0.5}]
    theirs: Any = {title: {"table": records, "hits": hits} for title in (MODEL, PHRASED)}
    sets = {MODEL: {"0": "", "1": ""}, PHRASED: {"0": "", "1": ""}}
    rows = list(comparisons.compare_scores(task(score(True, False)), sets, theirs))
    assert [passed for _, _, passed in rows] == [hits == {"0": True, "1": False}] * 2


@pytest.mark.parametrize(
    ("record", "equal"),
    [
        ({"split": "dev", "Overall": 0.5, "c": 0.5}, True),
        ({"split": "dev", "Overall": 0.5, "c": 0.25}, False),
        ({"split": "dev", "Overall": 0.5}, False),
        ({"split": "test", "Overall": 0.5, "c": 0.5}, False),
    ],
)
def test_tables_are_equal_in_every_number(record: dict[str, Any], equal: bool) -> None:
    assert comparisons.tables_equal([record], score(True, False)) is equal


@pytest.mark.parametrize(("right", "wrong", "passed"), [(1, 0, True), (0, 0, False), (1, 1, False)])
def test_sums_of_ocrbench_settle_every_answer(right: int, wrong: int, passed: bool) -> None:
    scored = score(True, False)
    table = score_table(scored.units)
    scored = TaskScore("accuracy", scored.units, 2, 0, 0, 0, {}, table)
    answers = {"0": "x", "1": "y"}
    sets: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    for title in (MODEL, PHRASED):
        sets |= {title: answers, **comparisons.split_by_hit(task(scored), {title: answers})}
        theirs[title] = {"table": table, "hits": None}
        theirs[f"{title}-right"] = {"table": {"Final Score": right}}
        theirs[f"{title}-wrong"] = {"table": {"Final Score": wrong}}
    rows = comparisons.compare_scores(task(scored), sets, theirs)
    assert {row[2] for row in rows} == {passed}
    assert sets[f"{MODEL}-right"] == {"0": "x"}


def test_letters_are_compared_one_by_one() -> None:
    phrase = {"prediction": "The dog is brown", "choices": CHOICES, "2024": "B", "2025-08": None}
    for letter, passed in (("B", True), ("A", False), (None, False)):
        ((_, _, result),) = comparisons.compare_letters([phrase], [letter], "2024")
        assert result is passed


@pytest.mark.parametrize(
    ("theirs", "stored", "passed"), [(1.0, 1.0, True), (0.5, 0.5, False), (1.0, 0.5, False)]
)
def test_hand_made_answers_need_both_scores(theirs: float, stored: float, passed: bool) -> None:
    case = {"answer": "12", "prediction": "12.5", "expected": stored}
    ((_, _, result),) = vectors.compare_vectors("relaxed", [case], [theirs])
    assert result is passed


def test_cases_of_all_sections_are_stored() -> None:
    cases = vectors.read_cases(BENCHMARK_VECTORS)
    assert {name: len(rows) > 20 for name, rows in cases.items()} == dict.fromkeys(
        vectors.SCORERS, True
    )
    assert vectors.SCORERS.keys() == vectors.NAMES.keys()
    for section, rows in cases.items():
        ((_, result, passed),) = vectors.compare_vectors(
            section, rows, [case["expected"] for case in rows]
        )
        assert passed, (section, result)


def test_further_forms_are_those_of_the_published_names(tmp_path: Path) -> None:
    write_further_forms(tmp_path)
    rows = {
        path.stem: len(open_task(path.stem, data_root=tmp_path).items)
        for path in tmp_path.iterdir()
    }
    assert rows.keys() == {CHARTQA, TEXTVQA, MMMU_PRO, MMMU_PRO_VISION}
    assert rows[CHARTQA] == rows[TEXTVQA] == 508
    assert 0 < rows[MMMU_PRO_VISION] < rows[MMMU_PRO] <= 210


def test_encoding_as_jpeg_changes_the_digest_of_an_image_with_edges() -> None:
    image = Image.new("RGB", (16, 16), "white")
    image.paste("red", (0, 0, 5, 11))
    stored = StoredImage.of(comparisons.encode(image, "PNG"))
    assert comparisons.digest_pixels(stored.open()) == comparisons.digest_pixels(image)
    assert comparisons.digest_jpeg(stored) != comparisons.digest_pixels(image)


def test_a_module_that_is_not_installed_can_be_named_but_not_called() -> None:
    module: Any = AbsentModule("scipy")

    class Child(module.stats.Base):  # type: ignore[misc]  # its type is only known at run time
        pass

    assert Child.__bases__ == (object,)
    with pytest.raises(ModuleNotFoundError, match=r"scipy\.stats\.norm"):
        module.stats.norm(1)
