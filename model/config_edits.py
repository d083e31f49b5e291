"""Changes of a `config.json` that keep its form, flat or nested."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config import ModelConfig

TEXT = "text_config"


def with_fields(config: ModelConfig, section: str, fields: Mapping[str, Any]) -> ModelConfig:
    """Return the config with other values of some fields; the source's config stays as it is.

    Args:
        config: of a model.
        section: key of an object in config.json, or "" for the decoder's fields, which are in
            `text_config` or at the top level. Nested files that repeat them at the top level keep
            doing so.
        fields: new values by key.

    Raises:
        ValueError: the model does not allow a value.
    """
    raw = dict(config.raw)
    if not section and isinstance(raw.get(TEXT), Mapping):
        section = TEXT
        raw |= {key: value for key, value in fields.items() if key in raw}
    raw |= {section: {**raw[section], **fields}} if section else fields
    return ModelConfig.from_dict(raw)
