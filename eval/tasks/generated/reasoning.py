"""Recognition of the reasoning that a model writes before its answer, by named rules.

A model that reasons writes its reasoning between `<think>` and `</think>`, and its answer after it.
Many chat templates open the reasoning themselves, so that the model writes the end tag only. A rule
decides which part of a generated text is scored. It is data (`ReasoningRule`); the code is one
function, `split_text`, in which no part of a reasoning ever becomes an answer: where the reasoning
has no end, the answer is empty.

The end is the last `</think>` of a text, as in the code of Qwen3's model cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ....model.processing.reasoning_tags import BEGIN, END


@dataclass(frozen=True)
class ReasoningRule:
    """One way to separate reasoning from answer."""

    name: str
    has_tags: bool
    """The text up to the last end tag is reasoning, and all of it after a tag that opens it."""
    is_open: bool
    """The reasoning has begun in the prompt: a text without an end tag has no answer."""


RULES: Mapping[str, ReasoningRule] = {
    rule.name: rule
    for rule in (
        ReasoningRule("none", has_tags=False, is_open=False),
        ReasoningRule("think-tags", has_tags=True, is_open=False),
        ReasoningRule("think-opened", has_tags=True, is_open=True),
    )
}
NONE, TAGS, OPENED = RULES


@dataclass(frozen=True)
class SplitText:
    """A generated text in two parts; `reasoning + answer` is the text."""

    reasoning: str
    """With its tags and the white space around them; empty: there is none."""
    answer: str
    """The part that is scored."""
    is_unfinished: bool
    """Whether the reasoning has no end; the answer is then empty."""


def find_rule(name: str) -> ReasoningRule:
    """Look up a rule by name.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in RULES:
        raise ValueError(f"unknown reasoning rule {name!r}; choose one of {', '.join(RULES)}")
    return RULES[name]


def split_text(text: str, rule: str) -> SplitText:
    r"""Separate the reasoning of a generated text from its answer.

    Args:
        text: all that the model wrote, without stop token.
        rule: a name in `RULES`.

    Raises:
        ValueError: the rule is unknown.

    Example:
        >>> split_text("Two legs.</think>\n\nA bird", "think-opened").answer
        'A bird'
    """
    rules = find_rule(rule)
    if not rules.has_tags:
        return SplitText("", text, is_unfinished=False)
    _, end, after = text.rpartition(END)
    if end:
        answer = after.lstrip()
        return SplitText(text[: len(text) - len(answer)], answer, is_unfinished=False)
    if rules.is_open or text.lstrip().startswith(BEGIN):
        return SplitText(text, "", is_unfinished=True)
    return SplitText("", text, is_unfinished=False)


def reasoning_content(reasoning: str) -> str:
    """Return a reasoning without its tags and the white space around them."""
    text = reasoning.rstrip().removesuffix(END).strip()
    return text.removeprefix(BEGIN).lstrip()
