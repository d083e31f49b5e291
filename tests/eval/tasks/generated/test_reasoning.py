from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.tasks.generated.reasoning import (
    NONE,
    OPENED,
    RULES,
    TAGS,
    SplitText,
    find_rule,
    reasoning_content,
    split_text,
)

PIECES = st.lists(st.sampled_from(["<think>", "</think>", "\n", " ", "B", "a dog."]), max_size=8)


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("Two legs.\n</think>\n\nB", "Two legs.\n</think>\n\n"),
        ("<think>\nTwo legs.\n</think>\n\nB", "<think>\nTwo legs.\n</think>\n\n"),
        ("</think>B", "</think>"),
        # A reasoning about tags: its last end tag counts.
        ("I write </think> first.</think> B", "I write </think> first.</think> "),
    ],
)
@pytest.mark.parametrize("rule", [TAGS, OPENED])
def test_answer_begins_behind_the_last_end_tag(text: str, reasoning: str, rule: str) -> None:
    assert split_text(text, rule) == SplitText(reasoning, "B", is_unfinished=False)


def test_without_an_end_there_is_no_answer_if_a_reasoning_has_begun() -> None:
    text = "It could be B"
    assert split_text(text, OPENED) == SplitText(text, "", is_unfinished=True)
    assert split_text("", OPENED) == SplitText("", "", is_unfinished=True)
    begun = f"\n<think>{text}"
    assert split_text(begun, TAGS) == SplitText(begun, "", is_unfinished=True)
    # Nothing says that a reasoning has begun: a model that answers at once.
    assert split_text(text, TAGS) == SplitText("", text, is_unfinished=False)


def test_rule_none_takes_all_text_for_the_answer() -> None:
    text = "<think>Two legs.</think> B"
    assert split_text(text, NONE) == SplitText("", text, is_unfinished=False)


@given(pieces=PIECES, rule=st.sampled_from(list(RULES)))
def test_parts_make_the_text_and_no_answer_has_an_end_tag(pieces: list[str], rule: str) -> None:
    text = "".join(pieces)
    split = split_text(text, rule)
    assert split.reasoning + split.answer == text
    assert not (split.is_unfinished and split.answer)
    if rule != NONE:
        assert "</think>" not in split.answer
    if rule == OPENED:
        assert split.is_unfinished == ("</think>" not in text)


@given(before=st.text("ab \n"), after=st.text("ab \n"))
def test_content_is_the_text_between_the_tags(before: str, after: str) -> None:
    split = split_text(f"<think>{before}</think>{after}", TAGS)
    assert reasoning_content(split.reasoning) == before.strip()


def test_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'think'.*none, think-tags, think-opened"):
        find_rule("think")
