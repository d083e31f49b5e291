import json
from pathlib import Path

import pytest

from vlpress.common.result_cache import cached, digest_code, digest_files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_value_is_computed_once_per_key(folder: Path) -> None:
    values = iter(range(9))

    def compute() -> int:
        return next(values)

    first = cached("rates", {"threads": 1}, compute)
    again = cached("rates", {"threads": 1}, compute)
    assert (first.value, again.value) == (0, 0)
    assert (first.is_reused, again.is_reused) == (False, True)
    assert first.file == again.file and str(folder) in again.note
    assert cached("rates", {"threads": 2}, compute).value == 1
    assert cached("rates", {"threads": 1}, compute, refresh=True).value == 2
    assert cached("rates", {"threads": 1}, compute).value == 2


def test_a_damaged_file_is_replaced(folder: Path) -> None:
    file = cached("rates", {}, lambda: [1]).file
    for damage in ("", "[", "[]", "{}"):
        file.write_text(damage)
        assert cached("rates", {}, lambda: [2]).value == [2]
        assert json.loads(file.read_text())["value"] == [2]


def test_a_folder_that_cannot_be_written_to_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLPRESS_CACHE", str(tmp_path / "file"))
    entry = cached("rates", {}, lambda: 1)
    assert entry.value == 1 and not entry.is_reused and "cannot be cached" in entry.note


def test_digests_follow_names_and_contents(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("same")
    a, b = (digest_files([tmp_path / name]) for name in ("a", "b"))
    (tmp_path / "a").write_text("other")
    assert len({a, b, digest_files([tmp_path / "a"])}) == 3
    assert digest_code("synthetic") != digest_code("common")
