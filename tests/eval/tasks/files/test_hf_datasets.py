"""The Hugging Face forms, written here by `datasets` itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]  # ships no annotations
import huggingface_hub
import pytest
from eval_files import base64_png, mmbench_rows

from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.files import hf_datasets
from vlpress.eval.tasks.files.hf_datasets import read_dataset
from vlpress.eval.tasks.files.hf_forms import DISCIPLINE_OF, FORMS
from vlpress.eval.tasks.files.image_store import VLMEVALKIT, ImageStore

IMAGE_FEATURE = datasets.Image()


def encoded(color: int) -> dict[str, Any]:
    return {"bytes": base64.b64decode(base64_png(color)), "path": None}


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    data = datasets.Dataset.from_dict(columns)
    for key in columns:
        if key.startswith("image"):
            data = data.cast_column(key, IMAGE_FEATURE)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(str(path))
    return path


def mmbench_records(n: int = 2) -> list[dict[str, Any]]:
    """As published: an image in every row, "nan" where a cell is empty, L2 with a capital."""
    records = []
    for row in mmbench_rows(n):
        base = int(str(row["index"])) % 1_000_000
        records.append(
            {
                "index": row["index"],
                "question": row["question"],
                "hint": row["hint"] or "nan",
                **{letter: row[letter] for letter in "ABCD"},
                "answer": row["answer"],
                "category": row["category"],
                "image": encoded(base),
                "source": "nan",
                "L2-category": row["l2-category"],
                "comment": "nan",
                "split": "dev",
            }
        )
    return records


def ocrbench_records() -> list[dict[str, Any]]:
    return [
        {
            "dataset": "IIIT5K",
            "question": "what is written in the image?",
            "question_type": "Regular Text Recognition",
            "answer": answers,
            "image": encoded(number),
        }
        for number, answers in enumerate([["CENTRE"], ["a", "b's"]])
    ]


def mmmu_records(split: str = "validation") -> list[dict[str, Any]]:
    base = {"explanation": "", "topic_difficulty": "Easy", "subfield": "x", "img_type": "['Plots']"}
    images = {f"image_{place}": None for place in range(1, 8)}
    return [
        {
            "id": f"{split}_Art_1",
            "question": "<image 1> or <image 2>?",
            "options": "['first', \"it's None\", 'None']",
            "answer": "C",
            "question_type": "multiple-choice",
            **base,
            **images,
            "image_1": encoded(1),
            "image_2": encoded(2),
        },
        {
            "id": f"{split}_Basic_Medical_Science_10",
            "question": "How many in <image 1>?",
            "options": "[]",
            "answer": "['24/7', '3.429']",
            "question_type": "open",
            **base,
            **images,
            "image_1": encoded(3),
        },
    ]


def test_mmbench_form(tmp_path: Path) -> None:
    write_parquet(tmp_path / "en" / "dev-00000-of-00001.parquet", mmbench_records(3))
    write_parquet(tmp_path / "cn" / "dev-00000-of-00001.parquet", mmbench_records(2))
    write_parquet(tmp_path / "en" / "test-00000-of-00001.parquet", mmbench_records(1))
    task = open_task(f"MMBench_DEV_EN={tmp_path}")
    assert len(task.items) == 12
    first = task.items[0].fields
    assert (first["hint"], first["group"], first["split"]) == ("", "logic_reasoning", "dev")
    assert task.items[4].fields["hint"] == "Look closely."
    assert task.score({i.id: i.fields["answer"] for i in task.items}).percent == 100.0
    assert "pictures may be encoded otherwise" in task.notes[0]
    assert "12 rows, the published MMBench_DEV_EN has 4329" in task.notes[1]
    assert len(open_task(f"MMBench_DEV_CN={tmp_path}").items) == 8


def test_rows_equal_those_of_the_tsv_form(tmp_path: Path) -> None:
    write_parquet(tmp_path / "dev-00000-of-00001.parquet", mmbench_records(2))
    row = read_dataset(tmp_path, "mmbench", "en").rows[1]
    assert row.index == 1_000_241
    assert row.options == {"A": "dog", "B": "bird", "C": "fish", "D": "cat"}
    assert row.images[0].read() == base64.b64decode(base64_png(241))


def test_ocrbench_form(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "test-00000-of-00001-ab12.parquet", ocrbench_records())
    task = open_task(f"OCRBench={tmp_path}")
    assert [item.fields["answers"] for item in task.items] == [["CENTRE"], ["a", "b's"]]
    assert task.items[0].fields["group"] == "Text Recognition"


def test_mmmu_form(tmp_path: Path) -> None:
    write_parquet(tmp_path / "Art" / "validation-00000-of-00001.parquet", mmmu_records())
    write_parquet(tmp_path / "Art" / "dev-00000-of-00001.parquet", mmmu_records("dev"))
    task = open_task(f"MMMU_DEV_VAL={tmp_path}")
    closed, free = task.items
    assert closed.fields["choices"] == {"A": "first", "B": "it's None", "C": "None"}
    assert (closed.fields["category"], closed.fields["group"]) == ("Art", "Art & Design")
    assert (free.fields["choices"], free.fields["answer"]) == ({}, "['24/7', '3.429']")
    assert free.fields["category"] == "Basic_Medical_Science"
    kinds = [part["type"] for part in closed.messages[0]["content"]]
    assert kinds == ["text", "image", "text", "image", "text"]
    assert "2 rows, the published MMMU_DEV_VAL has 900" in task.notes[-1]


@pytest.mark.parametrize(
    ("name", "folder"), [("MMMU_Pro_10c", "standard (10 options)"), ("MMMU_Pro_V", "vision")]
)
def test_mmmu_pro_forms(tmp_path: Path, name: str, folder: str) -> None:
    standard = {"question": "See <image 1>.", "image_1": encoded(1), "image_2": None}
    records = [
        {
            "id": "test_History_1",
            "options": str([f"option {n}" for n in range(10)]),
            "answer": "J",
            "subject": "History",
            **(standard if name == "MMMU_Pro_10c" else {"image": encoded(1)}),
        }
    ]
    write_parquet(tmp_path / folder / "test-00000-of-00001.parquet", records)
    write_parquet(tmp_path / "other" / "test-00000-of-00001.parquet", records)
    (item,) = open_task(f"{name}={tmp_path}").items
    assert (item.id, item.fields["choices"]["J"]) == ("test_History_1", "option 9")
    assert item.fields["group"] == "Humanities & Social Science"
    assert len(item.images) == 1


def test_docvqa_form(tmp_path: Path) -> None:
    records = [
        {
            "questionId": "49153",
            "question": "What is it?",
            "question_types": ["handwritten", "form"],
            "answers": ["12 May", "May 12"],
            "image": encoded(1),
        }
    ]
    write_parquet(tmp_path / "DocVQA" / "validation-00000-of-00006.parquet", records)
    write_parquet(tmp_path / "InfographicVQA" / "validation-00000-of-00001.parquet", records * 2)
    (item,) = open_task(f"DocVQA_VAL={tmp_path}").items
    assert (item.id, item.fields["answers"]) == ("49153", ["12 May", "May 12"])
    assert item.fields["category"] == "handwritten, form"


def test_chartqa_form(tmp_path: Path) -> None:
    records = [
        {"type": f"{origin}_test", "question": "How many?", "answer": "12", "image": encoded(1)}
        for origin in ("human", "augmented")
    ]
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", records)
    items = open_task(f"chartqa={tmp_path}").items
    assert [(i.id, i.fields["answers"]) for i in items] == [("0", ["12"]), ("1", ["12"])]
    assert [i.fields["category"] for i in items] == ["human", "augmented"]


def test_textvqa_form(tmp_path: Path) -> None:
    answers = ["nokia"] * 7 + ["the nokia", "toshiba", ""]
    record = {"question_id": 34602, "question": "Brand?", "answers": answers, "image": encoded(1)}
    write_parquet(tmp_path / "data" / "validation-00000-of-00003.parquet", [record])
    task = open_task(f"textvqa={tmp_path}")
    assert (task.items[0].id, task.items[0].fields["answers"]) == ("34602", answers)
    assert task.score({"34602": "Nokia"}).percent == pytest.approx(100)


def test_refcoco_form_has_a_row_per_expression(tmp_path: Path) -> None:
    record = {
        "question_id": "12",
        "question": "caption the area",
        "answer": ["left cat", "grey one"],
        "bbox": [4.0, 6.0, 10.0, 20.0],
        "image": encoded(1),
    }
    write_parquet(tmp_path / "data" / "val-00000-of-00001.parquet", [record])
    write_parquet(tmp_path / "data" / "testA-00000-of-00001.parquet", [record])
    items = open_task(f"refcoco={tmp_path}", coordinates="qwen3-vl").items
    assert [(i.id, i.fields["question"]) for i in items] == [
        ("12_0", "left cat"),
        ("12_1", "grey one"),
    ]
    assert items[0].fields["box"] == [4.0, 6.0, 14.0, 26.0]
    assert (items[0].fields["size"], items[0].fields["category"]) == ((56, 56), "val")


def test_screenspot_has_no_such_form(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ScreenSpot_Web is published as a TSV only.*e51d168c"):
        open_task(f"ScreenSpot_Web={tmp_path}", coordinates="qwen3-vl")


def test_ocrbench_v2_form(tmp_path: Path) -> None:
    record = {
        "id": 7,
        "type": "text counting en",
        "question": "How many?",
        "answers": ["10"],
        "eval": "regression",
        "bbox": None,
        "content": ["a", "b"],
        "image": encoded(1),
    }
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [record])
    task = open_task(f"ocrbench-v2={tmp_path}")
    shown = {key: task.items[0].fields[key] for key in ("id", "answers", "eval", "bbox", "content")}
    expected = {"id": "7", "answers": ["10"], "eval": "regression", "bbox": None}
    assert shown == {**expected, "content": ["a", "b"]}
    assert task.score({"7": "9"}).percent == pytest.approx(90)


def test_thirty_subjects_in_six_disciplines() -> None:
    assert (len(DISCIPLINE_OF), len(set(DISCIPLINE_OF.values()))) == (30, 6)


def test_folder_of_save_to_disk(tmp_path: Path) -> None:
    columns = {key: [row[key] for row in mmbench_records()] for key in mmbench_records()[0]}
    data = datasets.Dataset.from_dict(columns).cast_column("image", IMAGE_FEATURE)
    datasets.DatasetDict({"dev": data}).save_to_disk(str(tmp_path / "saved"))
    assert len(open_task(f"MMBench_DEV_EN={tmp_path / 'saved'}").items) == 8


def test_a_row_without_image_is_broken(tmp_path: Path) -> None:
    records = ocrbench_records()
    records[1]["image"] = None
    write_parquet(tmp_path / "test-00000-of-00001.parquet", records)
    task = open_task(f"OCRBench={tmp_path}")
    assert [item.id for item in task.items] == ["0"]
    assert "1 of 2 rows are broken and count as wrong (1: it has no image)" in task.notes[-1]


def test_an_image_that_is_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(base64.b64decode(base64_png(1)))
    form = FORMS["ocrbench"]
    record = {**ocrbench_records()[0], "image": {"bytes": None, "path": "a.png"}}
    row, fault = hf_datasets._row(record, 0, form, ImageStore(VLMEVALKIT), tmp_path)
    assert (fault, row.images[0].read()) == ("", (tmp_path / "a.png").read_bytes())
    record["image"]["path"] = "none.png"
    row, fault = hf_datasets._row(record, 0, form, ImageStore(VLMEVALKIT), tmp_path)
    assert row.images == () and "none.png" in fault


def test_more_options_than_letters_break_their_row(tmp_path: Path) -> None:
    records = mmmu_records()
    records[0]["options"] = str([f"option {n}" for n in range(27)])
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", records)
    task = open_task(f"MMMU_DEV_VAL={tmp_path}")
    assert len(task.fingerprint["broken"]) == 1 and "27 options" in task.notes[-1]


WIDE = {"bytes": base64.b64decode(base64_png(1, (1093, 5))), "path": None}
UNUSABLE = {
    "MMBench_DEV_EN": ("dev", mmbench_records(8), "image", 13, "1000244"),
    "OCRBench": ("test", ocrbench_records(), "image", 1, "1"),
    "MMMU_DEV_VAL": ("validation", mmmu_records(), "image_1", 0, "validation_Art_1"),
}


@pytest.mark.parametrize("name", sorted(UNUSABLE))
@pytest.mark.parametrize("what", ["image", "question"])
def test_rows_that_no_model_can_be_asked_are_broken(tmp_path: Path, name: str, what: str) -> None:
    split, rows, column, number, key = UNUSABLE[name]
    records = [dict(row) for row in rows]
    place, value = {"image": (column, WIDE), "question": ("question", "<|image_pad|>?")}[what]
    records[number][place] = value
    write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", records)
    task = open_task(f"{name}={tmp_path}")
    assert task.fingerprint["broken"] == [key]
    assert {"image": "aspect ratio 218.6", "question": "<|image_pad|>"}[what] in task.notes[-1]
    assert task.score({item.id: "A" for item in task.items}).n_rows == len(records)


def test_the_digest_covers_cells_and_images(tmp_path: Path) -> None:
    def md5(**change: Any) -> str:
        records = ocrbench_records()
        records[0] |= change
        write_parquet(tmp_path / "test-00000-of-00001.parquet", records)
        return read_dataset(tmp_path, "ocrbench", None).md5

    assert md5() == md5()
    assert len({md5(), md5(question="q"), md5(image=encoded(9))}) == 3


def test_unusable_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"test-\.\.\."):
        open_task(f"OCRBench={tmp_path}")
    write_parquet(tmp_path / "train-0.parquet", ocrbench_records())
    with pytest.raises(ValueError, match=r"test-.*train-0"):
        open_task(f"OCRBench={tmp_path}")
    write_parquet(tmp_path / "test-0.parquet", mmbench_records(1))
    with pytest.raises(ValueError, match=r"column question_type .*index, question"):
        open_task(f"OCRBench={tmp_path}")
    (tmp_path / "test-0.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match="cannot be read: "):
        open_task(f"OCRBench={tmp_path}")
    with pytest.raises(ValueError, match=r"MMBench_DEV_EN_V11 .*TSV"):
        open_task(f"MMBench_DEV_EN_V11={tmp_path}")


def test_a_hub_id_is_fetched_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "en" / "dev-00000-of-00001.parquet", mmbench_records())
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    task = open_task("MMBench_DEV_EN=lmms-lab/MMBench@abc")
    assert asked == {
        "name": "lmms-lab/MMBench",
        "repo_type": "dataset",
        "revision": "abc",
        "allow_patterns": ["*en/dev-*.parquet"],
    }
    assert "Hugging Face form (lmms-lab/MMBench@abc)" in task.notes[0]


def test_fetch_errors_have_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> str:
        raise OSError("offline\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match=r"a/b .*\(offline\)"):
        hf_datasets.fetch_dataset("a/b", "ocrbench", None)


def test_a_data_root_holds_files_under_their_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "OCRBench" / "test-0.parquet", ocrbench_records())
    assert len(open_task("OCRBench", data_root=tmp_path).items) == 2
    with pytest.raises(FileNotFoundError, match=r"MMMU_DEV_VAL\.tsv, MMMU_DEV_VAL\.ts"):
        open_task("MMMU_DEV_VAL", data_root=tmp_path)
