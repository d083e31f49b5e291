"""Digests of everything that determines how a text becomes tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ...common.checksum import hash_json


def identify_tokenizer(tokenizer: Any, stop_ids: Iterable[int]) -> dict[str, Any]:
    """Hash everything that determines tokenization and the end of an answer.

    Args:
        tokenizer: a transformers tokenizer with the chat template set.
        stop_ids: tokens that end an answer.

    Returns:
        `tokenizer` and `chat_template`, digests, and `stop_ids`, sorted.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)  # only the fast ones have it
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    # Padding and truncation are state of the last call, not rules.
    rules = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    return {
        "tokenizer": hash_json(rules),
        "chat_template": hash_json(tokenizer.chat_template),
        "stop_ids": sorted(stop_ids),
    }
