from pathlib import Path

import pytest

from vlpress.common.near_misses import did_you_mean, is_typo, near_misses, near_paths


def test_near_misses_are_the_closest_names_first() -> None:
    names = ("w4a16", "w4a16-awq", "w4a16-gptaq", "w8a8")
    assert near_misses("W4A16-aqw", names)[0] == "w4a16-awq"
    assert near_misses("something else", names) == []


def test_question_lists_the_names() -> None:
    assert did_you_mean([]) == ""
    assert did_you_mean(["a"]) == " did you mean a?"
    assert did_you_mean(["a", "b", "c"]) == " did you mean a, b or c?"


def test_near_paths_are_written_like_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo" / "checkpoint").mkdir(parents=True)
    (tmp_path / "demo" / "checkpoints.txt").touch()
    monkeypatch.chdir(tmp_path)
    missing = Path("demo/checkpont")
    assert near_paths(missing, folders=True) == ["demo/checkpoint"]
    assert near_paths(missing) == ["demo/checkpoint", "demo/checkpoints.txt"]
    assert near_paths(tmp_path / "dmo", folders=True) == [str(tmp_path / "demo")]
    assert near_paths(Path("nowhere/checkpoint")) == []


@pytest.mark.parametrize(
    ("name", "allowed", "expected"),
    [
        ("out/checkpont", "out/checkpoint", True),
        ("out/chekcpoint", "out/checkpoint", True),
        ("Qwen/Qwen2.5-VL-3B", "Qwen/Qwen2.5-VL-7B", False),
        ("Qwen/Qwen2.5-VL", "Qwen/Qwen2.5-VL-AWQ", False),
        ("out/w4a16", "out/w8a16", False),
    ],
)
def test_a_typing_error_changes_two_letters_and_no_digit(
    name: str, allowed: str, expected: bool
) -> None:
    assert is_typo(name, allowed) == expected
