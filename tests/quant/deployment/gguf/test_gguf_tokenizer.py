"""Keys of the tokenizer: every row of the embedding has a token, and patterns are known by name."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from gguf_files import exportable, read_file
from tiny_models import CHAT_TEMPLATE, SPECIAL_TOKENS, TOKEN_ID, write_checkpoint_folder

from vlpress.model.config import ModelConfig
from vlpress.model.loading import resolve_model
from vlpress.quant.api import export
from vlpress.quant.deployment.gguf.tokenizer import PATTERNS, pattern_name, tokenizer_keys


def split_by(pattern: str) -> dict[str, object]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]}


def test_every_row_has_a_token_and_a_type(tmp_path: Path) -> None:
    model, folder = exportable("qwen2_vl", tmp_path / "model")
    export(checkpoint=folder, out=tmp_path / "out", format="gguf")
    keys, _, _ = read_file(tmp_path / "out" / "out.gguf")
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == model.config.text.vocab_size == 288
    kinds = gguf.TokenType
    assert types[:256] == [kinds.NORMAL] * 256
    assert tuple(tokens[256:263]) == SPECIAL_TOKENS and set(types[256:263]) == {kinds.CONTROL}
    assert "th" in tokens[:256]
    assert tokens[263:265] == ["[PAD263]", "[PAD264]"] and set(types[263:]) == {kinds.UNUSED}
    assert keys["tokenizer.ggml.merges"] == ["t h"]
    assert keys["tokenizer.ggml.model"] == "gpt2" and keys["tokenizer.ggml.pre"] == "gpt-2"
    assert keys["tokenizer.ggml.eos_token_id"] == TOKEN_ID["<|im_end|>"]
    assert keys["tokenizer.ggml.padding_token_id"] == TOKEN_ID["<|endoftext|>"]
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert keys["tokenizer.chat_template"] == CHAT_TEMPLATE


def test_a_tokenizer_without_merges_is_refused(tmp_path: Path) -> None:
    model, _ = exportable("qwen2_vl", tmp_path / "model")
    folder = write_checkpoint_folder(tmp_path / "other", model)
    with pytest.raises(ValueError, match="no merges"):
        tokenizer_keys(folder, model.config)


def test_merges_keep_their_order() -> None:
    folder = resolve_model("tiny")
    raw = json.loads((folder / "tokenizer.json").read_text())
    other = json.loads(json.dumps(raw))
    (pattern,) = (name for name, known in PATTERNS.items() if known == "qwen2")
    other["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    merges = [" ".join(pair) for pair in raw["model"]["merges"]]
    assert pattern_name(other["pre_tokenizer"], folder) == "qwen2"
    assert len(merges) > 500


@pytest.mark.parametrize("pattern", PATTERNS)
def test_known_patterns(pattern: str, tmp_path: Path) -> None:
    assert pattern_name(split_by(pattern), tmp_path) == PATTERNS[pattern]


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        (split_by(r"\p{N}{1,3}"), r"\\p\{N\}\{1,3\}"),
        ({"type": "Whitespace"}, "Whitespace"),
        ({}, "None"),
    ],
)
def test_other_patterns_are_refused(steps: dict[str, object], named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{named}.*qwen2"):
        pattern_name(steps, tmp_path)


def test_the_built_in_tokenizer_has_a_pattern_of_its_own() -> None:
    folder = resolve_model("tiny")
    with pytest.raises(ValueError, match=r"\[A-Z\]\?\[a-z\]\+"):
        tokenizer_keys(folder, ModelConfig.from_folder(folder))
