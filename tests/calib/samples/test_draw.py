import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlpress.calib.samples.draw import draw_samples, load_samples
from vlpress.calib.samples.sample import Sample, image_digest, image_digests


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


def test_three_ways_to_store_an_image(tmp_path: Path) -> None:
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


def test_several_images_and_ids(tmp_path: Path) -> None:
    record = {"images": ["red.png", "red.png"], "question": "Same?", "answer": "Yes", "id": 7}
    sample = load_samples(write_jsonl(tmp_path, record), n=1, seed=0)[0]
    assert [part["type"] for part in sample.messages[0]["content"]] == ["image", "image", "text"]
    assert sample.id == "7"


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
    assert "has only 2 samples of 5" in caplog.text


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


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl does not exist"):
        load_samples(tmp_path / "gone.jsonl", n=1, seed=0)
    with pytest.raises(FileNotFoundError, match="folder does not exist"):
        load_samples(tmp_path / "no" / "folder", n=1, seed=0)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no samples"):
        load_samples(tmp_path / "empty.jsonl", n=1, seed=0)
    (tmp_path / "data.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"\.csv"):
        load_samples(tmp_path / "data.csv", n=1, seed=0)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_samples(tmp_path / "folder", n=1, seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        load_samples(None, n=0, seed=0)


def test_bad_lines_are_named_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = [
        json.dumps(ask(0)),
        "",
        "{",
        "[1]",
        json.dumps({"image": "no.png", **ask(1)}),
        json.dumps({"image": base64.b64encode(b"no image at all").decode(), **ask(1)}),
        json.dumps({"img": "red.png", **ask(1)}),
    ]
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="5 of the 6") as caught:
        load_samples(path, n=6, seed=0)
    assert all(f"bad.jsonl:{line}: " in str(caught.value) for line in range(3, 8))
    assert "no.png" in str(caught.value) and "\n" not in str(caught.value)


def test_unusable_lines_are_replaced_if_allowed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, *[ask(i) for i in range(30)])
    plain = [sample.answer for sample in load_samples(path, n=5, seed=1)]

    def length(sample: Sample) -> int:
        if sample.answer == plain[0]:
            raise ValueError("too long")
        return len(sample.answer)

    with pytest.raises(ValueError, match=rf"samples\.jsonl:{int(plain[0]) + 1}: too long"):
        draw_samples(path, n=5, seed=1, measure=length)
    drawn = draw_samples(path, n=5, seed=1, measure=length, skip_bad=1)
    answers = [sample.answer for sample in drawn.samples]
    assert len(set(answers)) == 5 and set(plain[1:]) < set(answers)
    assert drawn.tokens == [len(answer) for answer in answers]
    assert drawn.skipped == (f"{path}:{int(plain[0]) + 1}: too long",)


def test_drawings_that_do_not_fit_are_named() -> None:
    def refuse(sample: Sample) -> int:
        raise ValueError("too long")

    with pytest.raises(ValueError, match="synthetic-0-0: too long"):
        draw_samples(None, n=1, seed=0, measure=refuse)


def test_files_of_other_systems(tmp_path: Path) -> None:
    record = json.dumps({"question": "你好？", "answer": "好"}, ensure_ascii=False)
    path = tmp_path / "samples.jsonl"
    for raw in (
        b"\xef\xbb\xbf" + record.encode(),
        f"{record}\r\n\r\n{record}\r\n".encode(),
        f"{record}\r{record}".encode(),
    ):
        path.write_bytes(raw)
        samples = load_samples(path, n=9, seed=0)
        assert {sample.answer for sample in samples} == {"好"}
        assert samples[-1].messages[0]["content"][0]["text"] == "你好？"
    text = tmp_path / "corpus.txt"
    text.write_bytes(b"\xef\xbb\xbf" + "你好\r\nb\r\n\r\nc".encode())
    texts = [s.messages[0]["content"][0]["text"] for s in load_samples(text, n=9, seed=0)]
    assert texts == ["你好\nb", "c"]
    for name in ("samples.jsonl", "corpus.txt"):
        for encoding in ("utf-16", "gbk"):
            (tmp_path / name).write_bytes(record.encode(encoding))
            with pytest.raises(ValueError, match=rf"{name}.* UTF-8"):
                load_samples(tmp_path / name, n=1, seed=0)


def test_datasets_are_decoded_as_files_are(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    turned = Image.new("RGBA", (8, 6), (255, 0, 0, 0))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be shown a quarter turn further
    stream = io.BytesIO()
    turned.save(stream, "PNG", exif=exif)
    (tmp_path / "turned.png").write_bytes(stream.getvalue())
    data = datasets.Dataset.from_dict(
        {
            "images": [[{"bytes": stream.getvalue(), "path": None}]],
            "messages": [
                [
                    {"role": "user", "content": "<image>Colour?"},
                    {"role": "assistant", "content": "None."},
                ]
            ],
        }
    )
    data = data.cast_column("images", [datasets.Image()])
    data.save_to_disk(str(tmp_path / "saved"))
    files = {path: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    sample = load_samples(tmp_path / "saved", n=1, seed=0)[0]
    assert files == {path: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    digest = image_digest(Image.new("RGB", (6, 8), "white"))
    assert image_digests([sample]) == {digest} == {image_digest(tmp_path / "turned.png")}
    assert sample.answer == "None."


def test_bad_rows_of_datasets_are_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {
        "image": [{"bytes": b"broken", "path": None}, {"bytes": png(), "path": None}],
        "question": ["Colour?", "Colour?"],
        "answer": ["Blue", "Red"],
    }
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    data.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"saved, row 0: "):
        load_samples(tmp_path / "saved", n=2, seed=0)
