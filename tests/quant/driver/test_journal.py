"""The journal of an unfinished run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlpress.quant.driver.journal import JOURNAL, Journal


def filled(folder: Path, count: int = 3) -> Journal:
    journal = Journal(folder)
    for number in range(count):
        tensors = {f"t{number}": torch.full((2,), float(number))}
        journal.add({"block": number, "name": "ü"}, tensors)
    return journal


def test_records_and_tensors_are_restored(tmp_path: Path) -> None:
    written = filled(tmp_path)
    reopened = Journal(tmp_path)
    assert reopened.records == written.records == [{"block": n, "name": "ü"} for n in range(3)]
    assert {n: t.read().tolist() for n, t in reopened.tensors().items()} == {
        "t0": [0, 0],
        "t1": [1, 1],
        "t2": [2, 2],
    }


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    filled(tmp_path)
    file = tmp_path / JOURNAL
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        committed = sum(len(b"".join(lines[: n + 1])) <= end for n in range(3))
        assert len(Journal(tmp_path).records) == committed
        assert file.read_bytes() == b"".join(lines[:committed])
        assert len(Journal(tmp_path).tensors()) == committed


def test_blocks_are_added_after_a_torn_line(tmp_path: Path) -> None:
    filled(tmp_path)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"block": 3, "na')
    Journal(tmp_path).add({"block": 3}, {"t3": torch.ones(1)})
    assert [record["block"] for record in Journal(tmp_path).records] == [0, 1, 2, 3]


def test_tensors_without_their_line_are_ignored(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    with pytest.raises(TypeError):
        journal.add({"block": object()}, {"t3": torch.ones(1)})
    assert len(journal.records) == len(Journal(tmp_path).records) == 3
    assert "t3" not in Journal(tmp_path).tensors()


@pytest.mark.parametrize("line", [0, 1, 2])
def test_damage_is_refused_except_in_the_last_line(tmp_path: Path, line: int) -> None:
    filled(tmp_path)
    file = tmp_path / JOURNAL
    lines = file.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"block": ', b'"block": 1')
    file.write_bytes(b"".join(lines))
    if line == 2:
        assert len(Journal(tmp_path).records) == 2
        assert file.read_bytes() == b"".join(lines[:2])
        return
    with pytest.raises(ValueError, match=rf"jsonl line {line + 1} .*--fresh"):
        Journal(tmp_path)
    assert file.read_bytes() == b"".join(lines)
