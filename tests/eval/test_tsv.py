from __future__ import annotations

import csv
import gzip
import hashlib
import io
from pathlib import Path

import pytest
from eval_files import mmbench_rows, picture, write_tsv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlpress.eval.tasks.tsv import check_answers, check_images, open_image, read_table

CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


def one_row(path: Path, **values: object) -> Path:
    row = {"index": 1, "image": picture(), "question": "q", "A": "x", "B": "y", "answer": "A"}
    return write_tsv(path, [{**row, **values}])


@pytest.mark.parametrize("word", ["None", "NA", "N/A", "null", "nan", "NULL", "1.50", "007"])
def test_words_that_look_missing_survive(tmp_path: Path, word: str) -> None:
    row = read_table(one_row(tmp_path / "a.tsv", B=word)).rows[0]
    assert row.options == {"A": "x", "B": word}


def test_only_the_empty_string_is_missing(tmp_path: Path) -> None:
    row = read_table(one_row(tmp_path / "a.tsv", B="", C=" ", hint="")).rows[0]
    assert row.options == {"A": "x", "C": " "}
    assert row.get("hint") == ""


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(CELL, CELL)
def test_any_text_round_trips(tmp_path: Path, question: str, option: str) -> None:
    row = read_table(one_row(tmp_path / "a.tsv", question=question, A=option)).rows[0]
    assert row.get("question") == question
    assert row.get("A") == option


def test_gz_and_plain_have_the_same_md5(tmp_path: Path) -> None:
    rows = mmbench_rows(2)
    plain = read_table(write_tsv(tmp_path / "a.tsv", rows))
    packed = read_table(write_tsv(tmp_path / "a.tsv.gz", rows))
    assert plain.md5 == packed.md5 == hashlib.md5((tmp_path / "a.tsv").read_bytes()).hexdigest()
    assert plain.rows == packed.rows


def test_cells_longer_than_the_csv_default_are_read(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    table = read_table(one_row(tmp_path / "a.tsv", question="x" * (limit + 1)))
    assert len(table.rows[0]["question"]) == limit + 1
    assert csv.field_size_limit() == limit


def test_references_resolve_whatever_the_order(tmp_path: Path) -> None:
    rows = mmbench_rows(2)
    table = read_table(write_tsv(tmp_path / "a.tsv", rows[::-1]))
    images = {row.index: row.images for row in table.rows}
    assert images[1_000_241] == images[241] != images[242]


def test_indices_are_numbers_only_if_all_are(tmp_path: Path) -> None:
    rows = mmbench_rows(1)
    assert isinstance(read_table(write_tsv(tmp_path / "a.tsv", rows)).rows[0].index, int)
    rows[1]["index"] = "b"
    assert read_table(write_tsv(tmp_path / "a.tsv", rows)).rows[0].index == "241"


def test_several_pictures_in_one_cell(tmp_path: Path) -> None:
    cell = str([picture(1), picture(2)])
    row = read_table(one_row(tmp_path / "a.tsv", image=cell)).rows[0]
    assert len(row.images) == 2
    assert open_image(row.images[1]).getpixel((0, 0)) == (2, 40, 90)


def test_transparency_is_dropped_without_a_background(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(buffer, format="PNG")
    assert open_image(buffer.getvalue()).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "999"}, r"rows 1 \(refers to '999'\) have no picture"),
        ({"image": ""}, r"rows 1 \(empty\) have no picture"),
        ({"image": "?" * 80}, "rows 1 hold a picture that is not base64"),
        ({"image": "[" + "x" * 80 + "]"}, "rows 1 hold a picture that is not base64"),
    ],
)
def test_bad_pictures_are_named(tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(one_row(tmp_path / "a.tsv", **change))


def test_reference_to_a_reference_is_refused(tmp_path: Path) -> None:
    rows = mmbench_rows(1)
    rows[2]["image"] = "1000241"
    with pytest.raises(ValueError, match=r"rows 2000241 \(refers to '1000241'\) have no picture"):
        read_table(write_tsv(tmp_path / "a.tsv", rows))


def test_undecodable_picture_is_named(tmp_path: Path) -> None:
    rows = mmbench_rows(2)
    cell = str(rows[4]["image"])
    rows[4]["image"] = cell[:100]
    table = read_table(write_tsv(tmp_path / "a.tsv", rows))
    with pytest.raises(ValueError, match="rows 242, 1000242, 2000242, 3000242 hold a picture that"):
        check_images(table.path, table.rows)


def test_answers_must_be_options(tmp_path: Path) -> None:
    table = read_table(one_row(tmp_path / "a.tsv", answer="C"))
    with pytest.raises(ValueError, match="rows 1 have an answer that is none of their options"):
        check_answers(table.path, table.rows)
    table = read_table(one_row(tmp_path / "b.tsv", answer=""))
    with pytest.raises(ValueError, match="rows 1 have no answer"):
        check_answers(table.path, table.rows)


def test_repeated_and_ragged_rows_are_named(tmp_path: Path) -> None:
    rows = mmbench_rows(1)
    rows[1]["index"] = 241
    with pytest.raises(ValueError, match="rows 241 repeat an index"):
        read_table(write_tsv(tmp_path / "a.tsv", rows))
    path = tmp_path / "b.tsv"
    path.write_text("index\timage\n1\t" + picture() + "\n2\n", "utf-8")
    with pytest.raises(ValueError, match="rows 3 do not have the header's 2 columns"):
        read_table(path)


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; give the path of a TSV"):
        read_table(tmp_path / "none.tsv")
    path = tmp_path / "a.tsv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_table(path)
    path.write_text("index\timage\n", "utf-8")
    with pytest.raises(ValueError, match="holds no rows"):
        read_table(path)
    path.write_text("index\tquestion\n1\tq\n", "utf-8")
    with pytest.raises(ValueError, match="column image missing; found index, question"):
        read_table(path)
    damaged = tmp_path / "a.tsv.gz"
    damaged.write_bytes(gzip.compress(b"index\timage\n" * 50)[:-9])
    with pytest.raises(ValueError, match="does not decompress"):
        read_table(damaged)
