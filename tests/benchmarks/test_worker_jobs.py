"""Jobs of an engine's script, and their results."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import questions


def test_results_and_errors_are_written_with_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [
        {"name": name, "key": f"key of {name}", "out": str(tmp_path / f"{name}.json")}
        for name in ("good", "bad")
    ]
    listed = tmp_path / "jobs.json"
    listed.write_text(json.dumps(jobs))

    def run(job: dict[str, Any]) -> dict[str, Any]:
        if job["name"] == "bad":
            raise ValueError("unknown model")
        return {"answers": {"1": "A"}}

    monkeypatch.setattr("sys.argv", ["worker", str(listed)])
    questions.run_jobs(run, ("numpy",))
    good, bad = (json.loads((tmp_path / f"{job['name']}.json").read_text()) for job in jobs)
    assert good["answers"] == {"1": "A"} and good["key"] == "key of good"
    assert bad["error"] == "ValueError: unknown model" and "answers" not in bad
    assert good["versions"] == bad["versions"] == {"numpy": version("numpy")}
