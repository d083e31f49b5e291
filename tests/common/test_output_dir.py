import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlpress.common.output_dir import MARKER, claim, claim_result, is_same, sole_use, staged_result
from vlpress.model.weight_files import digest_folder

OWN = ("checkpoint", "plan.json")


def work_in(out: Path) -> None:
    (out / "checkpoint").mkdir()
    (out / "checkpoint" / "config.json").write_text("{}")
    (out / "plan.json").write_text("[]")


def test_new_folder_is_created_with_its_marker(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    assert claim(out, {"seed": 0}, own=OWN) is False
    assert json.loads((out / MARKER).read_text()) == {"fingerprint": {"seed": 0}}


def test_same_fingerprint_resumes_and_keeps_everything(tmp_path: Path) -> None:
    claim(tmp_path, {"seed": 0, "pixels": (1, 2)}, own=OWN)
    work_in(tmp_path)
    assert claim(tmp_path, {"seed": 0, "pixels": (1, 2)}, own=OWN) is True
    assert (tmp_path / "checkpoint" / "config.json").exists()


def test_other_fingerprint_is_refused_by_name_and_value(tmp_path: Path) -> None:
    claim(tmp_path, {"seed": 0, "recipe": "w4a16"}, own=OWN)
    work_in(tmp_path)
    with pytest.raises(ValueError, match=r"holds other work \(seed: 0 -> 1\).*--overwrite"):
        claim(tmp_path, {"seed": 1, "recipe": "w4a16"}, own=OWN)
    assert (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("flag", ["overwrite", "fresh"])
def test_only_own_files_are_discarded(tmp_path: Path, flag: str) -> None:
    claim(tmp_path, {"seed": 0}, own=OWN)
    work_in(tmp_path)
    (tmp_path / "notes.txt").write_text("text")
    flags: dict[str, Any] = {flag: True}
    assert claim(tmp_path, {"seed": 1}, own=OWN, **flags) is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", MARKER]
    assert json.loads((tmp_path / MARKER).read_text()) == {"fingerprint": {"seed": 1}}


def test_overwrite_resumes_the_same_work_and_fresh_does_not(tmp_path: Path) -> None:
    claim(tmp_path, {"seed": 0}, own=OWN)
    work_in(tmp_path)
    assert claim(tmp_path, {"seed": 0}, own=OWN, overwrite=True) is True
    assert (tmp_path / "plan.json").exists()
    assert claim(tmp_path, {"seed": 0}, own=OWN, fresh=True) is False
    assert not (tmp_path / "plan.json").exists()


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("text")
    with pytest.raises(ValueError, match=r"not written by this command \(it holds thesis.tex\)"):
        claim(tmp_path, {"seed": 0}, own=OWN, overwrite=True, fresh=True)
    assert (tmp_path / "thesis.tex").read_text() == "text"


def test_unfinished_marker_of_a_killed_process_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "work.json.part").write_text('{"finge')
    assert claim(tmp_path, {"seed": 0}, own=OWN) is False
    assert [path.name for path in tmp_path.iterdir()] == [MARKER]


def test_file_as_output_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        claim(path, {}, own=OWN)


def test_broken_marker_names_the_file(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text("{")
    with pytest.raises(ValueError, match=r"work\.json: not valid JSON .*--fresh"):
        claim(tmp_path, {}, own=OWN)
    assert claim(tmp_path, {}, own=OWN, fresh=True) is False


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


def test_finished_result_is_recognised_by_its_fingerprint(tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    assert not claim_result(out, {"seed": 0})
    with staged_result(out, {"seed": 0}) as staged:
        work_in_new(staged)
        assert not out.exists()
    assert is_same(out, {"seed": 0}) and not is_same(out, {"seed": 1})
    assert claim_result(out, {"seed": 0})
    assert not claim_result(out, {"seed": 0}, fresh=True)
    with pytest.raises(ValueError, match=r"holds other work \(seed: 0 -> 1\)"):
        claim_result(out, {"seed": 1})
    assert not claim_result(out, {"seed": 1}, overwrite=True)
    assert (out / "config.json").exists()


def test_a_new_result_replaces_the_whole_folder(tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    for name in ("old.json", "new.json"):
        with staged_result(out, {"name": name}) as staged:
            work_in_new(staged, name)
    assert sorted(path.name for path in out.iterdir()) == ["new.json", MARKER]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_failed_result_leaves_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    with staged_result(out, {"seed": 0}) as staged:
        work_in_new(staged)
    with pytest.raises(RuntimeError), staged_result(out, {"seed": 1}) as staged:
        work_in_new(staged, "half.json")
        raise RuntimeError
    assert is_same(out, {"seed": 0})
    with staged_result(out, {"seed": 2}) as staged:
        work_in_new(staged)
    assert not (out / "half.json").exists()


def work_in_new(folder: Path, name: str = "config.json") -> None:
    (folder / name).write_text("{}")


HOLD = """
import sys, pathlib
from vlpress.common.output_dir import sole_use
with sole_use(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def lock_in_process(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(out)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_folder_in_use_is_refused_until_it_is_free(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    other = lock_in_process(out)
    with pytest.raises(ValueError, match=r"new/out is in use by another vlpress; wait for it"):
        with sole_use(out):
            raise AssertionError("never reached")
    with sole_use(tmp_path / "new" / "elsewhere"):
        pass
    other.communicate("")
    with sole_use(out):
        assert [path.name for path in out.parent.iterdir()] == [".out.vlpress-lock"]
    assert list(out.parent.iterdir()) == []


def test_a_killed_command_releases_its_lock(tmp_path: Path) -> None:
    other = lock_in_process(tmp_path / "out")
    other.kill()
    other.wait()
    with sole_use(tmp_path / "out"):
        pass


def test_errors_propagate_and_release_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), sole_use(tmp_path / "out"):
        raise KeyboardInterrupt
    with sole_use(tmp_path / "out"):
        pass


def test_an_impossible_output_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("data")
    message = r"output folder .*file/new/out cannot be made \(.*\); give another folder"
    with pytest.raises(ValueError, match=message), sole_use(tmp_path / "file" / "new" / "out"):
        raise AssertionError("never reached")
