from __future__ import annotations

import base64
import codecs
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from eval_files import base64_png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.benchmarks import custom
from vlpress.eval.tasks.files.jsonl import read_questions
from vlpress.eval.tasks.files.rows import Row
from vlpress.eval.tasks.prompts import DEFAULT

PNG = base64.b64decode(base64_png(1))
ASK = {"question": "What is this?", "answer": "a cat"}


def write(path: Path, *records: Any) -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def read(tmp_path: Path, record: Any) -> tuple[Row, str]:
    """The row of a file of one line, and what is wrong with it."""
    table = read_questions(write(tmp_path / "a.jsonl", record))
    [row] = table.rows
    return row, table.faults.get(row.index, "")


def small_without_slash() -> str:
    """Base64 short enough for a path, with a part that is too long for a file name."""
    noise = random.Random(3)
    while True:
        image = Image.frombytes("RGB", (14, 12), noise.randbytes(14 * 12 * 3))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        text = base64.b64encode(buffer.getvalue()).decode()
        if len(text) <= 1024 and len(text.split("/")[0]) > 255:
            return text


def forms(folder: Path) -> dict[str, Any]:
    (folder / "a b.png").write_bytes(PNG)
    plain = base64.b64encode(PNG).decode()
    return {
        "path": "a b.png",
        "absolute path": str(folder / "a b.png"),
        "file URL": (folder / "a b.png").as_uri(),
        "base64": plain,
        "wrapped": base64.encodebytes(PNG).decode(),
        "unpadded": plain.rstrip("="),
        "for URLs": base64.urlsafe_b64encode(PNG).decode(),
        "data URL": f"data:image/png;base64,{plain}",
        "object of a path": {"bytes": None, "path": "a b.png"},
        "object of base64": {"base64": plain},
        "object of a URL": {"url": f"data:image/png;base64,{plain}"},
    }


FORMS = (
    "path",
    "absolute path",
    "file URL",
    "base64",
    "wrapped",
    "unpadded",
    "for URLs",
    "data URL",
    "object of a path",
    "object of base64",
    "object of a URL",
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", ["image", "images"])
def test_forms_of_an_image(tmp_path: Path, form: str, key: str) -> None:
    row, fault = read(tmp_path, {**ASK, key: forms(tmp_path)[form]})
    assert (fault, [image.read() for image in row.images]) == ("", [PNG])


def test_small_base64_is_no_file_name(tmp_path: Path) -> None:
    text = small_without_slash()
    row, fault = read(tmp_path, {**ASK, "image": text})
    assert (fault, [image.read() for image in row.images]) == ("", [base64.b64decode(text)])


@pytest.mark.parametrize("empty", [None, []])
def test_an_empty_key_beside_the_other_one(tmp_path: Path, empty: Any) -> None:
    for record in (
        {"image": base64_png(1), "images": empty},
        {"images": [base64_png(1)], "image": empty},
    ):
        row, fault = read(tmp_path, {**ASK, **record})
        assert (fault, len(row.images)) == ("", 1)
    row, fault = read(tmp_path, {**ASK, "image": empty, "images": empty})
    assert (fault, row.images) == ("", ())


def test_both_keys_may_not_differ(tmp_path: Path) -> None:
    row, fault = read(tmp_path, {**ASK, "image": base64_png(1), "images": [base64_png(1)]})
    assert (fault, len(row.images)) == ("", 1)
    _, fault = read(tmp_path, {**ASK, "image": base64_png(1), "images": [base64_png(2)]})
    assert "image and images" in fault


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("", "''"),
        ("none.png", "none.png"),
        ("https://example.org/a.png", "https://example.org/a.png"),
        ("file:///none/a.png", "/none/a.png"),
        ("data:image/png;base64,@@@", "base64"),
        ("x" * 300 + ".png", "xxx"),
        ("a\0.png", "a"),
        (3, "3"),
        (True, "True"),
        ([None], "None"),
        (["a.png", None], "a.png"),
        ([[]], "[]"),
        ({}, "allowed"),
        ({"width": 3}, "width"),
    ],
)
def test_images_that_cannot_be_read_are_quoted(tmp_path: Path, value: Any, named: str) -> None:
    row, fault = read(tmp_path, {**ASK, "image": value})
    assert row.images == () and named in fault and "\n" not in fault


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert read(tmp_path, {**ASK, "image": "images"})[1]


@pytest.mark.parametrize(
    ("question", "count", "shown"),
    [
        ("What?", 2, [1, 2, "What?"]),
        ("<image 1> What?", 1, [1, " What?"]),
        ("<image>\nWhat?", 1, [1, "\nWhat?"]),
        ("<image> or <image>?", 2, [1, " or ", 2, "?"]),
        ("<image 2> or <image 1>?", 2, [2, " or ", 1, "?"]),
        ("<image 1> and <image 1>?", 1, [1, " and ", 1, "?"]),
        ("last <image 10> " + "".join(f"<image {n}>" for n in range(1, 10)), 10, None),
        ("<image 2> What?", 1, "<image 2> is for none of its 1 images"),
        ("<image 0> What?", 1, "<image 0> is for none"),
        ("<image 1> What?", 0, "<image 1> is for none of its 0 images"),
        ("<image> What?", 0, "1 marks <image> for 0 images"),
        ("<image> What?", 2, "1 marks <image> for 2 images"),
        ("<image><image> What?", 1, "2 marks <image> for 1 images"),
        ("<image> or <image 1>?", 1, "one kind"),
        ("<image 1> What?", 2, "image 2 is never shown"),
        ("<Image> or <image/>?", 0, ["<Image> or <image/>?"]),
    ],
)
def test_marks_place_the_images(tmp_path: Path, question: str, count: int, shown: Any) -> None:
    record = {"question": question, "answer": "x", "images": [base64_png(n) for n in range(count)]}
    row, fault = read(tmp_path, record)
    assert fault == ""
    fault = custom.check(read_questions(tmp_path / "a.jsonl"), published=False).faults.get(
        row.index, ""
    )
    if isinstance(shown, str):
        assert shown in fault
        return
    assert fault == ""
    parts = custom.content(row, DEFAULT)
    found = [p["text"] if p["type"] == "text" else row.images.index(p["image"]) + 1 for p in parts]
    assert found == (shown or ["last ", 10, " ", *range(1, 10)])


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("12", ["12"]),
        (12, ["12"]),
        (12.0, ["12.0", "12"]),
        (12.5, ["12.5"]),
        (["a", 2], ["a", "2"]),
        (None, None),
        ("", None),
        (" ", None),
        (True, None),
        ([], None),
        (["a", None], None),
        ({"text": "a"}, None),
        (float("nan"), None),
        (float("inf"), None),
    ],
)
def test_answers_without_choices(tmp_path: Path, answer: Any, accepted: list[str] | None) -> None:
    row, fault = read(tmp_path, {"question": "q", "answer": answer})
    assert (fault == "") == (accepted is not None)
    if accepted is not None:
        assert json.loads(row["answers"]) == accepted


def test_a_number_too_large_for_json_readers_is_no_answer(tmp_path: Path) -> None:
    assert read(tmp_path, '{"question": "q", "answer": 1e400}')[1]


@pytest.mark.parametrize(
    ("record", "letters"),
    [
        ({"choices": ["A. left", "B. right"], "answer": "B"}, ["B"]),
        ({"choices": ["left", "right"], "answer": "right"}, ["B"]),
        ({"choices": ["left", "right"], "answer": "b"}, ["B"]),
        ({"choices": ["left", "right"], "answer": ["a", "left"]}, ["A"]),
        ({"choices": ["left", "right"], "answer": ["A", "right"]}, ["A", "B"]),
        ({"choices": {"a": "left", "b": "right"}, "answer": "a"}, ["A"]),
        ({"choices": ["left", None], "answer": "A"}, ["A"]),
        ({"choices": ["left", None], "answer": "B"}, None),
        ({"choices": [str(n) for n in range(27)], "answer": "A"}, None),
        ({"answer": "A", "metric": "choice"}, None),
    ],
)
def test_choices_and_their_answer(
    tmp_path: Path, record: dict[str, Any], letters: list[str] | None
) -> None:
    row, fault = read(tmp_path, {"question": "q", **record})
    assert (fault == "") == (letters is not None)
    if letters is not None:
        assert (json.loads(row["answers"]), row["metric"]) == (letters, "choice")
        [part] = custom.content(row, DEFAULT)
        assert "\nA. left\n" in part["text"]


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({**ASK, "video": "v.mp4"}, "'video'"),
        ({**ASK, "videos": ["v.mp4"]}, "'videos'"),
        ({**ASK, "source": "web"}, "'source'"),
        ({**ASK, "metric": ""}, "''"),
        ({**ASK, "id": True}, "id"),
        ({**ASK, "id": ["a"]}, "id"),
        ({**ASK, "category": {"a": 1}}, "category"),
        ({**ASK, "group": True}, "group"),
        ({**ASK, "category": "\ud83d"}, "category"),
        ('{"question": "q", "question": "p", "answer": "x"}', "duplicate key 'question'"),
        ('{"question": "q", "answer": "A", "choices": {"A": "x", "A": "y"}}', "duplicate key 'A'"),
        ('{"question": "q", "answer": NaN}', "NaN"),
        ('{"question": "q", "answer": "x", "category": Infinity}', "Infinity"),
        ("[" * 100_000, "nested"),
    ],
)
def test_lines_that_cannot_be_used(tmp_path: Path, record: Any, named: str) -> None:
    line = record if isinstance(record, str) else json.dumps(record)
    row, fault = read(tmp_path, line)
    assert named in fault and "\n" not in fault and row.line == 1


def test_faults_name_the_line_and_not_only_the_id(tmp_path: Path) -> None:
    sound = [{**ASK, "id": f"q{n}", "image": base64_png(n)} for n in range(60)]
    for number, change in ((7, {"image": "none.png"}), (8, {"question": "<image 3>?"})):
        sound[number] |= change
    lines: list[Any] = ["", *sound]  # an empty line counts
    task = open_task(f"x={write(tmp_path / 'a.jsonl', *lines)}")
    faults = {f["id"]: f["fault"] for f in task.fields if "fault" in f}
    assert {key: fault.partition(":")[0] for key, fault in faults.items()} == {
        "q7": "line 9",
        "q8": "line 10",
    }


def test_ids(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", ASK, {**ASK, "id": None}, {**ASK, "id": 7}, {**ASK, "id": 2.5}
    )
    assert [row.index for row in read_questions(path).rows] == ["1", "2", "7", "2.5"]
    with pytest.raises(ValueError, match=r"a\.jsonl:2 repeats id '2'"):  # of the line before
        read_questions(write(tmp_path / "a.jsonl", {**ASK, "id": 2}, ASK))


def test_byte_order_mark_and_line_ends_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = json.dumps(ASK) + "\r\n" + json.dumps(ASK) + "\r\n"
    path.write_bytes(codecs.BOM_UTF8 + lines.encode())
    table = read_questions(path)
    assert (len(table.rows), table.faults) == (2, {})


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_other_unicode_encodings_are_named_with_the_file(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(json.dumps(ASK).encode(encoding))
    with pytest.raises(ValueError, match=r"a\.jsonl .*UTF-16"):
        read_questions(tmp_path / "a.jsonl")


def test_bytes_of_another_encoding_are_named_with_their_line(tmp_path: Path) -> None:
    line = json.dumps({**ASK, "answer": "caf\u00e9"}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes((json.dumps(ASK) + "\n" + line).encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.jsonl:2 .*UTF-8"):
        read_questions(tmp_path / "a.jsonl")


def test_equal_images_of_one_row_are_all_shown(tmp_path: Path) -> None:
    record = {**ASK, "images": [base64_png(1), base64_png(1)]}
    item = open_task(str(write(tmp_path / "a.jsonl", record))).items[0]
    assert len(list(item.images)) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
CELL = JSON | st.sampled_from(["data:", "data:,", "file:", "file://", "file://[", "..", "/", "\0"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["image", "images", "id", "question", "choices", "answer", "category"]), CELL
)
def test_any_value_gives_a_row_or_a_fault_of_its_line(tmp_path: Path, key: str, value: Any) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({**ASK, key: value}))
    table = read_questions(path)
    [row] = table.rows
    assert row.line == 1 and set(table.faults) <= {row.index}
    for fault in table.faults.values():
        assert fault and len(fault.splitlines()) == 1
    try:
        task = open_task(f"x={path}")
    except ValueError as error:
        assert "a.jsonl: 1 of 1 rows are broken (" in str(error) and ": line 1: " in str(error)
    else:
        assert len(task.items) == task.score({task.items[0].id: "x"}).n_rows == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: base64.b64encode(b).decode()))
def test_any_text_as_an_image_is_read_or_quoted(tmp_path: Path, text: str) -> None:
    row, fault = read(tmp_path, json.dumps({**ASK, "image": text}))
    assert bool(fault) != bool(row.images)
    assert len(fault.splitlines()) <= 1
