import json
from pathlib import Path

import pytest

from vlpress.common.output_dir import MARKER, claim, claim_result, is_same, place
from vlpress.model.weight_files import digest_folder

OURS = ("checkpoint", "plan.json")


def work_in(out: Path) -> None:
    (out / "checkpoint").mkdir()
    (out / "checkpoint" / "config.json").write_text("{}")
    (out / "plan.json").write_text("[]")


def test_new_folder_is_made_and_marked(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    assert claim(out, {"seed": 0}, ours=OURS) is False
    assert json.loads((out / MARKER).read_text()) == {"fingerprint": {"seed": 0}}


def test_same_fingerprint_resumes_and_keeps_everything(tmp_path: Path) -> None:
    claim(tmp_path, {"seed": 0, "pixels": (1, 2)}, ours=OURS)
    work_in(tmp_path)
    assert claim(tmp_path, {"seed": 0, "pixels": (1, 2)}, ours=OURS) is True
    assert (tmp_path / "checkpoint" / "config.json").exists()


def test_other_fingerprint_is_refused_by_name_and_value(tmp_path: Path) -> None:
    claim(tmp_path, {"seed": 0, "recipe": "w4a16"}, ours=OURS)
    work_in(tmp_path)
    with pytest.raises(ValueError, match=r"holds other work \(seed: 0 -> 1\).*--overwrite"):
        claim(tmp_path, {"seed": 1, "recipe": "w4a16"}, ours=OURS)
    assert (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("flag", ["overwrite", "fresh"])
def test_discards_only_what_is_ours(tmp_path: Path, flag: str) -> None:
    claim(tmp_path, {"seed": 0}, ours=OURS)
    work_in(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert claim(tmp_path, {"seed": 1}, ours=OURS, **{flag: True}) is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", MARKER]
    assert json.loads((tmp_path / MARKER).read_text()) == {"fingerprint": {"seed": 1}}


def test_overwrite_resumes_the_same_work_and_fresh_does_not(tmp_path: Path) -> None:
    claim(tmp_path, {"seed": 0}, ours=OURS)
    work_in(tmp_path)
    assert claim(tmp_path, {"seed": 0}, ours=OURS, overwrite=True) is True
    assert (tmp_path / "plan.json").exists()
    assert claim(tmp_path, {"seed": 0}, ours=OURS, fresh=True) is False
    assert not (tmp_path / "plan.json").exists()


def test_foreign_folder_is_never_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"not written by this command \(it holds thesis.tex\)"):
        claim(tmp_path, {"seed": 0}, ours=OURS, overwrite=True, fresh=True)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_marker_that_a_kill_left_unfinished_is_ours(tmp_path: Path) -> None:
    (tmp_path / "work.json.part").write_text('{"finge')
    assert claim(tmp_path, {"seed": 0}, ours=OURS) is False
    assert [path.name for path in tmp_path.iterdir()] == [MARKER]


def test_file_as_output_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        claim(path, {}, ours=OURS)


def test_broken_marker_names_the_file(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text("{")
    with pytest.raises(ValueError, match=r"work\.json: not valid JSON .*--fresh"):
        claim(tmp_path, {}, ours=OURS)
    assert claim(tmp_path, {}, ours=OURS, fresh=True) is False


def test_digest_follows_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 10)
    first = digest_folder(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".lock").write_text("")
    assert digest_folder(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 9 + b"\1")
    second = digest_folder(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "config2.json")
    assert len({first, second, digest_folder(tmp_path)}) == 3


def test_placed_result_is_found_the_same_or_other(tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    assert not claim_result(out, {"seed": 0})
    with place(out, {"seed": 0}) as staged:
        work_in_new(staged)
        assert not out.exists()
    assert is_same(out, {"seed": 0}) and not is_same(out, {"seed": 1})
    assert claim_result(out, {"seed": 0})
    assert not claim_result(out, {"seed": 0}, fresh=True)
    with pytest.raises(ValueError, match=r"holds other work \(seed: 0 -> 1\)"):
        claim_result(out, {"seed": 1})
    assert not claim_result(out, {"seed": 1}, overwrite=True)
    assert (out / "config.json").exists()


def test_placing_replaces_the_old_folder_whole(tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    for name in ("old.json", "new.json"):
        with place(out, {"name": name}) as staged:
            work_in_new(staged, name)
    assert sorted(path.name for path in out.iterdir()) == ["new.json", MARKER]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_failed_placing_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    with place(out, {"seed": 0}) as staged:
        work_in_new(staged)
    with pytest.raises(RuntimeError), place(out, {"seed": 1}) as staged:
        work_in_new(staged, "half.json")
        raise RuntimeError
    assert is_same(out, {"seed": 0})
    with place(out, {"seed": 2}) as staged:
        work_in_new(staged)
    assert not (out / "half.json").exists()


def work_in_new(folder: Path, name: str = "config.json") -> None:
    (folder / name).write_text("{}")
