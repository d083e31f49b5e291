"""Keys of the tokenizer: vocabulary, merges, special tokens and the chat template.

llama.cpp has the patterns that split a text before merges are applied in its code, by name
(`src/llama-vocab.cpp`); a file only names one. Another pattern gives other tokens for some texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....model.config import ModelConfig
from ....model.config_readers import text_section
from ....model.processing.tokenizer import load_tokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of tokens."""
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "|".join(
        [
            _CONTRACTIONS,
            r"[^\r\n\p{L}\p{N}]?\p{L}+",
            r"\p{N}",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            _TAIL,
        ]
    ): "qwen2",
    "|".join(
        [
            _CONTRACTIONS,
            r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
            r"\p{N}",
            r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
            _TAIL,
        ]
    ): "qwen35",
}
"""Names of llama.cpp by pattern."""
BYTE_LEVEL = "gpt-2"
"""Name of the pattern that the step `ByteLevel` has of its own."""


def tokenizer_keys(folder: Path, config: ModelConfig) -> dict[str, Any]:
    """Return the keys of a checkpoint's tokenizer, by their full names.

    Raises:
        FileNotFoundError: the folder has no tokenizer.
        ValueError: the tokenizer is unusable or not byte-level BPE, or llama.cpp does not have its
            pattern.
    """
    tokenizer = load_tokenizer(folder, config)
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    model = parts["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ValueError(f"{folder}: the tokenizer is no byte-level BPE, as those of Qwen are")
    if not model["merges"]:
        raise ValueError(
            f"{folder}: the tokenizer has no merges; llama.cpp does not load such a one"
        )
    tokens, types = _vocabulary(parts, config.text.vocab_size)
    keys: dict[str, Any] = {
        "model": "gpt2",
        "pre": pattern_name(parts.get("pre_tokenizer") or {}, folder),
        "tokens": tokens,
        "token_type": types,
        "merges": [_merge(each) for each in model["merges"]],
        "eos_token_id": tokenizer.eos_token_id,
        "padding_token_id": tokenizer.pad_token_id,
        "bos_token_id": text_section(config.raw)[0].get("bos_token_id"),
        "add_bos_token": False,
    }
    given = {f"tokenizer.ggml.{name}": value for name, value in keys.items() if value is not None}
    return {**given, "tokenizer.chat_template": tokenizer.chat_template}


def normalizes(folder: Path, config: ModelConfig) -> bool:
    """Whether the tokenizer normalizes texts, for instance to NFC, which llama.cpp does not do."""
    parts = json.loads(load_tokenizer(folder, config).backend_tokenizer.to_str())
    return parts.get("normalizer") is not None


def pattern_name(pre_tokenizer: Mapping[str, Any], folder: Path) -> str:
    """Return llama.cpp's name of the steps that split a text.

    Args:
        pre_tokenizer: as in tokenizer.json.
        folder: of the checkpoint, for the message.

    Raises:
        ValueError: llama.cpp does not have the pattern.
    """
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return BYTE_LEVEL
    pattern = steps[0].get("pattern", {}).get("Regex") if kinds == ["Split", "ByteLevel"] else None
    if pattern not in PATTERNS or steps[1].get("use_regex", True):
        raise ValueError(
            f"{folder}: the tokenizer splits texts by {pattern or kinds}, a pattern that llama.cpp "
            f"does not have; allowed: those of {', '.join(PATTERNS.values())} and {BYTE_LEVEL}; "
            "another engine must serve this model"
        )
    return PATTERNS[pattern]


def _vocabulary(parts: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return the text and type of every row of the embedding."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [UNUSED] * size
    for token, index in parts["model"]["vocab"].items():
        tokens[index], types[index] = token, NORMAL
    for added in parts["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return tokens, types


def _merge(pair: str | list[str]) -> str:
    return pair if isinstance(pair, str) else " ".join(pair)
