from __future__ import annotations

import re
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.tasks.matching.choices import find_letter, fold, read_options


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (None, {}),
        (["left", "right"], {"A": "left", "B": "right"}),
        ({"B": "right", "A": "left"}, {"A": "left", "B": "right"}),
        ({"a": "left", "b": "right"}, {"A": "left", "B": "right"}),
        ([3, 4.5], {"A": 3, "B": 4.5}),
        # a missing option, as VLMEvalKit's tables have them
        (["left", None, "right"], {"A": "left", "C": "right"}),
        ({"A": "left", "B": "right", "C": None, "D": ""}, {"A": "left", "B": "right"}),
        # options that carry their own letters
        (["A. left", "B. right"], {"A": "left", "B": "right"}),
        (["A) left", "B) right"], {"A": "left", "B": "right"}),
        (["(A) left", "(B) right"], {"A": "left", "B": "right"}),
        (["(a)left", "(b)right"], {"A": "left", "B": "right"}),
        (["A: left", "b: right"], {"A": "left", "B": "right"}),
        (["A\u3001left", "B\uff0eright"], {"A": "left", "B": "right"}),
        ({"A": "A. left", "B": "B. right"}, {"A": "left", "B": "right"}),
        # options that do not
        (["A. left", "right"], {"A": "A. left", "B": "right"}),
        (["B. left", "A. right"], {"A": "B. left", "B": "A. right"}),
        (["A.M.", "B.C."], {"A": "A.M.", "B": "B.C."}),
        (["A. left"], {"A": "A. left"}),
        (list(range(26)), dict(zip(string.ascii_uppercase, range(26), strict=True))),
    ],
)
def test_options(value: Any, options: dict[str, Any]) -> None:
    assert read_options(value) == options


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("A. left\nB. right", "list of texts"),
        (True, "list of texts"),
        (list(range(27)), "27; at most 26"),
        ({"1": "left", "2": "right"}, "'1' is no letter"),
        ({"AB": "left"}, "'AB' is no letter"),
        ({"": "left"}, "'' is no letter"),
        ({"a": "left", "A": "right"}, "'A' is no letter of its own"),
        (["left", True], "B is a bool"),
        (["left", ["right"]], "B is a list"),
        ([], "no text"),
        ({}, "no text"),
        ([None, " "], "no text"),
    ],
)
def test_unusable_options(value: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        read_options(value)


@pytest.mark.parametrize(
    ("answer", "choices", "letter"),
    [
        ("B", ["left", "right"], "B"),
        ("b", ["left", "right"], "B"),
        ("(b)", ["left", "right"], "B"),
        ("B.", ["left", "right"], "B"),
        ("right", ["left", "right"], "B"),
        (" Right. ", ["left", "right"], "B"),
        ("B. right", ["left", "right"], "B"),
        ("B. right", ["A. left", "B. right"], "B"),
        ("B", ["B", "A"], "B"),  # a capital letter is always a letter
        ("b", ["b", "b2"], None),  # the text of A or the letter B
        ("same", ["same", "same", "other"], None),
        (4, [3, 4], "B"),
        (4.0, [3, 4], "B"),
        ("4", [3, 4], "B"),
        (1, ["left", "right"], None),  # a position, but counted from 0 or from 1?
        (1, ["1", "2"], None),
        (0, [3, 4], None),
        ("C", ["left", "right"], None),
        ("AB", ["left", "right"], None),
        ("C. left", ["left", "right"], None),
        ("B. left", ["left", "right"], None),
        ("B", ["left", None], None),
    ],
)
def test_answers(answer: Any, choices: list[Any], letter: str | None) -> None:
    options = read_options(choices)
    if letter is None:
        with pytest.raises(ValueError, match=re.escape(repr(answer))):
            find_letter(answer, options)
    else:
        assert find_letter(answer, options) == letter


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


@given(st.lists(TEXT.filter(lambda t: t.strip()), min_size=1, max_size=26), st.data())
def test_a_letter_is_read_as_itself_and_a_text_as_its_own_option(
    texts: list[str], data: st.DataObject
) -> None:
    options = read_options(texts)
    letter = data.draw(st.sampled_from(sorted(options)))
    assert find_letter(letter, options) == letter
    try:
        found = find_letter(options[letter], options)
    except ValueError:  # two options are alike, or a text looks like a letter
        return
    text = str(options[letter])
    assert found == letter or text in options or fold(str(options[found])) == fold(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | TEXT,
        lambda x: st.lists(x, max_size=4) | st.dictionaries(TEXT, x, max_size=4),
        max_leaves=6,
    )
)
def test_any_choices_are_read_or_an_error_of_one_line(value: Any) -> None:
    try:
        options = read_options(value)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert (value is None) == (options == {})
        assert set(options) <= set(string.ascii_uppercase)
