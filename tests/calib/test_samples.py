import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlpress.calib.samples import (
    Sample,
    fingerprint,
    image_digest,
    image_digests,
    load_samples,
)


def png(colour: str = "red", size: tuple[int, int] = (8, 6)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def write_jsonl(tmp_path: Path, *records: Any) -> Path:
    (tmp_path / "red.png").write_bytes(png())
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return path


def ask(index: int) -> dict[str, str]:
    return {"question": f"What is {index}?", "answer": str(index)}


def test_three_ways_to_store_a_picture(tmp_path: Path) -> None:
    encoded = base64.b64encode(png()).decode()
    path = write_jsonl(
        tmp_path,
        {"image": "red.png", "question": "Which colour?", "answer": "Red."},
        {"image": encoded, "question": "Which colour?", "answer": "Red."},
        {"image": f"data:image/png;base64,{encoded}", "question": "Which?", "answer": "Red."},
    )
    samples = load_samples(path, n=3, seed=0)
    assert [sample.answer for sample in samples] == ["Red."] * 3
    content = samples[0].messages[0]["content"]
    assert [part["type"] for part in content] == ["image", "text"]
    assert image_digests(samples) == {image_digest(png())}


def test_several_pictures_and_ids(tmp_path: Path) -> None:
    record = {"images": ["red.png", "red.png"], "question": "Same?", "answer": "Yes", "id": 7}
    sample = load_samples(write_jsonl(tmp_path, record), n=1, seed=0)[0]
    assert [part["type"] for part in sample.messages[0]["content"]] == ["image", "image", "text"]
    assert sample.id == "7"


def test_messages_end_with_the_answer(tmp_path: Path) -> None:
    user = {
        "role": "user",
        "content": [{"type": "image", "image": "red.png"}, {"type": "text", "text": "Colour?"}],
    }
    path = write_jsonl(
        tmp_path,
        {"messages": [user, {"role": "assistant", "content": "Red."}]},
        {"messages": [user], "answer": "Rouge."},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                user,
                {"role": "assistant", "content": [{"type": "text", "text": "Rot."}]},
            ]
        },
    )
    samples = load_samples(path, n=9, seed=0)
    assert [sample.answer for sample in samples] == ["Red.", "Rouge.", "Rot."]
    assert [len(sample.messages) for sample in samples] == [1, 1, 2]
    assert samples[0].messages[0]["content"][0]["image"] == str(tmp_path / "red.png")


def test_draw_is_seeded_and_ordered(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, *[ask(i) for i in range(50)])
    first = [int(s.answer) for s in load_samples(path, n=10, seed=3)]
    assert first == sorted(first)
    assert first == [int(s.answer) for s in load_samples(path, n=10, seed=3)]
    assert first != [int(s.answer) for s in load_samples(path, n=10, seed=4)]
    assert len(set(first)) == 10


def test_too_few_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_jsonl(tmp_path, ask(0), ask(1))
    assert len(load_samples(path, n=5, seed=0)) == 2
    assert "has only 2 samples, 5 wanted" in caplog.text


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    record = {"question": "one\u2028two\x85three\x0cfour", "answer": "4"}
    path = tmp_path / "samples.jsonl"
    path.write_bytes(json.dumps(record, ensure_ascii=False).encode() + b"\r\n")
    content = load_samples(path, n=1, seed=0)[0].messages[0]["content"]
    assert content[0]["text"] == record["question"]


def test_text_file_is_cut_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("One line.\nStill the first.\n\n  \nSecond.\n")
    samples = load_samples(path, n=5, seed=0)
    assert [s.messages[0]["content"][0]["text"] for s in samples] == [
        "One line.\nStill the first.",
        "Second.",
    ]
    assert samples[1].answer == ""


def test_saved_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": png("blue"), "path": None}, {"bytes": png(), "path": None}],
            "question": ["Colour?", "Colour?"],
            "answer": ["Blue", "Red"],
        },
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "question": datasets.Value("string"),
                "answer": datasets.Value("string"),
            }
        ),
    )
    data.save_to_disk(str(tmp_path / "saved"))
    samples = load_samples(tmp_path / "saved", n=2, seed=0)
    assert [sample.answer for sample in samples] == ["Blue", "Red"]
    assert image_digests(samples) == {image_digest(png("blue")), image_digest(png())}
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "splits"))
    assert len(load_samples(tmp_path / "splits", n=2, seed=0)) == 2


def test_digest_is_of_pixels_not_of_files(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(stream, "BMP")
    assert image_digest(stream.getvalue()) == image_digest(png())
    assert image_digest(Image.new("RGB", (8, 6), "red")) == image_digest(png())
    # 8 x 6 and 6 x 8 hold the same bytes
    assert image_digest(png(size=(6, 8))) != image_digest(png())


def test_fingerprint_notices_everything() -> None:
    def sample(text: str = "Colour?", colour: str = "red", answer: str = "Red") -> Sample:
        content = [{"type": "image", "image": png(colour)}, {"type": "text", "text": text}]
        return Sample([{"role": "user", "content": content}], answer, "a")

    base = fingerprint([sample()])
    assert base == fingerprint([sample()])
    changed = [
        [sample(text="Which?")],
        [sample(colour="blue")],
        [sample(answer="red")],
        [sample(), sample()],
        [Sample(sample().messages, "Red", "b")],
    ]
    assert len({base, *map(fingerprint, changed)}) == 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "a line must be an object, found list"),
        ('{"prompt": "x"}', "found keys prompt; needed are question and answer"),
        ('{"question": "x"}', "no answer"),
        ('{"question": "x", "answer": 3}', "no answer"),
        ('{"image": "no.png", "question": "x", "answer": "y"}', "neither a file in"),
        (
            '{"image": "aGVsbG8=", "question": "x", "answer": "y"}',
            "image of 5 bytes: cannot be decoded",
        ),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "no user turn"),
        ('{"messages": ["x"]}', "a message must have a role"),
        ('{"messages": [{"role": "user", "content": 3}], "answer": "x"}', "content must be text"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "audio"}]}], "answer": "x"}',
            "must be text, image or video",
        ),
        (
            '{"messages": [{"role": "user", "content": [{"type": "video", "video": "v.mp4"}]}]}',
            "v.mp4 does not exist",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(ask(0))}\n\n{line}\n")
    with pytest.raises(ValueError, match=message) as caught:
        load_samples(path, n=5, seed=0)
    assert "bad.jsonl:3: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl does not exist"):
        load_samples(tmp_path / "gone.jsonl", n=1, seed=0)
    with pytest.raises(FileNotFoundError, match="does not exist; give a"):
        load_samples(tmp_path / "no" / "folder", n=1, seed=0)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no samples"):
        load_samples(tmp_path / "empty.jsonl", n=1, seed=0)
    (tmp_path / "data.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"unknown type '\.csv'"):
        load_samples(tmp_path / "data.csv", n=1, seed=0)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_samples(tmp_path / "folder", n=1, seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        load_samples(None, n=0, seed=0)
