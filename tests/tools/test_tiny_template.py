"""The chat template of a model that reasons, in the form of Qwen3.5's."""

from typing import Any

import jinja2
import pytest
import tiny_tokenizer


def render(messages: list[dict[str, Any]], **options: Any) -> str:
    template = jinja2.Environment().from_string(tiny_tokenizer.THINKING_CHAT_TEMPLATE)
    text: str = template.render(messages=messages, **options)
    return text


def asked(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}


QUESTION = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Why?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.mark.parametrize(
    ("options", "opened"),
    [({}, "<think>\n"), ({"enable_thinking": False}, "<think>\n\n</think>\n\n")],
)
def test_prompts_open_a_reasoning(options: dict[str, bool], opened: str) -> None:
    assert render([asked("Why?")], add_generation_prompt=True, **options) == QUESTION + opened


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        ("So.", "<think>\n\n</think>\n\nSo."),
        ("<think>\nred\n</think>\n\nSo.", "<think>\nred\n</think>\n\nSo."),
        ("red\n</think>\n\nSo.", "<think>\nred\n</think>\n\nSo."),
    ],
)
def test_the_last_answer_has_its_reasoning(answer: str, written: str) -> None:
    messages = [asked("Why?"), {"role": "assistant", "content": answer}]
    assert render(messages) == f"{QUESTION}{written}<|im_end|>\n"


def test_earlier_answers_have_none() -> None:
    turn = [asked("Why?"), {"role": "assistant", "content": "red\n</think>\n\nSo."}]
    text = render([*turn, *turn])
    assert text.count("red") == 1 and text.count("So.") == 2
    assert text.startswith(f"{QUESTION}So.<|im_end|>\n")
