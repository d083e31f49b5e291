"""A candidate cannot pass by having the answers of a base without any ability."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from eval_files import mmbench_rows, package_files, write_tsv
from eval_models import Say, TableResponder, right
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner
from workbench import NAMES, Workbench

from vlpress.cli import main
from vlpress.eval import compare_many, extract_choice
from vlpress.eval.answering.runner import Completion
from vlpress.eval.report.report import build_report
from vlpress.eval.results import StoredRun, read_run
from vlpress.eval.tasks.task import Item
from vlpress.model.processing.processor import Processor

TWO = NAMES[:2]
WIDE = 60  # points: a margin that eight or nine questions without a loss pass


class CutOff(TableResponder):
    """Right answers that all end at the token limit."""

    def generate(self, items: Sequence[Item]) -> list[Completion]:
        return [replace(answer, stopped=False) for answer in super().generate(items)]


def nan_tokens(item: Item) -> str:
    """The answer of a model with NaN logits: token 0 up to the limit."""
    return "!" * 64


def at_chance(item: Item) -> str:
    """Right for one question in four of those with options, wrong for all open ones."""
    return "B" if "choices" in item.fields else "word99"


Evaluate = Callable[[Workbench], Path]


def answering(answer: Say, **options: Any) -> Evaluate:
    return lambda bench: bench.run("base", answer, names=TWO, **options)


HOLLOW: Mapping[str, tuple[Evaluate, set[str]]] = {
    "NaN": (answering(nan_tokens), {"unreadable", "identical", "chance"}),
    "blank images": (answering(right, open={"blank": True}), {"blank_images"}),
    "all empty": (answering(lambda item: " \n"), {"unreadable", "empty", "identical", "chance"}),
    "one constant answer": (answering(lambda item: "A"), {"identical", "chance"}),
    "at chance": (answering(at_chance), {"identical", "chance"}),
    "both at zero": (answering(lambda item: f"no {item.id}"), {"chance"}),
    "all declined": (answering(lambda item: "Z"), {"unreadable", "identical", "chance"}),
}


def report_of(base: Path, cand: Path | None = None, margin: float = WIDE) -> dict[str, Any]:
    """The report of two runs, or of one with itself, without writing it."""
    report, _ = build_report(read_run(base), read_run(cand or base), margin)
    return report


def check_not_passed(report: Mapping[str, Any], rules: set[str]) -> None:
    assert report["verdict"] == "INCONCLUSIVE"
    violated = {r["rule"] for e in report["benchmarks"].values() for r in e["health_reasons"]}
    assert rules <= violated
    for name, entry in report["benchmarks"].items():
        assert entry["verdict"] == "INCONCLUSIVE"
        assert entry["lower95"] > -report["margin"], "the interval alone would pass"
        assert {r["side"] for r in entry["health_reasons"]} <= {"base", "candidate", "both"}
        for reason in entry["health_reasons"]:
            lines = [line for line in report["verdict_reasons"] if line.startswith(name)]
            assert any(reason["text"] in line for line in lines)


@pytest.mark.parametrize("fault", HOLLOW)
def test_equal_but_hollow(bench: Workbench, fault: str) -> None:
    evaluate, rules = HOLLOW[fault]
    # Blank images are all one cluster, which counts as a single question.
    check_not_passed(report_of(evaluate(bench), margin=80), rules)


def test_all_answers_cut_off(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.TableResponder", CutOff)
    report = report_of(bench.run("base", names=TWO))
    assert [e["base"] for e in report["benchmarks"].values()] == [100, 100]
    check_not_passed(report, {"cut_off"})


def test_reasons_are_in_every_form_and_decide_the_exit_code(bench: Workbench) -> None:
    base = str(bench.run("base", nan_tokens, names=TWO))
    out = bench.folder / "r"
    command = ["compare", base, base, "-o", str(out), "--margin", str(WIDE)]
    result = CliRunner().invoke(main.app, command)
    assert result.exit_code == 4
    report = json.loads((out / "report.json").read_text("utf-8"))
    text = report["benchmarks"]["builtin-mmbench"]["health_reasons"][0]["text"]
    assert "name no option" in text and "100.0 %" in text
    assert text in result.stdout and "verdict: INCONCLUSIVE" in result.stdout
    markdown = (out / "report.md").read_text("utf-8").replace("\\", "")
    page = (out / "report.html").read_text("utf-8").replace("&#39;", "'")
    for shown in (markdown, page):
        assert text in shown and "CUT_OFF_LIMIT 50" in shown
    assert "The answers cannot support a verdict." in page
    assert "Ask more questions" not in page
    other = str(shutil.copytree(base, bench.folder / "other"))
    several = CliRunner().invoke(main.app, [*command[:3], other, *command[3:]])
    assert several.exit_code == 4 and text in several.stdout


def test_several_candidates_follow(bench: Workbench) -> None:
    base = bench.run("base", nan_tokens, names=TWO)
    runs = [shutil.copytree(base, bench.folder / name) for name in ("a", "b")]
    comparison = compare_many(base, runs, bench.folder / "r", margin=WIDE)
    assert comparison["verdict"] == "INCONCLUSIVE"
    for name in ("a", "b"):
        entry = comparison["candidates"][name]
        assert entry["verdict"] == "INCONCLUSIVE" and entry["verdict_reasons"]
        assert entry["benchmarks"]["builtin-ocrbench"]["chance"] == 0
        assert any(line.startswith(f"{name}: builtin-") for line in comparison["verdict_reasons"])
    page = (bench.folder / "r" / "comparison.html").read_text("utf-8")
    assert (
        "None of 2 candidates is shown to stay within the margin on drawings." in page
        and "name no option" in page
    )


def test_two_languages_follow(bench: Workbench, tmp_path: Path) -> None:
    names = tuple(
        f"{name}={write_tsv(tmp_path / f'{name}.tsv', mmbench_rows(8))}"
        for name in ("MMBench_DEV_EN", "MMBench_DEV_CN")
    )
    half = bench.run("base", names=names[:1])
    bench.run("base", nan_tokens, names=names[1:])
    report = report_of(half)
    assert report["benchmarks"]["MMBench_DEV_EN"]["verdict"] == "PASS"
    [whole] = report["pooled"].values()
    assert whole["lower95"] > -WIDE and whole["verdict"] == "INCONCLUSIVE"
    assert whole["health_reasons"][0]["text"].startswith("MMBench_DEV_CN: ")
    assert report["verdict"] == "INCONCLUSIVE"


def test_only_the_candidate_is_hollow(bench: Workbench) -> None:
    """A margin so wide that losing everything would pass does not make it pass."""
    base = bench.run("base", lambda item: right(item) if item.id in "0123" else "no", names=TWO[1:])
    cand = bench.run("cand", lambda item: f"no {item.id}", names=TWO[1:])
    report = report_of(base, cand, margin=95)
    entry = report["benchmarks"]["builtin-ocrbench"]
    assert entry["lower95"] > -95 and entry["candidate"] == 0 < entry["base"]
    assert (entry["verdict"], report["verdict"]) == ("INCONCLUSIVE", "INCONCLUSIVE")
    assert {r["side"] for r in entry["health_reasons"]} == {"candidate"}


def test_a_loss_fails_only_if_there_was_ability_to_lose(bench: Workbench) -> None:
    cand = bench.run("cand", lambda item: "", names=TWO[:1])
    sound = bench.run("sound", names=TWO[:1])
    assert report_of(sound, cand, margin=20)["verdict"] == "FAIL"
    # Half of the rows are cut off or without an option, but what is right is far above chance.
    noisy = bench.run(
        "noisy", lambda item: right(item) if int(item.id) % 10 < 5 else "no", names=TWO[:1]
    )
    report = report_of(noisy, cand, margin=5)
    entry = report["benchmarks"]["builtin-mmbench"]
    assert entry["verdict"] == ("FAIL" if entry["upper95"] < -5 else "INCONCLUSIVE")


@pytest.mark.parametrize("margin", [100, 1e9, float("inf"), float("nan"), -1])
def test_margins_at_which_all_or_nothing_would_pass(sound: StoredRun, margin: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"margin is {margin:g};")):
        build_report(sound, sound, margin)


def test_few_questions_and_none(bench: Workbench) -> None:
    base = bench.run("base", names=NAMES[2:])
    report = report_of(base)
    entry = report["benchmarks"]["builtin-mmmu"]
    assert entry["n"] == 3 and entry["lower95"] > -WIDE
    assert report["verdict"] == "INCONCLUSIVE"
    assert "few_questions" in {r["rule"] for r in entry["health_reasons"]}
    nothing = bench.run("nothing", names=())
    with pytest.raises(ValueError, match="nothing holds no benchmark"):
        report_of(nothing)


def test_an_evaluation_warns_of_an_unhealthy_model(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.run("sound", names=TWO)
    bench.run("blind", lambda item: "A", names=TWO, open={"blank": True})
    assert caplog.messages == []
    run = bench.run("base", nan_tokens, names=TWO)
    assert any("builtin-mmbench" in m and "UNREADABLE_LIMIT" in m for m in caplog.messages)
    scores = json.loads((run / "scores.json").read_text("utf-8"))["benchmarks"]["builtin-mmbench"]
    assert {r["rule"] for r in scores["health_reasons"]} >= {"unreadable", "identical", "chance"}
    assert scores["chance"] == pytest.approx(100 / 256)


@pytest.fixture(scope="module")
def sound(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoredRun]:
    folder = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        package_files(folder, patch)
        bench = Workbench(Processor.from_folder(checkpoint), folder)
        yield read_run(bench.run("base", names=TWO))


ANSWERS = ("right", "right", "", " ", "!!!!", "A", "B", "no idea", "Z")


def answered(run: StoredRun, answers: Mapping[str, tuple[str, bool]]) -> StoredRun:
    """The run with other stored answers and stop flags; `right` is the gold answer."""
    tasks = {}
    for name, task in run.tasks.items():
        gold = {i["id"]: str((i.get("answers") or [i.get("answer")])[0]) for i in task.items}
        predictions = {}
        for key, old in task.predictions.items():
            text, stopped = answers[f"{name}/{key}"]
            text = gold[key] if text == "right" else text
            predictions[key] = replace(old, prediction=text, stopped=stopped)
        tasks[name] = replace(task, predictions=predictions)
    return replace(run, tasks=tasks)


def is_hollow(run: StoredRun, name: str) -> bool:
    """Independent count of the health rules."""
    task = run.tasks[name]
    pairs = [(item, task.predictions[item["id"]]) for item in task.items]
    bad = 0
    for item, answer in pairs:
        choices = item.get("choices")
        named = not choices or extract_choice(answer.prediction, choices) not in (None, "Z")
        bad += not (named and answer.stopped and answer.prediction.strip())
    texts = {answer.prediction for _, answer in pairs}
    return bad > len(pairs) / 2 or len(texts) == 1 or task.score().percent == 0


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 0.6, 1.0]), st.booleans())
def test_no_stored_answers_of_a_hollow_model_pass(
    sound: StoredRun, seed: int, damage: float, constant: bool
) -> None:
    draw = Random(seed)

    def some() -> tuple[str, bool]:
        return draw.choice(ANSWERS), draw.random() < 0.7

    keys = [f"{name}/{key}" for name, task in sound.tasks.items() for key in task.predictions]
    fixed, gold = some(), ("right", True)
    answers = {
        key: (fixed if constant else some()) if draw.random() < damage else gold for key in keys
    }
    other = {key: answers[key] if draw.random() < 0.5 else gold for key in keys}
    runs = [answered(sound, answers), answered(sound, draw.choice([answers, other]))]
    base, cand = runs if draw.random() < 0.5 else runs[::-1]
    report, _ = build_report(base, cand, WIDE)
    for name, entry in report["benchmarks"].items():
        if is_hollow(base, name) or is_hollow(cand, name):
            assert entry["verdict"] != "PASS"
            assert entry["health_reasons"]
            assert report["verdict"] != "PASS"
    json.dumps(report, allow_nan=False)
