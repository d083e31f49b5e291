from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import (
    CHAT_TEMPLATE,
    THINKING_TEMPLATE,
    make_random_model,
    write_checkpoint_folder,
)

from vlpress.eval.answering import runner
from vlpress.eval.answering.local_reasoning import choose_rule, count_prefix
from vlpress.eval.answering.runner import ModelResponder, answer_task
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.tasks import open_task
from vlpress.model.generation import Generated
from vlpress.model.processing.processor import Processor

PROMPT = "{{ '<|im_start|>assistant\\n' }}"
CLOSED = "{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}"
HISTORY = "{# leaves reasoning out: content.split('</think>')[-1] #}"


def thinking(folder: Path, template: str = THINKING_TEMPLATE) -> Processor:
    """Processor of a tiny Qwen3-VL with a chat template of its own."""
    write_checkpoint_folder(folder, make_random_model("qwen3_vl"))
    (folder / "chat_template.jinja").write_text(template)
    return Processor.from_folder(folder)


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        (CHAT_TEMPLATE, "none"),
        (THINKING_TEMPLATE, "think-opened"),
        (HISTORY + THINKING_TEMPLATE, "think-opened"),
        (HISTORY + CHAT_TEMPLATE, "think-tags"),
        (CHAT_TEMPLATE.replace(PROMPT, CLOSED), "none"),
    ],
)
def test_rule_follows_the_chat_template(template: str, rule: str, tmp_path: Path) -> None:
    assert choose_rule(thinking(tmp_path, template)) == rule


def test_hidden_end_tag_is_refused(tmp_path: Path) -> None:
    processor = thinking(tmp_path)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["</think>"]})
    with pytest.raises(ValueError, match=r"</think>.*--reasoning none"):
        choose_rule(processor)


@given(st.text(max_size=20), st.text(max_size=20))
def test_prefix_is_counted_in_bytes_by_a_tokenizer_of_bytes(first: str, second: str) -> None:
    def decode(ids: Any) -> str:
        return bytes(ids).decode("utf-8", "replace")

    prefix = f"{first}</think>\n"
    ids = list(f"{prefix}{second}".encode())
    assert count_prefix(ids, decode, len(prefix)) == len(prefix.encode())
    assert count_prefix(ids, decode, 0) == 0
    assert count_prefix(ids, decode, len(ids) + 1) == len(ids)


def test_local_answers_are_stored_without_their_reasoning(
    tmp_path: Path, packaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = thinking(tmp_path / "model")
    features = FeatureCache(make_random_model("qwen3_vl"), processor)
    task = open_task("builtin-ocrbench", limit=3, reasoning=choose_rule(processor))
    texts = {
        "It says w0.\n</think>\n\nw0": True,
        "I am not sure": False,
        "Hm.</think> a long ans": False,
    }
    prompts: list[Any] = []

    def generate(model: object, batch: Any, **options: Any) -> list[Generated]:
        prompts.extend(batch)
        assert options["max_new_tokens"] == task.items[0].max_new_tokens
        return [Generated(tuple(processor.tokenizer.encode(t)), end) for t, end in texts.items()]

    monkeypatch.setattr(runner, "generate", generate)
    answers = answer_task(
        task, ModelResponder(features), tmp_path / "p.jsonl", {"a": 1}, batch_size=3
    )
    assert all(processor.decode(p.input_ids[-8:]) == "<think>\n" for p in prompts)
    found = {
        (a.reasoning, a.reasoning_tokens, a.prediction, a.is_unfinished, a.is_cut_off)
        for a in answers.values()
    }
    assert found == {
        ("It says w0.\n</think>\n\n", 22, "w0", False, False),
        ("I am not sure", 13, "", True, True),
        ("Hm.</think> ", 12, "a long ans", False, True),
    }
    assert {a.text for a in answers.values()} == set(texts)
    assert {a.n_tokens for a in answers.values()} == {24, 13, 22}


def test_random_qwen3_vl_is_cut_off_within_its_reasoning(tmp_path: Path, packaged: Path) -> None:
    processor = thinking(tmp_path / "model")
    features = FeatureCache(make_random_model("qwen3_vl"), processor)
    task = open_task("builtin-ocrbench", limit=2, reasoning="think-opened", max_new_tokens=4)
    answers = answer_task(
        task, ModelResponder(features), tmp_path / "p.jsonl", {"a": 1}, batch_size=2
    )
    assert len(answers) == 2
    for answer in answers.values():
        assert (answer.prediction, answer.is_unfinished, answer.is_cut_off) == ("", True, True)
        assert answer.n_tokens is not None and answer.reasoning_tokens is not None
        assert answer.reasoning_tokens <= answer.n_tokens <= 4
