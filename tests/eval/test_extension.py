"""Further questions extend a stored evaluation, with the numbers of one that asks all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_files import base64_png
from eval_models import TableResponder, evaluate_answers, small_model

from vlpress.calib import stored_logprobs
from vlpress.eval import evaluate_model, evaluation, open_task
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.extension import describe_changes, has_questions, keep_only
from vlpress.eval.fidelity import measure
from vlpress.eval.fidelity.noise import read_noise
from vlpress.eval.fidelity.noise_floor import measure_noise
from vlpress.eval.report.report import build_report
from vlpress.eval.results import read_fidelity, read_run
from vlpress.eval.tasks.task import Task
from vlpress.model.processing.processor import Processor

ROWS = [
    {
        "image": base64_png(n),
        "question": f"What is on image {n}?",
        **({"choices": ["cat", "dog"], "answer": "B"} if n % 2 else {"answer": "a cat"}),
    }
    for n in range(7)
]


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Task]:
    """Open a task of the first rows of a file, some of them changed."""

    def write(count: int, changes: dict[int, dict[str, Any]] | None = None, **options: Any) -> Task:
        rows = [{**row, **(changes or {}).get(n, {})} for n, row in enumerate(ROWS[:count])]
        path = tmp_path / "photos.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return open_task(f"photos={path}", max_new_tokens=3, **options)

    return write


def pair(processor: Processor, out: Path, *tasks: Task, batch_size: int = 1) -> dict[str, Any]:
    """Evaluate two models with divergence and noise; return the report without times."""
    base, candidate = small_model(), small_model(1)
    sizes: dict[str, Any] = {"batch_size": batch_size}
    evaluate_model(base, processor, tasks, out / "base", is_reference=True, name="a", **sizes)
    features = FeatureCache(base, processor)
    measure_noise(out / "base", tasks, features, "batch", batch_size=1, units=2)
    evaluate_model(
        candidate, processor, tasks, out / "cand", reference=out / "base", name="b", **sizes
    )
    report, flips = build_report(read_run(out / "base"), read_run(out / "cand"))
    return {**report, "flips": flips, "speed": None, "memory": None, "evaluated": None}


def stored(out: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """Records of both evaluations by file, without times and in the order of the items."""
    run, files = read_run(out / name), {}
    for task in run.tasks.values():
        records = [vars(task.predictions[item["id"]]) for item in task.items]
        files[f"{task.name} answers"] = [{**r, "seconds": 0} for r in records]
        files[f"{task.name} fidelity"] = sorted(
            (read_fidelity(task) or {}).values(), key=lambda r: r["id"]
        )
    return files


def test_extended_evaluation_equals_one_of_all_questions(
    processor: Processor, ask: Callable[..., Task], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pair(processor, out, ask(4))
    asked = (out / "base" / "photos" / "predictions.jsonl").read_bytes()
    more = ask(7)
    assert describe_changes(out / "base", [more]) == ["photos: 3 new; 4 stored answers are kept"]
    extended = pair(processor, out, more)
    assert (out / "base" / "photos" / "predictions.jsonl").read_bytes().startswith(asked)
    whole = pair(processor, tmp_path / "whole", more)
    assert extended == whole
    assert whole["benchmarks"]["photos"]["n"] == 7 and whole["fidelity"]["units"] == 7
    for name in ("base", "cand"):
        assert stored(out, name) == stored(tmp_path / "whole", name)


def test_other_rules_change_scores_alone(
    processor: Processor, ask: Callable[..., Task], tmp_path: Path
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    pair(processor, out, ask(5))
    files = sorted(path for path in out.rglob("*") if path.is_file())
    journals = {path: path.read_bytes() for path in files if path.suffix == ".jsonl"}
    other = ask(5, profile="2026-06")
    (note,) = describe_changes(out / "base", [other])
    assert note.startswith("photos: ") and "2026-06" in note and "2025-08" in note
    again = pair(processor, out, other)
    assert again == pair(processor, whole, other)
    assert again["fingerprint"]["tasks"]["photos"]["profile"] == "2026-06"
    assert sorted(path for path in out.rglob("*") if path.is_file()) == files
    assert {path: path.read_bytes() for path in journals} == journals


def test_answers_are_scored_again_by_other_rules(
    processor: Processor, ask: Callable[..., Task], tmp_path: Path
) -> None:
    """Until June 2026 the letter had to be among the last four words."""

    def score(profile: str) -> tuple[float, int]:
        responder = TableResponder(lambda _: "The answer is B because it barks at every cat")
        task = ask(7, profile=profile)
        result = evaluate_answers(responder, small_model(), processor, [task], tmp_path / "out")
        assert result.run["tasks"]["photos"]["profile"] == profile
        return round(result.benchmarks["photos"]["score"], 6), len(responder.seen)

    assert score("2025-08") == (0.0, 7)
    assert score("2026-06") == (round(100 * 3 / 7, 6), 0)
    assert score("2025-08") == (0.0, 0)


def test_evaluations_by_different_rules_are_not_compared(
    processor: Processor, ask: Callable[..., Task], tmp_path: Path
) -> None:
    answered(processor, tmp_path / "a", ask(7))
    answered(processor, tmp_path / "b", ask(7, profile="2024"))
    with pytest.raises(ValueError, match="profile: 2025-08 -> 2024"):
        build_report(read_run(tmp_path / "a"), read_run(tmp_path / "b"))


def test_batches_of_an_extension_equal_up_to_rounding(
    processor: Processor, ask: Callable[..., Task], tmp_path: Path
) -> None:
    pair(processor, tmp_path / "out", ask(3), batch_size=2)
    extended = pair(processor, tmp_path / "out", ask(7), batch_size=2)
    whole = pair(processor, tmp_path / "whole", ask(7), batch_size=2)
    for part in ("kl_mean", "kl_p99", "top1_agreement", "rms_dp"):
        assert extended["fidelity"][part] == pytest.approx(whole["fidelity"][part], rel=1e-4)
    assert extended["flips"] == whole["flips"]
    assert extended["verdict"] == whole["verdict"]


def answered(
    processor: Processor,
    out: Path,
    *tasks: Task,
    batch_size: int = 2,
    seed: int = 0,
    **options: Any,
) -> TableResponder:
    responder = TableResponder()
    evaluate_answers(
        responder, small_model(seed), processor, tasks, out, batch_size=batch_size, **options
    )
    return responder


def test_changed_and_removed_questions(
    processor: Processor, ask: Callable[..., Task], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    answered(processor, out, ask(6))
    changed = ask(5, {1: {"question": "And on this image?"}, 2: {"answer": "no cat"}})
    note = "photos: 1 changed, asked again, 1 no longer asked; 4 stored answers are kept"
    assert describe_changes(out, [changed]) == [note]
    assert answered(processor, out, changed).seen == ["2"]
    task = read_run(out).tasks["photos"]
    assert [item["id"] for item in task.items] == ["1", "2", "3", "4", "5"]
    assert task.score().percent == pytest.approx(80)  # row 3 has another gold answer
    assert answered(processor, out, ask(6)).seen == []  # nothing stored was lost


def test_another_image_under_the_same_name_is_another_question(
    processor: Processor, ask: Callable[..., Task], tmp_path: Path
) -> None:
    answered(processor, tmp_path / "out", ask(3))
    other = ask(3, {0: {"image": base64_png(77)}})
    assert answered(processor, tmp_path / "out", other).seen == ["1"]


def test_batches_are_planned_within_the_questions_of_a_call(
    processor: Processor, ask: Callable[..., Task], tmp_path: Path
) -> None:
    base, candidate = tmp_path / "base", tmp_path / "cand"
    first = answered(processor, base, ask(3), is_reference=True).batches
    second = answered(processor, base, ask(7), is_reference=True).batches
    assert [sorted(b) for b in first] == [["1", "2"], ["3"]]
    assert sorted(map(len, second)) == [2, 2]
    assert answered(processor, candidate, ask(7), reference=base).batches == first + second


def test_extension_killed_at_any_batch_resumes(
    processor: Processor, ask: Callable[..., Task], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    answered(processor, out, ask(3))
    killed = TableResponder(interrupt_after=1)
    with pytest.raises(KeyboardInterrupt):
        evaluate_answers(killed, small_model(), processor, [ask(7)], out, batch_size=2)
    assert not read_run(out).tasks["photos"].is_complete
    resumed = answered(processor, out, ask(7))
    assert sorted(killed.seen + resumed.seen) == ["4", "5", "6", "7"]
    assert has_questions(read_run(out).tasks["photos"], ask(7))


def test_extension_killed_at_any_write_can_be_read(
    processor: Processor,
    ask: Callable[..., Task],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered(processor, tmp_path / "out", ask(3))
    changed = ask(4, {0: {"question": "What else?"}})
    count = 0

    def interrupted(name: str, allowed: int) -> Callable[..., None]:
        real = getattr(evaluation, name)

        def write(*args: Any, **options: Any) -> None:
            nonlocal count
            if count == allowed:
                raise KeyboardInterrupt
            count += 1
            real(*args, **options)

        return write

    states = []
    for allowed in range(3):  # the marker of both files, the items, the final marker
        count = 0
        with monkeypatch.context() as patch:
            for name in ("write_text", "write_info"):
                patch.setattr(evaluation, name, interrupted(name, allowed))
            with pytest.raises(KeyboardInterrupt):
                answered(processor, tmp_path / "out", changed)
        task = read_run(tmp_path / "out").tasks["photos"]
        states.append((has_questions(task, changed), set(task.predictions)))
    # The changed question has no valid answer.
    assert states == [(False, {"1", "2", "3"})] * 2 + [(True, {"2", "3"})]
    assert sorted(answered(processor, tmp_path / "out", changed).seen) == ["1", "4"]


def test_other_ways_of_asking_are_refused(
    processor: Processor, ask: Callable[..., Task], tmp_path: Path
) -> None:
    answered(processor, tmp_path / "out", ask(3))
    ask(4)
    longer = open_task(f"photos={tmp_path / 'photos.jsonl'}", max_new_tokens=4)
    with pytest.raises(ValueError, match="max_new_tokens: 3 -> 4"):
        answered(processor, tmp_path / "out", longer)
    blank = open_task(f"photos={tmp_path / 'photos.jsonl'}", max_new_tokens=3, blank=True)
    with pytest.raises(ValueError, match="blank_images: False -> True"):
        answered(processor, tmp_path / "out", blank)


def test_divergence_needs_its_reference_for_further_questions(
    processor: Processor, ask: Callable[..., Task], tmp_path: Path
) -> None:
    pair(processor, tmp_path, ask(3))
    with pytest.raises(ValueError, match=r"not for 2 of the 5 questions .* --reference"):
        answered(processor, tmp_path / "cand", ask(5), batch_size=1, seed=1)


def test_kind_of_log_probabilities_follows_all_questions(
    processor: Processor,
    ask: Callable[..., Task],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = 2 * 3 * 5 * small_model().config.text.vocab_size  # of 3 questions with 5 tokens
    for module in (stored_logprobs, measure):
        monkeypatch.setattr(module, "FULL_BYTES", limit, raising=False)
    first = pair(processor, tmp_path / "out", ask(3))
    assert first["fidelity"]["kl_kind"] == "full"
    extended = pair(processor, tmp_path / "out", ask(7))
    assert extended["fidelity"]["kl_kind"] == "lumped"
    assert extended == pair(processor, tmp_path / "whole", ask(7))


def test_noise_is_of_the_present_questions(
    processor: Processor, ask: Callable[..., Task], tmp_path: Path
) -> None:
    pair(processor, tmp_path, ask(3))
    assert read_noise(read_run(tmp_path / "base").tasks.values())["batch"]["units"] == 2
    answered(processor, tmp_path / "base", ask(7), batch_size=1)
    assert read_noise(read_run(tmp_path / "base").tasks.values()) == {}


def test_number_of_threads_is_noted_and_asks_nothing_again(
    processor: Processor,
    ask: Callable[..., Task],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert pair(processor, tmp_path / "out", ask(3))["notes"] == []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    report = pair(processor, tmp_path / "out", ask(5))
    (note,) = report["notes"]
    assert "3 questions with 1, 2 questions with 2" in note
    answers = read_run(tmp_path / "out" / "base").tasks["photos"].predictions
    assert [answers[str(n)].threads for n in range(1, 6)] == [1, 1, 1, 2, 2]


def test_benchmarks_not_given_leave_the_run_but_not_the_disk(
    processor: Processor, ask: Callable[..., Task], tmp_path: Path
) -> None:
    out, task = tmp_path / "out", ask(2)
    answered(processor, out, task)
    assert keep_only(out, ["photos"]) == []
    assert keep_only(out, ["other"]) == ["photos"]
    assert read_run(out).tasks == {}
    assert answered(processor, out, task).seen == []


def test_a_damaged_items_file_is_written_again(
    processor: Processor, ask: Callable[..., Task], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    answered(processor, out, ask(3))
    (out / "photos" / "items.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match="damaged"):
        read_run(out)
    assert answered(processor, out, ask(4)).seen == ["4"]
