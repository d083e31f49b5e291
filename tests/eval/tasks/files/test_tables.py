"""Custom questions in CSV and TSV files."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from eval_files import base64_png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlpress.eval.tasks import check_spec, open_task
from vlpress.eval.tasks.files.jsonl import read_questions
from vlpress.eval.tasks.registry import near_miss


def write(path: Path, text: str) -> Path:
    (path.parent / "a.png").write_bytes(base64.b64decode(base64_png(1)))
    (path.parent / "b.png").write_bytes(base64.b64decode(base64_png(2)))
    path.write_text(text, "utf-8")
    return path


def fields(path: Path) -> list[dict[str, Any]]:
    return [dict(f) for f in open_task(f"photos={path}").fields]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", 'image,question,options,answer\na.png,"What, here?",cat | dog,dog\n'),
        ("x.csv", "IMAGE;Question;Options;Answer\r\na.png;What, here?;cat | dog;B\r\n"),
        ("x.tsv", 'image_path\tquestion\tchoices\tanswer\na.png\tWhat, here?\t["cat", "dog"]\tB\n'),
        ("x.csv", 'index,image,question,A,B,C,answer\n1,a.png,"What, here?",cat,dog,,B\n'),
        (
            "x.jsonl",
            '{"image": "a.png", "question": "What, here?", "A": "cat", "B": "dog", "answer": "B"}',
        ),
        (
            "x.jsonl",
            '{"image": "a.png", "question": "What, here?", "options": ["cat", "dog"], '
            '"answer": "dog"}',
        ),
    ],
)
def test_options_make_a_multiple_choice_question(tmp_path: Path, name: str, text: str) -> None:
    (row,) = fields(write(tmp_path / name, text))
    assert row["choices"] == {"A": "cat", "B": "dog"}
    assert (row["answers"], row["metric"], row["question"]) == (["B"], "choice", "What, here?")
    (item,) = open_task(f"photos={tmp_path / name}").items
    assert len(item.images) == 1


def test_answers_without_options_are_text(tmp_path: Path) -> None:
    text = 'question,answer,metric,category\nHow many?,"[12, ""twelve""]",,n\nWhy?,NA,contains,\n'
    first, second = fields(write(tmp_path / "x.csv", text))
    assert (first["answers"], first["metric"], first["category"]) == (
        ["12", "twelve"],
        "exact",
        "n",
    )
    assert (second["answers"], second["metric"]) == (["NA"], "contains")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(*[st.text("abN,;\"'\t\n|é0[", min_size=1, max_size=8)] * 2),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([".csv", ".tsv"]),
)
def test_cells_are_read_as_they_are(
    tmp_path: Path, rows: list[tuple[str, str]], suffix: str
) -> None:
    rows = [(f"q{question}", f"a{answer}") for question, answer in rows]
    path = tmp_path / f"x{suffix}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
        writer.writerows([("question", "answer"), *rows])
    table = read_questions(path)
    assert not table.faults
    read = [(row["question"], json.loads(row["answers"])[0]) for row in table.rows]
    assert read == rows


def test_image_of_another_row(tmp_path: Path) -> None:
    text = f"index\timage\tquestion\tanswer\n7\t{base64_png(3)}\tOne?\tx\n8\t7\tTwo?\ty\n"
    task = open_task(f"photos={write(tmp_path / 'x.tsv', text)}")
    assert [item.id for item in task.items] == ["7", "8"]
    assert task.items[0].images == task.items[1].images


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,question,label\na.png,What?,x\n", "column answer missing; found image, question"),
        ("photo,question,answer\na.png,What?,x\n", "key 'photo' holds media but is not read"),
        ("extra,question,answer\na.png,What?,x\n", "key 'extra' holds media"),
        ("question,Question,answer\na,b,c\n", "columns question and Question are both question"),
        ("question,answer\n", "holds no questions; write rows after the header"),
        ("", "column question and answer missing; found nothing"),
    ],
)
def test_unusable_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_task(f"photos={write(tmp_path / 'x.csv', text)}")


def test_rows_that_cannot_be_used_are_named_by_their_line(tmp_path: Path) -> None:
    rows = "".join(f'a.png,"Is it\n{n}?",yes\n' for n in range(30))
    table = read_questions(
        write(tmp_path / "x.csv", f"image,question,answer\n{rows}b.png,one,a,b\n")
    )
    (fault,) = table.faults.values()
    assert "4 cells, the header 3" in fault and table.rows[-1].line == 62
    assert [row.index for row in table.rows[:2]] == ["1", "2"]


def test_columns_that_are_not_read_are_noted(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "date,question,answer\n2,What?,x\n")
    task = open_task(f"photos={path}")
    assert task.notes == ("columns that are not read: date",)


def test_published_names_need_the_published_form(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.csv", "image,question,answer\na.png,What?,x\n")
    message = r"MMBench_DEV_EN is a published .* mine.csv has image, question, answer; .* photos="
    with pytest.raises(ValueError, match=message):
        check_spec(f"mmbench_dev_en={path}")
    other = write(tmp_path / "mine.tsv", "image\tquestion\tanswer\na.png\tWhat?\tx\n")
    with pytest.raises(
        ValueError, match=r"OCRBench is a published .* mine.tsv has image, question"
    ):
        check_spec(f"OCRBench={other}")
    lines = write(tmp_path / "mine.jsonl", '{"question": "What?", "answer": "x"}\n')
    with pytest.raises(ValueError, match=r"MMMU_DEV_VAL .* mine.jsonl has question, answer"):
        check_spec(f"MMMU_DEV_VAL={lines}")


def test_names_close_to_a_benchmark_cause_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.csv", "question,answer\nWhat?,x\n")
    warning = near_miss(check_spec(f"MMBench_DEV_EM={path}"))
    assert "MMBench_DEV_EM" in warning and "MMBench_DEV_EN" in warning
    assert open_task(f"MMBench_DEV_EM={path}").notes == (warning,)
    assert near_miss(check_spec(f"photos={path}")) == ""
    with pytest.raises(ValueError, match=r"unknown benchmark 'OCRBensh'; did you mean .*OCRBench"):
        check_spec("OCRBensh")


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "run.json", "two words", ""])
def test_names_that_cannot_be_folders_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "mine.csv", "question,answer\nWhat?,x\n")
    with pytest.raises(ValueError, match="cannot name a benchmark"):
        check_spec(f"{name}={path}")


def test_other_files_are_refused_with_the_formats(tmp_path: Path) -> None:
    path = tmp_path / "mine.xlsx"
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"is a .xlsx file; own questions .* .jsonl, .csv, .tsv"):
        check_spec(f"photos={path}")
    with pytest.raises(ValueError, match="is a folder"):
        check_spec(f"photos={tmp_path}")
    with pytest.raises(FileNotFoundError, match=r"none.csv does not exist.* own questions"):
        check_spec(f"photos={tmp_path / 'none.csv'}")
    assert check_spec(str(write(tmp_path / "mine.csv", "question,answer\na,b\n"))).name == "mine"
