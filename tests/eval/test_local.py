import json
from pathlib import Path
from typing import Any

import pytest

from vlpress.eval.local import discard_stale


def unused() -> dict[str, Any]:
    raise AssertionError("the setup was computed")


@pytest.mark.parametrize("flag", ["overwrite", "fresh"])
def test_an_evaluation_of_another_schema_is_discarded_on_request(tmp_path: Path, flag: str) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    for folder in (out / "photos", out / "notes", other):
        folder.mkdir(parents=True)
        (folder / "items.jsonl").write_text("{}\n")
    tasks: dict[str, Any] = {"photos": {}, "../other": {}}
    (out / "run.json").write_text(json.dumps({"schema": 2, "tasks": tasks}))
    flags = {"overwrite": False, "fresh": False}
    with pytest.raises(ValueError, match="schema 2"):
        discard_stale(out, unused, [], **flags)
    discard_stale(out, unused, [], **{**flags, flag: True})
    assert [path.name for path in out.iterdir()] == ["notes"]
    assert (other / "items.jsonl").is_file()
