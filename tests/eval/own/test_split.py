"""Splitting a file of questions, by image."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import vlpress
from vlpress.calib.samples.draw import load_samples
from vlpress.calib.samples.sample import image_digests
from vlpress.cli.main import app
from vlpress.eval import open_task
from vlpress.eval.resolve import refuse_leak


def image(path: Path, color: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing = Image.new("RGB", (28, 28), (color % 256, color // 256, 9))
    drawing.save(path)
    return path.name


def write_jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    """Twenty questions about twelve images; three categories."""
    names = [image(tmp_path / f"{n}.png", n) for n in range(12)]
    return [
        {
            "image": names[n % 12],
            "question": f"Question {n}?",
            "answer": "yes",
            "category": "abc"[n % 12 % 3],
        }
        for n in range(20)
    ]


def questions(path: str) -> list[str]:
    return [item.fields["question"] for item in open_task(f"own={path}").items]


def test_no_image_and_no_question_is_in_both_files(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    path = write_jsonl(tmp_path, rows)
    result = vlpress.split(path, calib=6, out=tmp_path / "split")
    assert result["images"] == {"calib": 6, "eval": 6}
    samples = load_samples(result["calib"], n=99, seed=0)
    task = open_task(f"own={result['eval']}")
    assert len(image_digests(samples)) == 6
    refuse_leak(samples, [task])
    asked = [sample.messages[0]["content"][1]["text"] for sample in samples]
    assert sorted(asked + questions(result["eval"])) == sorted(row["question"] for row in rows)
    strata = Counter(rows[int(text.split()[1][:-1])]["category"] for text in set(asked))
    assert {name for name in strata} == {"a", "b", "c"}


def test_the_same_seed_gives_the_same_files(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = write_jsonl(tmp_path, rows)
    first = vlpress.split(path, calib=5, out=tmp_path / "a")
    vlpress.split(path, calib=5, out=tmp_path / "b")
    other = vlpress.split(path, calib=5, out=tmp_path / "c", seed=1)
    for name in ("calib.jsonl", "eval.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert questions(first["eval"]) != questions(other["eval"])
    with pytest.raises(ValueError, match=r"exists with other content.*--overwrite"):
        vlpress.split(path, calib=5, out=tmp_path / "a", seed=1)
    vlpress.split(path, calib=5, out=tmp_path / "a", seed=1, overwrite=True)
    assert (tmp_path / "a" / "eval.jsonl").read_bytes() == Path(other["eval"]).read_bytes()


def test_copies_of_an_image_are_one_image(tmp_path: Path) -> None:
    names = [image(tmp_path / f"{n}.png", n // 2) for n in range(6)]  # three pairs of equal pixels
    Image.open(tmp_path / names[1]).save(tmp_path / "1.bmp")
    names[1] = "1.bmp"  # the pixels of 0.png, encoded in another way
    rows = [{"image": n, "question": n, "answer": "yes"} for n in names]
    result = vlpress.split(write_jsonl(tmp_path, rows), calib=1, out=tmp_path / "split")
    assert result["images"] == {"calib": 1, "eval": 2}
    assert result["questions"] == {"calib": 2, "eval": 4}
    with pytest.raises(ValueError, match=r"3 different images; --calib 3 needs at least 4"):
        vlpress.split(tmp_path / "mine.jsonl", calib=3)
    assert not (tmp_path / "mine-split").exists()


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=2), min_size=2, max_size=12),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_questions_with_common_images_stay_together(
    tmp_path: Path, images: list[list[int]], count: int, seed: int
) -> None:
    for n in range(8):
        if not (tmp_path / f"{n}.png").is_file():
            image(tmp_path / f"{n}.png", n)
    rows = [
        {"image": [f"{n}.png" for n in numbers], "question": f"{k}", "answer": "x"}
        for k, numbers in enumerate(images)
    ]
    path = write_jsonl(tmp_path, rows)
    total = len({n for numbers in images for n in numbers})
    try:
        result = vlpress.split(path, calib=count, out=tmp_path / "s", seed=seed, overwrite=True)
    except ValueError as error:
        assert total <= count or "groups" in str(error)
        return
    kept = {int(text) for text in questions(result["eval"])}
    in_eval = {n for k in kept for n in images[k]}
    in_calib = {n for k, numbers in enumerate(images) if k not in kept for n in numbers}
    assert not in_eval & in_calib and in_eval and len(in_calib) >= count
    assert result["images"] == {"calib": len(in_calib), "eval": len(in_eval)}


def test_a_table_keeps_its_columns_and_quoting(tmp_path: Path) -> None:
    for n in range(6):
        image(tmp_path / "photos" / f"{n}.png", n)
    path = tmp_path / "mine.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Image", "Question", "A", "B", "answer", "date"])
        for n in range(6):
            writer.writerow(
                [f"photos/{n}.png", f'Is it "{n}",\nor not?', "yes", "no", "AB"[n % 2], n]
            )
    result = vlpress.split(path, calib=2, out=tmp_path / "deep" / "er")
    with Path(result["eval"]).open(newline="") as file:
        header, *cells = csv.reader(file)
    assert header == ["Image", "Question", "A", "B", "answer", "date"]
    assert cells[0][0].startswith("../../photos/") and '"' in cells[0][1] and "\n" in cells[0][1]
    task = open_task(f"own={result['eval']}")
    assert len(task.items) == 4 and task.notes == ("columns that are not read: date",)
    samples = load_samples(result["calib"], n=2, seed=0)
    # Calibration has the prompt of the evaluation.
    expected = task.items[0].messages[0]["content"][1]["text"].rstrip().splitlines()[3:]
    assert samples[0].messages[0]["content"][1]["text"].splitlines()[3:] == expected
    assert {sample.answer for sample in samples} <= {"A", "B"}


def test_broken_rows_stay_in_the_evaluation_and_are_named(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    rows[3] = {**rows[3], "image": "missing.png"}
    result = vlpress.split(write_jsonl(tmp_path, rows), calib=4, out=tmp_path / "split")
    assert "missing.png" in result["broken"][0]
    assert "missing.png" in Path(result["eval"]).read_text()
    rows[4:8] = [{**row, "answer": None} for row in rows[4:8]]
    with pytest.raises(ValueError, match="5 of 20 rows are broken"):
        vlpress.split(write_jsonl(tmp_path, rows), calib=4, out=tmp_path / "split")


def test_command_prints_the_numbers_and_the_next_command(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    path = write_jsonl(tmp_path, rows)
    result = CliRunner().invoke(app, ["split", str(path), "--calib", "4"])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "mine-split"
    assert f"--calib {folder / 'calib.jsonl'} --bench mine={folder / 'eval.jsonl'}" in result.stdout
    other = tmp_path / "mine.xlsx"
    other.write_bytes(b"PK")
    refused = CliRunner().invoke(app, ["split", str(other), "--calib", "4"])
    assert refused.exit_code == 2 and ".xlsx" in refused.stderr and ".csv" in refused.stderr
