"""Journals of checksummed lines: commits, torn ends and damage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vlpress.common.checksum import KEY, with_checksum
from vlpress.common.journal import JournalFile, read_journal

HEADER = {"kind": "x", "schema": 1}
RECORDS: list[dict[str, Any]] = [{"id": "ü"}, {"id": "\ud800"}, {"id": 3, "values": [1.5, None]}]
REMEDY = "remove it"


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "journal.jsonl"
    with JournalFile(path) as file:
        file.append([HEADER])
        file.append(RECORDS[:1])
        file.append(RECORDS[1:])
    yield path


def read(path: Path, **options: Any) -> Any:
    return read_journal(path, REMEDY, **options)


def test_what_was_appended_is_read(path: Path) -> None:
    contents = read(path, header_keys=("kind", "schema"))
    assert (contents.header, contents.records) == (HEADER, RECORDS)
    assert contents.size == path.stat().st_size
    without_header = read(path)
    assert (without_header.header, without_header.records) == (None, [HEADER, *RECORDS])


def test_missing_and_empty_files_are_empty_journals(tmp_path: Path) -> None:
    for name in ("missing", "empty"):
        contents = read(tmp_path / name, header_keys=("kind",))
        assert (contents.header, contents.records, contents.size) == (None, [], 0)
        (tmp_path / "empty").touch()


def test_a_torn_end_is_ignored_and_cut_off_by_the_next_writer(path: Path) -> None:
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        contents = read(path)
        assert contents.size == max((end for end in ends if end <= length), default=0)
        assert contents.records == [HEADER, *RECORDS][: len([e for e in ends if e <= length])]
        assert path.read_bytes() == whole[:length]
        with JournalFile(path, contents.size) as file:
            file.append([{"id": "new"}])
        assert read(path).records == [*contents.records, {"id": "new"}]


@pytest.mark.parametrize("line", [2, 3, 4])
def test_damage_is_an_error_that_names_the_line(path: Path, line: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(b'"id"', b'"ip"')
    path.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=rf"journal\.jsonl line {line} .*; {REMEDY}"):
        read(path, header_keys=("kind",))


def test_a_damaged_end_can_count_as_uncommitted(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[-1] = b"\0" * (len(lines[-1]) - 1) + b"\n"  # the length was stored, the content was not
    path.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match="line 4"):
        read(path)
    contents = read(path, ignore_damaged_end=True)
    assert contents.records == [HEADER, *RECORDS[:2]]
    assert contents.size == len(b"".join(lines[:-1]))
    path.write_bytes(b"".join(lines) + b"torn")  # damage is no longer at the end
    with pytest.raises(ValueError, match="line 4"):
        read(path, ignore_damaged_end=True)


@pytest.mark.parametrize("first", ["{}", "[]", "no JSON", '{"kind": "x"}'])
def test_files_without_the_header_are_refused(tmp_path: Path, first: str) -> None:
    (tmp_path / "x").write_text(first + "\n")
    with pytest.raises(ValueError, match="x does not start with a header"):
        read(tmp_path / "x", header_keys=("kind", "schema"))


def test_nothing_is_written_of_records_that_are_not_json(path: Path) -> None:
    whole = path.read_bytes()
    for bad, error in ((object(), TypeError), (float("nan"), ValueError)):
        with JournalFile(path) as file, pytest.raises(error):
            file.append([{"id": 4}, {"id": bad}])
    assert path.read_bytes() == whole


def test_lines_are_json_with_a_checksum(path: Path) -> None:
    first = path.read_text(encoding="utf-8", errors="surrogatepass").splitlines()[1]
    assert first == f'{{"id": "ü", "{KEY}": "{with_checksum(RECORDS[0])[KEY]}"}}'
