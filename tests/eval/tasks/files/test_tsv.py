from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import random
import tracemalloc
from pathlib import Path

import pytest
from eval_files import base64_png, mmbench_rows, write_tsv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlpress.eval.tasks.files.image_store import VLMEVALKIT, decode_image
from vlpress.eval.tasks.files.rows import find_answer_faults, find_image_faults
from vlpress.eval.tasks.files.tsv import read_table

CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


def one_row(path: Path, **values: object) -> Path:
    row = {"index": 1, "image": base64_png(), "question": "q", "A": "x", "B": "y", "answer": "A"}
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
    limit, previous = 131_072, csv.field_size_limit(131_072)  # csv's default, of the process
    try:
        table = read_table(one_row(tmp_path / "a.tsv", question="x" * (limit + 1)))
        assert len(table.rows[0]["question"]) == limit + 1
        assert csv.field_size_limit() == limit
    finally:
        csv.field_size_limit(previous)


def test_references_resolve_in_any_order(tmp_path: Path) -> None:
    rows = mmbench_rows(2)
    table = read_table(write_tsv(tmp_path / "a.tsv", rows[::-1]))
    images = {row.index: row.images for row in table.rows}
    assert images[1_000_241] == images[241] != images[242]


def test_indices_are_numbers_only_if_all_are(tmp_path: Path) -> None:
    rows = mmbench_rows(1)
    assert isinstance(read_table(write_tsv(tmp_path / "a.tsv", rows)).rows[0].index, int)
    rows[1]["index"] = "b"
    assert read_table(write_tsv(tmp_path / "a.tsv", rows)).rows[0].index == "241"


def test_several_images_in_one_cell(tmp_path: Path) -> None:
    cell = str([base64_png(1), base64_png(2)])
    row = read_table(one_row(tmp_path / "a.tsv", image=cell)).rows[0]
    assert len(row.images) == 2
    assert row.images[1].open().getpixel((0, 0)) == (2, 40, 90)


def test_transparency_is_dropped_without_a_background(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(buffer, format="PNG")
    assert decode_image(buffer.getvalue(), VLMEVALKIT).getpixel((0, 0)) == (10, 20, 30)


def test_forms_of_base64(tmp_path: Path) -> None:
    data = base64.b64decode(base64_png(1))
    plain, safe = (
        base64.b64encode(data).decode(),
        base64.urlsafe_b64encode(data).decode(),
    )
    for cell in (
        plain,
        base64.encodebytes(data).decode(),
        plain.rstrip("="),
        safe,
        f"data:image/png;base64,{plain}",
        str([plain, safe]),
    ):
        table = read_table(one_row(tmp_path / "a.tsv", image=cell))
        assert table.faults == {}
        assert {image.read() for image in table.rows[0].images} == {data}


def test_a_path_is_no_image_of_a_tsv(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 80 + ".png")
    path.write_bytes(base64.b64decode(base64_png(1)))
    for cell in (str(path), path.as_uri()):
        assert read_table(one_row(tmp_path / "a.tsv", image=cell)).faults[1]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"image": "999"}, "it refers to '999', which is no row with an image"),
        ({"image": ""}, "it has no image"),
        ({"image": "?" * 80}, "its image is not base64"),
        ({"image": "[" + "x" * 80 + "]"}, "its image is not base64"),
    ],
)
def test_bad_images_break_their_row(tmp_path: Path, change: dict[str, str], fault: str) -> None:
    table = read_table(one_row(tmp_path / "a.tsv", **change))
    assert table.faults == {1: fault}
    assert [row.images for row in table.rows] == [()]


def test_a_reference_to_a_reference_breaks_its_row(tmp_path: Path) -> None:
    rows = mmbench_rows(1)
    rows[2]["image"] = "1000241"
    found = read_table(write_tsv(tmp_path / "a.tsv", rows)).faults
    assert found == {2_000_241: "it refers to '1000241', which is no row with an image"}


def test_a_bad_image_breaks_the_rows_that_refer_to_it(tmp_path: Path) -> None:
    rows = mmbench_rows(2)
    rows[0]["image"] = "?" * 80
    found = read_table(write_tsv(tmp_path / "a.tsv", rows)).faults
    assert list(found) == [241, 1_000_241, 2_000_241, 3_000_241]


def test_undecodable_images_break_their_rows(tmp_path: Path) -> None:
    rows = mmbench_rows(2)
    cell = str(rows[4]["image"])
    rows[4]["image"] = cell[:100]
    found = find_image_faults(read_table(write_tsv(tmp_path / "a.tsv", rows)).rows)
    group = [242, 1_000_242, 2_000_242, 3_000_242]
    assert list(found) == group
    assert all(fault.startswith("its image does not decode (") for fault in found.values())


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"answer": "C"}, "its answer 'C' is none of its options"),
        ({"answer": ""}, "it has no answer"),
        ({"question": ""}, "it has no question"),
    ],
)
def test_rows_that_cannot_be_scored_are_broken(
    tmp_path: Path, change: dict[str, str], fault: str
) -> None:
    table = read_table(one_row(tmp_path / "a.tsv", **change))
    assert find_answer_faults(table.rows) == {1: fault}


def test_each_distinct_image_is_stored_once_and_not_in_memory(tmp_path: Path) -> None:
    noise = random.Random(0)
    cells = [base64.b64encode(noise.randbytes(1 << 20)).decode() for _ in range(24)]
    rows = [{"index": i, "image": cells[i % 24], "question": "q"} for i in range(48)]
    path = write_tsv(tmp_path / "a.tsv", rows)
    del rows
    tracemalloc.start()
    table = read_table(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 64 << 20
    assert peak < 16 << 20
    assert len({image for row in table.rows for image in row.images}) == 24
    assert table.rows[30].images[0].read() == base64.b64decode(cells[6])


def test_repeated_and_ragged_rows_are_named(tmp_path: Path) -> None:
    rows = mmbench_rows(1)
    rows[1]["index"] = 241
    with pytest.raises(ValueError, match="rows 241 repeat an index"):
        read_table(write_tsv(tmp_path / "a.tsv", rows))
    path = tmp_path / "b.tsv"
    path.write_text("index\timage\n1\t" + base64_png() + "\n2\n", "utf-8")
    with pytest.raises(ValueError, match=r"rows 3 .*2 columns"):
        read_table(path)


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        read_table(tmp_path / "none.tsv")
    path = tmp_path / "a.tsv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        read_table(path)
    path.write_text("index\timage\n", "utf-8")
    with pytest.raises(ValueError, match="no rows"):
        read_table(path)
    path.write_text("index\tquestion\n1\tq\n", "utf-8")
    with pytest.raises(ValueError, match=r"column image .*index, question"):
        read_table(path)
    path.write_text("index\timage\tindex\n1\t\t1\n", "utf-8")
    with pytest.raises(ValueError, match="duplicate column index"):
        read_table(path)
    damaged = tmp_path / "a.tsv.gz"
    damaged.write_bytes(gzip.compress(b"index\timage\n" * 50)[:-9])
    with pytest.raises(ValueError, match="decompress"):
        read_table(damaged)
