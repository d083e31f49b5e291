"""Upload of a checkpoint to a hub on loopback."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from fake_hub import COMMIT, TOKEN, FakeHub
from format_files import checkpoint, recipe
from typer.testing import CliRunner

from vlpress.cli.main import app
from vlpress.quant.checkpoint.push import push_checkpoint


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with FakeHub() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        yield server


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push")
    return checkpoint(folder, recipe(), "compressed-tensors")[2]


def test_all_files_arrive_but_those_of_this_machine(quantized: Path, hub: FakeHub) -> None:
    (quantized / "work.json").write_text("{}")
    pushed = CliRunner().invoke(app, ["push", str(quantized), "me/small", "--json"])
    assert json.loads(pushed.stdout) == {
        "repo": "me/small",
        "url": f"{hub.url}/me/small",
        "commit": COMMIT,
    }
    sent = {path.name: path.read_bytes() for path in quantized.iterdir()}
    assert hub.files == {name: data for name, data in sent.items() if name != "work.json"}
    assert "README.md" in hub.files
    assert hub.repositories[0]["visibility"] == "private" and hub.commits == ["main"]


def test_a_second_push_sends_no_weights(quantized: Path, hub: FakeHub) -> None:
    push_checkpoint(quantized, "me/small", public=True)
    sent = dict(hub.uploads)
    push_checkpoint(quantized, "me/small", revision="v2")
    assert sent and hub.uploads == sent
    assert hub.repositories[0]["visibility"] == "public" and hub.commits == ["main", "v2"]


def test_a_refusal_is_one_line(
    quantized: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused = CliRunner().invoke(app, ["push", str(quantized), "me/small"])
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
    assert hub.url in refused.stderr and "HF_TOKEN" in refused.stderr
    assert not hub.files


def test_a_hub_that_does_not_answer(quantized: Path) -> None:
    with pytest.raises(ConnectionError, match=r"^http://127\.0\.0\.1:9 .*HF_ENDPOINT"):
        push_checkpoint(quantized, "me/small", endpoint="http://127.0.0.1:9")


def test_only_quantized_checkpoints_are_pushed(quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        push_checkpoint(tmp_path / "none", "me/small")
    with pytest.raises(ValueError, match="is not quantized"):
        push_checkpoint(quantized.parent / "source", "me/small")
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"give its checkpoint, .*run/checkpoint$"):
        push_checkpoint(tmp_path / "run", "me/small")
    with pytest.raises(ValueError, match="'a/b/c' is not OWNER/NAME"):
        push_checkpoint(quantized, "a/b/c")
