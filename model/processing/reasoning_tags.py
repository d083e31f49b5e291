"""Tags around the reasoning that a model writes before its answer, and prompts that open one.

Chat templates of models such as Qwen3-VL Thinking end the prompt of an answer in an open `<think>`.
An answer that is given without a reasoning must not become a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .chat_templates import render_chat

BEGIN, END = "<think>", "</think>"

_ANSWER = "Yes."


def place_answer(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], prompt: str, answer: str
) -> tuple[str, str]:
    r"""Place a given answer after the reasoning if the prompt opens one.

    An answer without a reasoning follows an empty one, `<think>\n\n</think>\n\n` in the form of
    Qwen's hybrid models. An answer that has its own, up to an end tag, continues the open one. The
    prompt is unchanged if it does not end in an open `<think>`.

    Args:
        tokenizer: a transformers tokenizer with the template set.
        messages: the messages of which the template made the prompt.
        prompt: the rendered conversation, which opens the assistant's turn.
        answer: the text of the answer, with or without a reasoning.

    Returns:
        The prompt with an empty reasoning if that is needed, and the text that follows it.
    """
    if not prompt.rstrip().endswith(BEGIN):
        return prompt, answer
    if END in answer:
        opening = prompt[prompt.rindex(BEGIN) :]
        return prompt, answer.removeprefix(opening).removeprefix(BEGIN)
    return prompt + _end_of_reasoning(tokenizer, messages, prompt), answer


def _end_of_reasoning(tokenizer: Any, messages: Sequence[Mapping[str, Any]], prompt: str) -> str:
    """Return the end of an empty reasoning as the template writes it in front of an answer.

    Many templates write no reasoning for a given answer, or fail for one; it is Qwen's form then.
    """
    answered = [*messages, {"role": "assistant", "content": _ANSWER}]
    try:
        text = render_chat(tokenizer, answered, add_generation_prompt=False)
    except ValueError:
        text = ""
    end, answer, _ = text.removeprefix(prompt).partition(_ANSWER)
    if text.startswith(prompt) and answer and end.strip() == END:
        return end
    line = "" if prompt.endswith("\n") else "\n"
    return f"{line}\n{END}\n\n"
