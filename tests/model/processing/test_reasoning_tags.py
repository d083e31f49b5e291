"""Given answers under chat templates that open a reasoning in the prompt of an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import CHAT_TEMPLATE, THINKING_TEMPLATE, WriteCheckpoint

from vlpress.model.processing.processor import Processor

QUESTION = [{"role": "user", "content": "What is this?"}]
TURN = "<|im_start|>user\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"
CLOSED = THINKING_TEMPLATE.replace("<think>\\n", "<think>\\n\\n</think>\\n\\n")
BARE = THINKING_TEMPLATE.replace("<think>\\n", "<think>")
_ROLE = "{{ '<|im_start|>' + message['role'] + '\\n' }}"
_REASONED = "{% if message['role'] == 'assistant' %}<think>\n </think> {% endif %}"
WITH_REASONING = THINKING_TEMPLATE.replace(_ROLE, _ROLE + _REASONED)
"""Writes an empty reasoning of its own form in front of given answers."""
_NO_ANSWERS = "{% if message['role'] == 'assistant' %}{{ message['role'] + 1 }}{% endif %}"
NO_ANSWERS = THINKING_TEMPLATE.replace(_ROLE, _NO_ANSWERS + _ROLE)
"""Fails for conversations with an answer."""


@pytest.fixture
def processor(tmp_path: Path, write_checkpoint: WriteCheckpoint) -> Processor:
    return Processor.from_folder(write_checkpoint(tmp_path / "model"))


def shown(processor: Processor, template: str, answer: str, *, is_generated: bool = False) -> str:
    """Text of the assistant's turn, for a short question and an answer."""
    processor.tokenizer.chat_template = template
    prompt = processor.encode(QUESTION, answer=answer, answer_is_generated=is_generated)
    text = str(processor.tokenizer.decode(prompt.input_ids.tolist()))
    assert text.startswith(TURN) and text.endswith("<|im_end|>")
    return text.removeprefix(TURN).removesuffix("<|im_end|>")


@pytest.mark.parametrize(
    ("template", "turn"),
    [
        (CHAT_TEMPLATE, "A cat."),
        (CLOSED, "<think>\n\n</think>\n\nA cat."),
        (THINKING_TEMPLATE, "<think>\n\n</think>\n\nA cat."),
        (BARE, "<think>\n\n</think>\n\nA cat."),
        (NO_ANSWERS, "<think>\n\n</think>\n\nA cat."),
        (WITH_REASONING, "<think>\n </think> A cat."),
    ],
)
def test_answer_follows_a_closed_reasoning(processor: Processor, template: str, turn: str) -> None:
    assert shown(processor, template, "A cat.") == turn
    assert shown(processor, template, "") == turn.removesuffix("A cat.")


@pytest.mark.parametrize("answer", ["It purrs.\n</think>\n\nA cat.", "</think>A cat."])
def test_answer_with_a_reasoning_continues_the_open_one(processor: Processor, answer: str) -> None:
    for opening in ("", "<think>", "<think>\n"):
        assert shown(processor, THINKING_TEMPLATE, opening + answer) == "<think>\n" + answer
    whole = f"<think>\n{answer}"
    assert shown(processor, CHAT_TEMPLATE, whole) == whole


def test_generated_answer_continues_the_open_reasoning(processor: Processor) -> None:
    """The model wrote it there, even if it never ended the reasoning."""
    for answer in ("It purrs", "It purrs.</think>A cat."):
        turn = shown(processor, THINKING_TEMPLATE, answer, is_generated=True)
        assert turn == "<think>\n" + answer


def test_empty_reasoning_is_part_of_the_prompt(processor: Processor) -> None:
    plain = processor.encode(QUESTION, answer="A cat.")
    processor.tokenizer.chat_template = THINKING_TEMPLATE
    question = processor.encode(QUESTION)
    prompt = processor.encode(QUESTION, answer="A cat.")
    assert prompt.answer_tokens == plain.answer_tokens
    assert torch.equal(prompt.input_ids[: len(question)], question.input_ids)
    assert torch.equal(prompt.position_ids, torch.arange(len(prompt)).expand(3, -1))
    assert processor.encode(QUESTION, answer="").answer_tokens == 0


def test_tag_in_a_question_opens_nothing(processor: Processor) -> None:
    question = [{"role": "user", "content": "What does this tag do: <think>"}]
    bare = processor.encode(question)
    answered = processor.encode(question, answer="It opens.")
    assert len(answered) == len(bare) + answered.answer_tokens
