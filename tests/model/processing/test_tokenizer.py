"""Tokenizers that can be used, and those that belong to another model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CHAT_TEMPLATE, SPECIAL_TOKENS, TOKEN_ID, WriteCheckpoint

from vlpress.model.loading import resolve_model
from vlpress.model.processing.processor import Processor
from vlpress.model.processing.tokenizer import read_stop_ids

LAST = max(TOKEN_ID.values())
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 7031645\n"


@pytest.fixture
def folder(tmp_path: Path, write_checkpoint: WriteCheckpoint) -> Path:
    return write_checkpoint(tmp_path / "model")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    change(content)
    path.write_text(json.dumps(content))


def refused(folder: Path) -> str:
    """The message of one line that the folder is refused with."""
    with pytest.raises((ValueError, OSError)) as caught:
        Processor.from_folder(folder)
    message = str(caught.value)
    assert str(folder) in message and len(message.splitlines()) == 1
    return message


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json.*vocab\.json"):
        Processor.from_folder(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"x"', LFS, b"\xff", b"[" * 10**5])
@pytest.mark.parametrize(
    "file",
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"],
)
def test_files_that_are_no_json_object(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    assert file in refused(folder)
    if content == LFS:
        assert "git lfs pull" in refused(folder)


@pytest.mark.parametrize("content", [b"", b"[]", LFS])
@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_damaged_vocabulary_files(folder: Path, file: str, content: bytes) -> None:
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "added_tokens.json").write_text(json.dumps(TOKEN_ID))
    edit(folder / "tokenizer_config.json", lambda it: it.update(tokenizer_class="Qwen2Tokenizer"))
    sound = Processor.from_folder(folder).tokenizer.encode("a b")
    (folder / file).write_bytes(content)
    try:
        assert Processor.from_folder(folder).tokenizer.encode("a b") == sound
    except ValueError:
        message = refused(folder)
        assert content != LFS or (file in message and "git lfs pull" in message)
    assert file == "merges.txt" or file in refused(folder)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("tokenizer_config.json", "eos_token", 5),
        ("tokenizer_config.json", "eos_token", ["<|im_end|>"]),
        ("tokenizer_config.json", "added_tokens_decoder", {"abc": {"content": "x"}}),
        ("tokenizer_config.json", "added_tokens_decoder", {"1": 5}),
        ("tokenizer_config.json", "added_tokens_decoder", []),
        ("tokenizer_config.json", "tokenizer_class", 5),
        ("tokenizer_config.json", "extra_special_tokens", 5),
        ("tokenizer_config.json", "model_max_length", "long"),
        ("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["own.Tokenizer", None]}),
        ("tokenizer_config.json", "chat_control_tokens", 5),
        ("tokenizer.json", "model", None),
        ("tokenizer.json", "model", {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}),
        ("tokenizer.json", "added_tokens", 5),
        ("tokenizer.json", "added_tokens", []),
        ("tokenizer.json", "pre_tokenizer", {"type": "Nothing"}),
        ("tokenizer.json", "version", 7),
    ],
)
def test_fields_of_a_wrong_type_are_read_or_refused_in_a_line(
    folder: Path, file: str, key: str, value: object
) -> None:
    sound = Processor.from_folder(folder).tokenizer.encode("a b")
    edit(folder / file, lambda content: content.update({key: value}))
    try:
        found = Processor.from_folder(folder).tokenizer.encode("a b")
    except (ValueError, OSError):
        refused(folder)
    else:
        assert found == sound


def test_a_config_that_transformers_cannot_read(folder: Path) -> None:
    edit(folder / "config.json", lambda content: content.update(eos_token_id="<|im_end|>"))
    message = refused(folder)
    assert str(folder / "config.json") in message and "eos_token_id" in message


def test_code_of_the_folder_is_neither_run_nor_asked_about(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(_prompt: str = "") -> str:
        raise AssertionError("asks on the terminal")

    monkeypatch.setattr("builtins.input", asked)
    (folder / "own.py").write_text("raise SystemExit(3)")
    own = {"auto_map": {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}}
    edit(folder / "tokenizer_config.json", lambda content: content.update(own))
    edit(
        folder / "tokenizer_config.json",
        lambda content: content.update(tokenizer_class="OwnTokenizer"),
    )
    try:
        Processor.from_folder(folder)
    except ValueError:
        refused(folder)


def test_a_folder_without_tokenizer_config(tmp_path: Path) -> None:
    for file in resolve_model("tiny").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = Processor.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    text = [{"role": "user", "content": "How many circles are there?"}]
    assert Processor.from_folder(tmp_path).encode(text).input_ids.tolist() == (
        whole.encode(text).input_ids.tolist()
    )
    assert Processor.from_folder(tmp_path).stop_ids == whole.stop_ids


def add_token(content: dict[str, Any], token_id: int) -> None:
    content["added_tokens"].append(
        {**content["added_tokens"][0], "id": token_id, "content": "<new>"}
    )


def test_more_ids_than_the_embedding_has_rows(folder: Path) -> None:
    edit(folder / "config.json", lambda content: _set_vocab_size(content, LAST + 1))
    Processor.from_folder(folder)
    edit(folder / "tokenizer.json", lambda content: add_token(content, LAST + 1))
    message = refused(folder)
    assert str(LAST + 1) in message and "<new>" in message
    edit(folder / "config.json", lambda content: _set_vocab_size(content, LAST + 2))
    Processor.from_folder(folder)


def _set_vocab_size(content: dict[str, Any], size: int) -> None:
    content.get("text_config", content)["vocab_size"] = size


@pytest.mark.parametrize("key", ["extra_special_tokens", "additional_special_tokens"])
def test_tokens_that_the_settings_add_count_too(folder: Path, key: str) -> None:
    edit(folder / "config.json", lambda content: _set_vocab_size(content, LAST + 1))
    edit(folder / "tokenizer_config.json", lambda content: content.update({key: ["<new>"]}))
    message = refused(folder)
    assert f"{LAST + 1} rows" in message and "<new>" in message


@pytest.mark.parametrize("token", ["<|im_end|>", "<|image_pad|>", "<|video_pad|>"])
def test_a_tokenizer_without_a_needed_token(folder: Path, token: str) -> None:
    index = SPECIAL_TOKENS.index(token)
    edit(
        folder / "tokenizer.json",
        lambda content: content["added_tokens"][index].update(content="<|other|>"),
    )
    edit(folder / "tokenizer_config.json", lambda content: content.update(eos_token="<|im_start|>"))
    assert token in refused(folder)


@pytest.mark.parametrize("field", ["image_token_id", "video_token_id"])
def test_ids_of_config_that_are_not_the_tokenizers(folder: Path, field: str) -> None:
    edit(folder / "config.json", lambda content: content.update({field: 7}))
    message = refused(folder)
    assert f"{field} in config.json is 7" in message


@pytest.mark.parametrize(
    ("eos", "ids"),
    [(7, (7,)), ([7, 9], (7, 9)), (7.0, (7,)), (None, ()), ([], ()), (0, (0,)), (99, (99,))],
)
def test_stop_ids(tmp_path: Path, eos: object, ids: tuple[int, ...]) -> None:
    assert read_stop_ids(tmp_path, 100) == ()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert read_stop_ids(tmp_path, 100) == ids


@pytest.mark.parametrize(
    "eos",
    [
        "<|im_end|>",
        "7",
        ["<|im_end|>"],
        [7, None],
        [[7]],
        {"id": 7},
        True,
        7.5,
        -1,
        100,
        [7, 100],
        10**30,
        float("nan"),
        float("inf"),
    ],
)
def test_stop_ids_that_are_none(tmp_path: Path, eos: object) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id") as caught:
        read_stop_ids(tmp_path, 100)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"null", b"[]", b"{", b"", LFS])
def test_generation_settings_that_are_no_object(folder: Path, content: bytes) -> None:
    (folder / "generation_config.json").write_bytes(content)
    assert "generation_config.json" in refused(folder)
