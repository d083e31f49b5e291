from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlpress.common.differences import differences
from vlpress.eval.answering.predictions import (
    Prediction,
    RecordStore,
    prediction_record,
    read_predictions,
    read_records,
)

SETUP: dict[str, Any] = {"batch_size": 8, "versions": {"torch": "2.13"}, "pixels": (1, 2)}


def record(key: str, text: str = "A") -> dict[str, Any]:
    return prediction_record(Prediction(key, text, 1, True, 0.5))


def fill(path: Path, *keys: str) -> None:
    with closing(RecordStore(path, "predictions", SETUP)) as store:
        store.append([record(key) for key in keys])


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.text(max_size=20), max_size=5))
def test_texts_survive_a_round_trip(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "p.jsonl"
    path.unlink(missing_ok=True)
    texts = [*texts, "None", "NA", "007", "1.50", "", "a\nb\t\u2028c\rd", "\ud800"]
    with closing(RecordStore(path, "predictions", SETUP)) as store:
        store.append([record(str(i), text) for i, text in enumerate(texts)])
    assert [p.prediction for p in read_predictions(path).values()] == texts


def test_reopening_resumes(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    fill(path, "1", "2")
    with closing(RecordStore(path, "predictions", SETUP)) as store:
        assert set(store.records) == {"1", "2"}
        store.append([record("3")])
    assert list(read_predictions(path)) == ["1", "2", "3"]
    assert len(path.read_text("utf-8").splitlines()) == 4


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_torn_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "p.jsonl"
    fill(path, "1", "2")
    path.write_bytes(path.read_bytes()[:-cut])
    assert list(read_predictions(path)) == ["1"]
    with closing(RecordStore(path, "predictions", SETUP)) as store:
        assert set(store.records) == {"1"}
        store.append([record("2")])
    assert list(read_predictions(path)) == ["1", "2"]


def test_torn_header_starts_afresh(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    fill(path)
    path.write_bytes(path.read_bytes()[:-4])
    fill(path, "1")
    assert list(read_predictions(path)) == ["1"]


def test_another_setup_is_refused_by_key(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    fill(path, "1")
    other = {"batch_size": 4, "versions": {"torch": "2.14"}, "pixels": [1, 2]}
    message = r"batch_size: 8 -> 4; versions.torch: 2.13 -> 2.14"
    with pytest.raises(ValueError, match=message):
        RecordStore(path, "predictions", other)
    assert list(read_predictions(path)) == ["1"]


def test_differences_name_absent_keys() -> None:
    assert differences({"a": 1, "b": None}, {"b": {}, "c": 2}) == [
        "a: 1 -> absent",
        "b: None -> {}",
        "c: absent -> 2",
    ]
    assert differences(SETUP, json.loads(json.dumps(SETUP))) == []


def test_damage_inside_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    fill(path, "1", "2")
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text(lines[0] + "{broken\n" + lines[2], "utf-8")
    with pytest.raises(ValueError, match="line 2 is damaged"):
        RecordStore(path, "predictions", SETUP)
    path.write_text(lines[0] + lines[1].replace("stopped", "stepped") + lines[2], "utf-8")
    with pytest.raises(ValueError, match="line 2 is damaged"):
        read_predictions(path)
    edited = lines[0].replace('"fingerprint": {', '"fingerprint": {"x": 1, ')
    path.write_text(edited + lines[1], "utf-8")
    with pytest.raises(ValueError, match="line 1 is damaged"):
        read_predictions(path)
    path.write_text(lines[0] + lines[1] + lines[1], "utf-8")
    with pytest.raises(ValueError, match="line 3 repeats 1"):
        read_predictions(path)
    path.write_text(lines[1], "utf-8")
    with pytest.raises(ValueError, match="does not start with a header"):
        read_predictions(path)


def test_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    RecordStore(path, "fidelity", SETUP).close()
    with pytest.raises(ValueError, match="'fidelity' of schema 4, not 'predictions'"):
        read_predictions(path)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        read_records(tmp_path / "none", "predictions")
    (tmp_path / "p").write_bytes(b"")
    with pytest.raises(ValueError, match="p is empty"):
        read_records(tmp_path / "p", "predictions")


def test_an_id_is_stored_once(tmp_path: Path) -> None:
    with closing(RecordStore(tmp_path / "p", "predictions", SETUP)) as store:
        store.append([record("1")])
        with pytest.raises(ValueError, match=r"\b1\b"):
            store.append([record("1")])


def test_records_belong_to_the_content_of_their_item(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    first = {"1": "a", "2": "b"}
    with closing(RecordStore(path, "predictions", SETUP, first)) as store:
        store.append([record("1"), record("2")])
    changed = {"2": "c", "3": "d"}
    with closing(RecordStore(path, "predictions", SETUP, changed)) as store:
        assert store.records == {}
        store.append([record("2", "B"), record("3")])
    assert {k: p.prediction for k, p in read_predictions(path, changed).items()} == {
        "2": "B",
        "3": "A",
    }
    assert {k: p.prediction for k, p in read_predictions(path, first).items()} == {
        "1": "A",
        "2": "A",
    }
    assert read_predictions(path)["2"].prediction == "B"  # the last one
    line = path.read_text("utf-8").splitlines(keepends=True)[1]
    path.write_text(path.read_text("utf-8") + line, "utf-8")
    with pytest.raises(ValueError, match="line 6 repeats 1"):
        read_predictions(path, first)
