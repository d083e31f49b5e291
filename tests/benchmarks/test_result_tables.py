"""What the result pages say about their rows."""

from typing import Any

from common.rows import DRAWINGS, drawings
from common.tables import more_drawings, other_commits


def results(*commits: str) -> dict[str, Any]:
    return {
        "commit": "new",
        "models": {"tiny": {"rows": [{"commits": c.split()} for c in commits]}},
    }


def test_rows_of_an_earlier_commit_are_counted() -> None:
    assert other_commits(results("new", "new")) == []
    (line,) = other_commits(results("old", "new", "older new"))
    assert line.startswith("2 of the 3 rows are, at least in part, of old, older;")


def test_close_settings_are_judged_on_more_drawings() -> None:
    assert drawings("w8a8", 256, 512) == {"validation": 256, "held_out": 512}
    for setting, times in DRAWINGS.items():
        assert drawings(setting, 256, 512)["held_out"] == times * 512
        assert f"{times} times as many at {setting}" in more_drawings()
