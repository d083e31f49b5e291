import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlpress.calib.samples.records import ExactFloat, plain_text, read_record
from vlpress.calib.samples.sample import Sample, image_digest
from vlpress.common.text_files import read_object

USER = {"role": "user", "content": "x"}
ANSWERED = {"role": "assistant", "content": "Red."}


def png(colour: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(stream, "PNG")
    return stream.getvalue()


RED, BLUE = image_digest(png()), image_digest(png("blue"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "red.png").write_bytes(png())
    (tmp_path / "blue.png").write_bytes(png("blue"))
    (tmp_path / "v.mp4").write_bytes(b"not decoded")
    return tmp_path


def read(folder: Path, record: dict[str, Any]) -> Sample:
    return read_record(record, folder, "name")


def parts(sample: Sample) -> list[Any]:
    """Describe each part of all turns: a text, the digest of an image, or a file name."""
    described: list[Any] = []
    for message in sample.messages:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                described.append(part["text"])
            elif part["type"] == "image":
                described.append(image_digest(part["image"]))
            elif isinstance(part["video"], list):
                described.append([image_digest(frame) for frame in part["video"]])
            else:
                described.append(Path(part["video"]).name)
    return described


def chat(*content: Any, **columns: Any) -> dict[str, Any]:
    user_content = content[0] if isinstance(content[0], str) else list(content)
    return {"messages": [{"role": "user", "content": user_content}, ANSWERED], **columns}


IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "Colour?"}


@pytest.mark.parametrize(
    "record",
    [
        {"image": "red.png", "question": "Colour?", "answer": "Red."},
        {"image": ["red.png"], "question": "Colour?", "answer": "Red."},
        {"image": "red.png", "images": None, "question": "Colour?", "answer": "Red."},
        {"image": "red.png", "images": [], "question": "Colour?", "answer": "Red."},
        {"image": None, "images": ["red.png"], "question": "Colour?", "answer": "Red."},
        {"image": "red.png", "images": ["red.png"], "question": "Colour?", "answer": "Red."},
        {"image": "red.png", "question": "<image>Colour?", "answer": "Red.", "messages": None},
        {"image": "red.png", "question": "Colour?", "answer": "Red.", "messages": []},
        {"image": "red.png", "question": "<image 1>Colour?", "answer": "Red."},
        {"image": {"bytes": png(), "path": None}, "question": "Colour?", "answer": "Red."},
        {"image": base64.b64encode(png()).decode(), "question": "Colour?", "answer": "Red."},
        chat({**IMAGE, "image": "red.png"}, TEXT),
        chat({**IMAGE, "image": "red.png", "text": None}, {**TEXT, "image": None}),
        chat("<image>Colour?", images=["red.png"]),
        chat("<image>Colour?", image="red.png"),
        chat("<image>Colour?", image="red.png", images=None),
        chat(IMAGE, TEXT, images=["red.png"]),
        chat({**IMAGE, "image": "red.png"}, TEXT, images=None, videos=[], image=[]),
        {
            "conversations": [
                {"from": "human", "value": "<image>Colour?"},
                {"from": "gpt", "value": "Red."},
            ],
            "image": "red.png",
        },
    ],
)
def test_no_image_is_lost(folder: Path, record: dict[str, Any]) -> None:
    sample = read(folder, record)
    assert parts(sample) == [RED, "Colour?"]
    assert sample.answer == "Red."


def test_marks_place_images(folder: Path) -> None:
    both = {"images": ["red.png", "blue.png"], "answer": "x"}
    assert parts(read(folder, {**both, "question": "Same?"})) == [RED, BLUE, "Same?"]
    mixed = read(folder, {**both, "question": "Is <image> like <image>?"})
    assert parts(mixed) == ["Is ", RED, " like ", BLUE, "?"]
    numbered = read(folder, {**both, "question": "Is <image 2> like <image 1>?"})
    assert parts(numbered) == ["Is ", BLUE, " like ", RED, "?"]


def test_videos(folder: Path) -> None:
    question = {"question": "What?", "answer": "x"}
    assert parts(read(folder, {**question, "video": "v.mp4"})) == ["v.mp4", "What?"]
    assert parts(read(folder, {**question, "videos": ["v.mp4", "v.mp4"]}))[:2] == ["v.mp4"] * 2
    frames = ["red.png", "blue.png"]
    assert parts(read(folder, {**question, "video": frames})) == [[RED, BLUE], "What?"]
    assert parts(read(folder, {**question, "videos": [frames]})) == [[RED, BLUE], "What?"]
    assert parts(read(folder, chat("<video>What?", videos=["v.mp4"]))) == ["v.mp4", "What?"]
    part = {"type": "video", "video": "v.mp4", "fps": 1.0, "max_pixels": 3136}
    content = read(folder, chat(part, TEXT)).messages[0]["content"]
    assert content[0] == {**part, "video": folder / "v.mp4"}
    with pytest.raises(ValueError, match="codec"):
        read(folder, chat({"type": "video", "video": "v.mp4", "codec": "h264"}, TEXT))


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ('"Red."', "Red."),
        ("12", "12"),
        ("-0", "0"),
        ("1.50", "1.50"),
        ("1e3", "1e3"),
        ('["12", "twelve"]', "12"),
        ("[1.50, 2]", "1.50"),
        ('""', ""),
    ],
)
def test_answers_are_text_as_written(folder: Path, written: str, answer: str) -> None:
    record = read_object(f'{{"question": "x", "answer": {written}}}', parse_float=ExactFloat)
    assert read(folder, record).answer == answer


@pytest.mark.parametrize("written", ["null", "true", "[]", "{}", "[null]", "[[1]]", "1e999"])
def test_other_answers_are_refused(folder: Path, written: str) -> None:
    record = read_object(f'{{"question": "x", "answer": {written}}}', parse_float=ExactFloat)
    with pytest.raises(ValueError, match="answer"):
        read(folder, record)


def test_the_last_turn_of_the_assistant_is_the_answer(folder: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}]},
    ]
    last = {"role": "assistant", "content": [{"type": "text", "text": "d"}]}
    whole = read(folder, {"messages": [*turns, last]})
    assert (whole.messages, whole.answer) == (turns, "d")
    assert read(folder, {"messages": turns, "answer": 7}).answer == "7"
    assert read(folder, {"messages": turns, "answer": ""}).answer == ""
    assert read(folder, {"messages": [*turns, last], "answer": "d"}) == whole


def test_a_column_holds_the_system_prompt(folder: Path) -> None:
    first = {"role": "system", "content": "Be brief."}
    for record in ({"messages": [USER, ANSWERED]}, {"question": "x", "answer": "y"}):
        plain, prompted = read(folder, record), read(folder, {**record, "system": "Be brief."})
        assert prompted.messages == [first, *plain.messages]
        assert read(folder, {**record, "system": None}) == plain
        assert read(folder, {**record, "system": ""}) == plain


def test_a_text_has_no_answer(folder: Path) -> None:
    assert read(folder, {"text": "A cat.", "answer": None}).answer == ""
    assert parts(read(folder, {"text": "A cat.", "image": "red.png"})) == [RED, "A cat."]
    assert plain_text("A <image> tag.", "t").messages[0]["content"][0]["text"] == "A <image> tag."


def test_ids_and_other_keys(folder: Path) -> None:
    record = {"question": "x", "answer": "y", "source": "vqa", "score": 0.5, "images_n": 0}
    assert read(folder, record).id == "name"
    assert read(folder, {**record, "id": None}).id == "name"
    assert read(folder, {**record, "id": 0}).id == "0"


@pytest.mark.parametrize(
    ("record", "names"),
    [
        ({"prompt": "x"}, "prompt"),
        ({}, "none"),
        ({"question": 3, "answer": "y"}, "question"),
        ({"question": "x"}, "answer"),
        ({"question": "x", "answer": " "}, "blank"),
        ({"question": "x", "answer": "y", "system": 3}, "3"),
        (
            {"messages": [{"role": "system", "content": "s"}, USER, ANSWERED], "system": "t"},
            "system",
        ),
        ({"image": "no.png", "question": "x", "answer": "y"}, r"no\.png"),
        ({"image": "red.png", "images": ["blue.png"], "question": "x", "answer": "y"}, "images"),
        ({"question": "<image>x", "answer": "y"}, "<image>"),
        ({"image": "red.png", "question": "<image><image>", "answer": "y"}, "2 places for 1"),
        ({"image": "red.png", "question": "<image 2>", "answer": "y"}, "<image 1>"),
        ({"image": "red.png", "question": "<image 1><image>", "answer": "y"}, "marks"),
        ({"question": "<|image_pad|>", "answer": "y"}, "image_pad"),
        ({"question": "x", "answer": "<|image_pad|>"}, "image_pad"),
        (chat("<image>Colour?", images=["no.png"]), r"no\.png"),
        (chat("<image>Colour?"), "<image>"),
        (chat("<video>Colour?", images=[]), "<video>"),
        (chat("<image><video>Colour?", images=["red.png"]), "<video>"),
        (chat({**IMAGE, "image": "red.png"}, {**TEXT, "text": "<image>Colour?"}), "<image>"),
        (chat("Colour?", images=["red.png"]), "0 places for 1"),
        (chat("<image><image>Colour?", images=["red.png"]), "2 places for 1"),
        ({"messages": [USER]}, "answer"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "content"),
        ({"messages": [USER, ANSWERED], "answer": "Blue."}, "answer"),
        ({"messages": [ANSWERED]}, "user"),
        ({"messages": []}, "messages"),
        ({"messages": [USER, ANSWERED], "conversations": [USER, ANSWERED]}, "conversations"),
        ({"messages": [USER, {**ANSWERED, "tool_calls": [{"name": "f"}]}]}, "tools"),
        (
            {"messages": [USER, {**ANSWERED, "content": [{**IMAGE, "image": "red.png"}]}]},
            "answer holds an image",
        ),
        ({"text": 3}, "text"),
        ({"text": "<|vision_start|>"}, "vision_start"),
        ({"question": "x", "answer": "y", "img": "red.png"}, "img"),
    ],
)
def test_unusable_records(folder: Path, record: dict[str, Any], names: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=names) as caught:
        read(folder, json.loads(json.dumps(record)))
    assert "\n" not in str(caught.value)
