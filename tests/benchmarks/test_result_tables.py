"""Sentences of the result pages about their rows."""

from typing import Any

from common.rows.row import SAMPLE_FACTORS, sample_counts
from common.tables import larger_sets, other_commits


def results(*commits: str) -> dict[str, Any]:
    return {
        "commit": "new",
        "models": {"tiny": {"rows": [{"commits": c.split()} for c in commits]}},
    }


def test_rows_of_an_earlier_commit_are_counted() -> None:
    assert other_commits(results("new", "new")) == []
    (line,) = other_commits(results("old", "new", "older new"))
    assert line.startswith("2 of the 3 rows") and "old, older" in line


def test_settings_with_close_methods_have_more_samples() -> None:
    assert sample_counts("w8a8", 256, 512) == {"validation": 256, "held_out": 512}
    for setting, factor in SAMPLE_FACTORS.items():
        assert sample_counts(setting, 256, 512)["held_out"] == factor * 512
        assert sample_counts("mxfp4", 256, 512) == {"validation": 256, "held_out": 2048}
        assert f"{factor} times as many at {setting}" in larger_sets()
