"""Token ids in the JSON files of a checkpoint: where they are, and their new values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...common.validation import shown
from .kept_tokens import KeptTokens

ID_FIELD = re.compile(r"(.*_)?token_(id|ids|index)")
"""Fields with the id of a token, or a list of ids."""
SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
"""Fields with tokens that are never generated; removed ones need no entry any more."""
NOT_UNDERSTOOD = ("forced_decoder_ids", "sequence_bias", "force_words_ids")
"""Fields of generation settings with token ids in forms that are not rewritten."""
BY_ID = "added_tokens_decoder"
"""Field of tokenizer_config.json: descriptions of added tokens by their ids."""


def map_token_fields(data: Mapping[str, Any], kept: KeptTokens, at: str) -> dict[str, Any]:
    """Return the content of a JSON file with new token ids, in nested objects too.

    Null and negative ids, which mean "none", stay.

    Args:
        data: the content.
        kept: the kept tokens.
        at: name of the file, for messages.

    Raises:
        ValueError: an id is not one of a kept token, or a field with ids is not understood.
    """
    mapped = {}
    for key, value in data.items():
        where = f"{at}: {key}"
        if key in NOT_UNDERSTOOD and value:
            raise ValueError(
                f"{where} is {shown(value)}; prune_vocab does not rewrite it: remove the field"
            )
        if key == BY_ID and isinstance(value, Mapping):
            value = {str(_new(int(old), kept, where)): entry for old, entry in value.items()}
        elif key in SUPPRESSED:
            value = _kept_only(value, kept)
        elif ID_FIELD.fullmatch(key):
            value = _map(value, kept, where)
        elif isinstance(value, Mapping):
            value = map_token_fields(value, kept, f"{at}: {key}")
        mapped[key] = value
    return mapped


def _map(value: object, kept: KeptTokens, where: str) -> object:
    if isinstance(value, list):
        return [_map(item, kept, where) for item in value]
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or value < 0:
        return value
    return _new(value, kept, where)


def _new(old: int, kept: KeptTokens, where: str) -> int:
    if old not in kept.new_ids:
        raise ValueError(
            f"{where} has the id {old}, which is no token of the tokenizer that is always kept; "
            "take the file from the original checkpoint"
        )
    return kept.new_ids[old]


def _kept_only(value: object, kept: KeptTokens) -> object:
    """Map a list of ids, or of lists of ids, without the entries that have removed tokens."""
    if not isinstance(value, list):
        return value
    if all(isinstance(item, list) for item in value):
        sequences = [kept.translate(item) for item in value]
        return [ids for ids in sequences if ids is not None]
    return [kept.new_ids[item] for item in value if item in kept.new_ids]
