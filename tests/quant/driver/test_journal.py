"""The journal of a run that is not finished."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlpress.quant.driver.journal import JOURNAL, Journal


def filled(folder: Path, count: int = 3) -> Journal:
    work = Journal(folder)
    for number in range(count):
        work.add({"block": number, "name": "ü"}, {f"t{number}": torch.full((2,), float(number))})
    return work


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    first = filled(tmp_path)
    again = Journal(tmp_path)
    assert again.records == first.records == [{"block": n, "name": "ü"} for n in range(3)]
    assert {n: t.read().tolist() for n, t in again.tensors().items()} == {
        "t0": [0, 0],
        "t1": [1, 1],
        "t2": [2, 2],
    }


def test_a_torn_line_never_was(tmp_path: Path) -> None:
    filled(tmp_path)
    journal = tmp_path / JOURNAL
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    for end in range(len(whole)):
        journal.write_bytes(whole[:end])
        kept = sum(len(b"".join(lines[: n + 1])) <= end for n in range(3))
        assert len(Journal(tmp_path).records) == kept
        assert journal.read_bytes() == b"".join(lines[:kept])
        assert len(Journal(tmp_path).tensors()) == kept


def test_work_goes_on_behind_a_torn_line(tmp_path: Path) -> None:
    filled(tmp_path)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"block": 3, "na')
    work = Journal(tmp_path)
    work.add({"block": 3}, {"t3": torch.ones(1)})
    assert [record["block"] for record in Journal(tmp_path).records] == [0, 1, 2, 3]


def test_a_block_whose_line_is_missing_never_was(tmp_path: Path) -> None:
    work = filled(tmp_path)
    with pytest.raises(TypeError):
        work.add({"block": object()}, {"t3": torch.ones(1)})
    assert len(work.records) == len(Journal(tmp_path).records) == 3
    assert "t3" not in Journal(tmp_path).tensors()


@pytest.mark.parametrize("line", [0, 1, 2])
def test_damage_is_refused_but_in_the_last_line(tmp_path: Path, line: int) -> None:
    filled(tmp_path)
    journal = tmp_path / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"block": ', b'"block": 1')
    journal.write_bytes(b"".join(lines))
    if line == 2:
        assert len(Journal(tmp_path).records) == 2
        assert journal.read_bytes() == b"".join(lines[:2])
        return
    with pytest.raises(ValueError, match=rf"jsonl line {line + 1} is damaged or was edited; begin"):
        Journal(tmp_path)
    assert journal.read_bytes() == b"".join(lines)
