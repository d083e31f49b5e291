from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, table
from eval_files import package_files
from eval_models import TableResponder, evaluate_answers, right, small_model
from workbench import reseal

from vlpress.eval import compare, compare_many, evaluate_endpoint, evaluate_model, open_task
from vlpress.eval.answering.openai_client import Endpoint, request_fields
from vlpress.eval.answering.runner import Completion
from vlpress.eval.comparability import check_comparable
from vlpress.eval.report.summary import summarize_comparison, summarize_report
from vlpress.eval.results import read_run
from vlpress.eval.tasks.task import Item, Task
from vlpress.model.processing.processor import Processor

PROMPT = 40  # tokens of every prompt, as both sides count them
Say = Callable[[Item], str]


class CountingResponder(TableResponder):
    """Answers of a local model, with prompt lengths."""

    def generate(self, items: Sequence[Item]) -> list[Completion]:
        answers = super().generate(items)
        return [Completion(a.text, a.n_tokens, a.stopped, PROMPT) for a in answers]


class Workbench:
    """Evaluates one benchmark locally and through a server."""

    def __init__(self, processor: Processor, folder: Path) -> None:
        self.processor, self.folder = processor, folder

    def tasks(self, **options: Any) -> list[Task]:
        return [open_task("builtin-ocrbench", **{"max_new_tokens": 9, **options})]

    def local(self, name: str, say: Say = right, **options: Any) -> Path:
        evaluate_answers(
            CountingResponder(say),
            small_model(),
            self.processor,
            self.tasks(**options),
            self.folder / name,
            name=name,
        )
        return self.folder / name

    def served(
        self,
        name: str,
        say: Say = right,
        *,
        software: str = "vllm",
        prompt: int = PROMPT,
        pixels: int | None = None,
        extra: dict[str, Any] | None = None,
        **options: Any,
    ) -> Path:
        asked = self.tasks(**options)
        entry = {"id": name, "owned_by": software}
        fields = request_fields(max_pixels=pixels, extra=extra)
        with ChatServer(table(asked, say, prompt), models=[entry]) as server:
            endpoint = Endpoint(server.url, name, fields)
            evaluate_endpoint(endpoint, asked, self.folder / name)
        return self.folder / name


@pytest.fixture
def bench(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    package_files(tmp_path, monkeypatch)
    return Workbench(Processor.from_folder(checkpoint), tmp_path)


def notes(base: Path, candidate: Path, **options: Any) -> list[str]:
    return check_comparable(read_run(base), read_run(candidate), **options)


def test_served_runs_of_one_engine_compare_without_a_flag(bench: Workbench) -> None:
    base, cand = bench.served("base"), bench.served("cand", lambda item: "")
    report = compare(base, cand, bench.folder / "report")
    assert report["verdict"] == "FAIL" and report["notes"] == []
    keys = "base_bytes", "candidate_bytes", "bits_per_weight", "base_parts", "candidate_parts"
    assert report["size"] == dict.fromkeys(keys)
    assert "candidate_setup" not in report["fingerprint"]
    text = (bench.folder / "report" / "report.md").read_text("utf-8")
    rows = [line.lower() for line in text.splitlines() if line.startswith("|")]
    for name, count in {"weights on disk": 2, "bits per weight": 1}.items():
        assert any(name in row and row.count("unknown") == count for row in rows), name
    assert not any("peak memory" in row for row in rows)
    assert "None" not in text and "size:" not in summarize_report(report)


def test_local_and_served_runs_need_the_flag(bench: Workbench) -> None:
    base, cand = bench.local("base"), bench.served("cand")
    message = r"was answered by vlpress and .* by vllm \(chat-completions\), .* --across-engines"
    for pair in ((base, cand), (cand, base)):
        with pytest.raises(ValueError, match="--across-engines"):
            compare(*pair, bench.folder / "report")
    with pytest.raises(ValueError, match=message):
        compare(base, cand, bench.folder / "report")
    assert not (bench.folder / "report").exists()


def test_differences_between_engines_are_noted_in_every_form(bench: Workbench) -> None:
    base, cand = bench.local("base"), bench.served("cand")
    report = compare(base, cand, bench.folder / "report", across_engines=True)
    engines, setups, lengths = report["notes"]
    assert "the base was answered by vlpress, the candidate by vllm (chat-completions)" in engines
    parts = ("dtype: float32 -> absent", "batch_size: 32 -> absent", "pixels.max: ", "device: ")
    for part in parts:
        assert part in setups
    assert "request.seed: absent -> 0" in setups and "engine." not in setups
    assert lengths == "the prompts of 9 of 9 rows have the same number of tokens on both sides"
    text = (bench.folder / "report" / "report.md").read_text("utf-8")
    assert text.count("**Note**: ") == 3
    assert text.index("**Note**: the base was answered by vlpress") < text.index("## Scores")
    assert summarize_report(report).count("note: ") == 3
    assert report["fingerprint"]["candidate_setup"]["engine"]["software"] == "vllm"
    assert report["fingerprint"]["setup"]["dtype"] == "float32"
    assert report["size"]["base_bytes"] > 0 and report["size"]["bits_per_weight"] is None


def test_several_candidates_carry_their_notes(bench: Workbench) -> None:
    base, one, two = bench.local("base"), bench.local("one"), bench.served("two")
    with pytest.raises(ValueError, match="--across-engines"):
        compare_many(base, [one, two], bench.folder / "refused")
    found = compare_many(base, [one, two], bench.folder / "many", across_engines=True)
    assert found["candidates"]["one"]["notes"] == []
    assert len(found["candidates"]["two"]["notes"]) == 3
    text = (bench.folder / "many" / "comparison.md").read_text("utf-8")
    assert text.count("**Note on two**: ") == 3 and "Note on one" not in text
    [row] = [line for line in text.splitlines() if re.match(r"\| two +\| INCONCLUSIVE +\|", line)]
    assert "unknown" in row
    assert summarize_comparison(found).count("note on two: ") == 3


def test_two_kinds_of_server_are_two_engines(bench: Workbench) -> None:
    base, cand = bench.served("base"), bench.served("cand", software="sglang")
    with pytest.raises(ValueError, match=r"vllm \(chat-completions\) .*sglang"):
        notes(base, cand)
    engines, *_ = notes(base, cand, across_engines=True)
    assert "vllm (chat-completions), the candidate by sglang (chat-completions)" in engines
    unnamed = bench.served("unnamed", software="somebody")
    with pytest.raises(ValueError, match="unnamed"):
        notes(base, unnamed)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"pixels": 9}, "pixels.max: None -> 9"),
        ({"extra": {"repetition_penalty": None}}, "generation.repetition_penalty: 1.0 -> None"),
        ({"extra": {"top_k": 1}}, "request.top_k: absent -> 1"),
        ({"prompt": 44}, "9 of 9 prompts differ in length .first: row 0, 40 -> 44 tokens., so the"),
        ({"max_new_tokens": 8}, "builtin-ocrbench.max_new_tokens: 9 -> 8"),
    ],
)
def test_unlike_served_runs_are_refused_with_the_flag_too(
    bench: Workbench, options: dict[str, Any], part: str
) -> None:
    base, cand = bench.served("base"), bench.served("cand", **options)
    for flag in (False, True):
        with pytest.raises(ValueError, match=part):
            notes(base, cand, across_engines=flag)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"limit": 3}, "builtin-ocrbench.rows: 9 -> 3"),
        ({"prompt_style": "qwen2-vl"}, "builtin-ocrbench.prompt_style: "),
        ({"profile": "2024"}, "builtin-ocrbench.profile: 2025-08 -> 2024"),
        ({"max_new_tokens": 8}, "builtin-ocrbench.max_new_tokens: 9 -> 8"),
        ({"blank": True}, "builtin-ocrbench.blank_images: False -> True"),
        ({"pixels": 9}, "pixels.max: 12544 -> 9"),
        ({"extra": {"repetition_penalty": 1.05}}, "generation.repetition_penalty: 1.0 -> 1.05"),
    ],
)
def test_questions_and_shared_keys_must_agree_between_engines(
    bench: Workbench, options: dict[str, Any], part: str
) -> None:
    base, cand = bench.local("base"), bench.served("cand", **options)
    with pytest.raises(ValueError, match=part):
        notes(base, cand, across_engines=True)


def test_unlike_prompts_between_engines_are_noted(bench: Workbench) -> None:
    base, cand = bench.local("base"), bench.served("cand", prompt=56)
    *_, lengths = notes(base, cand, across_engines=True)
    assert lengths == (
        "builtin-ocrbench: 9 of 9 prompts differ in length (first: row 0, 40 -> 56 tokens), "
        "so the chat template or the pixels do"
    )


def test_unknown_prompt_lengths_are_called_so(bench: Workbench) -> None:
    base, cand = bench.local("base"), bench.served("cand")
    path = base / "builtin-ocrbench" / "predictions.jsonl"
    path.write_text(path.read_text("utf-8").replace(f', "prompt_tokens": {PROMPT}', ""), "utf-8")
    *_, lengths = notes(reseal(base), cand, across_engines=True)
    assert lengths == "how long the prompts were is not known on both sides"


def test_the_flag_changes_nothing_within_one_engine(bench: Workbench) -> None:
    base = bench.local("base")
    assert notes(base, base, across_engines=True) == []
    with pytest.raises(ValueError, match="limit: "):
        notes(base, bench.local("other", limit=3), across_engines=True)


def test_served_run_is_no_reference_of_a_local_one(bench: Workbench) -> None:
    base = bench.served("base")
    with pytest.raises(ValueError, match="server"):
        evaluate_model(
            small_model(), bench.processor, bench.tasks(), bench.folder / "x", reference=base
        )
