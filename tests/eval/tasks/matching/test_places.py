from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.tasks.matching.places import read_box, read_click, read_point

BOX = (10.0, 20.0, 30.5, 40.0)


@pytest.mark.parametrize(
    "text",
    [
        "[10, 20, 30.5, 40]",
        "(10,20),(30.5,40)",
        "<|box_start|>(10,20),(30.5,40)<|box_end|>",
        "<box>[[10, 20, 30.5, 40]]</box>",
        "[[10, 20], [30.5, 40]]",
        "10 20 30.5 40",
        "x1=10, y1=20, x2=30.5, y2=40",
        '{"bbox_2d": ["10", "20", "30.5", "40"]}',
        '```json\n[\n\t{"bbox_2d": [10, 20, 30.5, 40], "label": "the 2 cats (1, 2, 3, 4)"}\n]\n```',
        '{"label": "seats [1, 2, 3, 4]", "bbox_2d": [10, 20, 30.5, 40]}',
        '[{"bbox_2d": [10, 20, 30.5, 40], "lab',
        "The first is [10, 20, 30.5, 40], the second [1, 2, 3, 4].",
    ],
)
def test_forms_of_a_box(text: str) -> None:
    assert read_box(text) == BOX
    assert read_point(text) == ((10 + 30.5) / 2, 30.0)


@pytest.mark.parametrize(
    "text",
    [
        "(10, 20)",
        "[10, 20]",
        "10, 20",
        '{"point_2d": [10, 20], "label": "ok"}',
        '{"label": "cell (3, 4)", "point_2d": [10, 20]}',
        '<points x1="10" y1="20" alt="ok">ok</points>',
        "<point>10 20</point>",
        "pyautogui.click(x=10, y=20)",
        '{"x": 10, "y": 20}',
    ],
)
def test_forms_of_a_point(text: str) -> None:
    assert read_point(text) == (10.0, 20.0)
    assert read_box(text) is None


@pytest.mark.parametrize("text", ["", "no", "1 2 3", "[1, 2, 3]", "{}", "[a, b, c, d]", "(1, )"])
def test_no_place(text: str) -> None:
    assert (read_box(text), read_point(text)) == (None, None)


def test_a_click_needs_both_names() -> None:
    assert read_click("x=1, y=2") == (1.0, 2.0)
    assert (read_click("(1, 2)"), read_click("x=1.2.3, y=4")) == (None, None)


@given(st.tuples(*[st.integers(-2000, 2000)] * 4), st.text("abc [](),\n", max_size=30))
def test_a_json_box_is_read_after_any_text(box: tuple[int, ...], before: str) -> None:
    assert read_box(before + json.dumps({"bbox_2d": list(box)})) == box


def test_reading_takes_linear_time() -> None:
    fillers = ("[", "1 ", " ", "[1, 2,", "x1=1 ", "x1=1" + " " * 20, '"bbox": ')
    begin = time.process_time()
    for filler in fillers:
        assert read_box(filler * 20_000 + "a") is None
        read_point(filler * 20_000 + "a")
        read_point("x1=1" + filler * 20_000 + "a")
    assert time.process_time() - begin < 5  # 0.1 s if it is linear, minutes if it is not
