from __future__ import annotations

import json
from pathlib import Path

import golden_outputs


def test_changed_new_and_missing_outputs_are_listed() -> None:
    before = {"a": "1", "b": "2", "c": "3"}
    lines = golden_outputs.differences(before, {"a": "1", "b": "9", "d": "4"})
    assert [line.split(":")[0] for line in lines] == ["b", "c", "d"]
    assert golden_outputs.differences(before, dict(before)) == []


def test_answers_are_compared_without_their_times(tmp_path: Path) -> None:
    def stored(seconds: float, text: str) -> bytes:
        path = tmp_path / "predictions.jsonl"
        record = {"id": "1", "prediction": text, "seconds": seconds, "seal": str(seconds)}
        path.write_text(json.dumps(record) + "\n")
        return golden_outputs.without_times(path)

    assert stored(0.1, "A") == stored(0.2, "A") != stored(0.1, "B")


def test_all_methods_and_formats_are_covered() -> None:
    formats = {case.format for case in golden_outputs.CASES.values()}
    assert formats == {"auto", "gptq", "gptq_v2", "awq", "compressed-tensors"}
    assert len(golden_outputs.CASES) >= 10
