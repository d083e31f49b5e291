from pathlib import Path

import pytest

from vlpress.model.resolve import find_local_model


def test_hub_ids_and_folders_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "w4a16").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_local_model("out/w4a16") == Path("out/w4a16")
    for hub_id in ("Qwen/Qwen2.5-VL-3B-Instruct", "out/w8a16"):
        assert find_local_model(hub_id) is None


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("./out/w4a16s", "out/w4a16?"),
        ("out/w4a16s", "out/w4a16?"),
        ("~/nowhere/model", "give a checkpoint folder"),
        ("/nowhere/model", "give a checkpoint folder"),
        ("a/b/c", "give a checkpoint folder"),
        ("tinny", "did you mean tiny"),
        ("tiny-outlier", "tiny-outliers"),
    ],
)
def test_mistyped_paths_are_refused_with_the_near_miss(
    name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "w4a16").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder") as refused:
        find_local_model(name)
    assert name in str(refused.value) and hint in str(refused.value)
