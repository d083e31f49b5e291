from __future__ import annotations

import subprocess
from pathlib import Path

import check_commits
import pytest


@pytest.mark.parametrize(
    "subject",
    [
        "Add a glossary",
        "Read and write files atomically",
        "Process groups of unequal size",
        "Embed the fonts in the report",
        "Bring GPTQ and AWQ to the same interface",
        "Re-export the recipe",
        "x".join(["Fix ", "x" * 67]),
    ],
)
def test_imperative_subjects_with_one_idea(subject: str) -> None:
    assert check_commits.faults(subject) == []


@pytest.mark.parametrize(
    ("subject", "named"),
    [
        ("Adds a glossary", "'Adds'"),
        ("Added a glossary", "'Added'"),
        ("Adding a glossary", "'Adding'"),
        ("A glossary", "'A'"),
        ("It reads files", "'It'"),
        ("Kernel for AVX2", "'Kernel'"),
        ("Weights are tiled", "'Weights'"),
        ("add a glossary", "'add'"),
        ("docs: add a glossary", "'docs:'"),
        ("W4A8 is faster", "'W4A8'"),
        ("Add a glossary; fix a link", "';'"),
        ("Add a glossary and fix a link", "'and fix'"),
        ("Fix " + "x" * 69, "73 characters, at most 72"),
        ("", "empty"),
    ],
)
def test_other_subjects(subject: str, named: str) -> None:
    (reason,) = check_commits.faults(subject)
    assert named in reason


class Repository:
    """A repository in an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
        command = ["git", "-C", str(self.folder), *identity, "-c", "commit.gpgsign=false"]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self, subject: str) -> str:
        self.git("commit", "--quiet", "--allow-empty", "--message", subject)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return Repository(tmp_path)


def test_subjects_after_the_base_are_checked(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    base = repository.commit("Wrong before the base; ignored")
    repository.commit("Add a table")
    assert check_commits.main([base]) == 0
    assert "1 checked, 0 to reword" in capsys.readouterr().out
    wrong = repository.commit("Tables are sorted")
    assert check_commits.main([base]) == 1
    output = capsys.readouterr().out
    assert f"{wrong[:7]} Tables are sorted" in output and "2 checked, 1 to reword" in output


def test_default_base_is_the_merge_base_with_the_remote_main(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    repository.commit("Begun")
    assert check_commits.main([]) == 0
    assert "origin/main" in capsys.readouterr().out
    repository.git("update-ref", "refs/remotes/origin/main", "HEAD")
    repository.commit("Finished")
    assert check_commits.main([]) == 1
    assert "1 checked, 1 to reword" in capsys.readouterr().out


def test_merge_commits_are_skipped(repository: Repository) -> None:
    base = repository.commit("Add a table")
    repository.git("switch", "--quiet", "--create", "side")
    repository.commit("Add a column")
    repository.git("switch", "--quiet", "main")
    repository.commit("Add a row")
    repository.git("merge", "--quiet", "--no-ff", "--message", "Merging side", "side")
    assert check_commits.main([base]) == 0


def test_unknown_base(repository: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    repository.commit("Add a table")
    assert check_commits.main(["nonsense"]) == 2
    assert "'nonsense'" in capsys.readouterr().err
