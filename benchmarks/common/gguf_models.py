"""Models for the comparisons with llama.cpp, which cannot compute the built-in ones.

Its windows of attention and the axes of its rotary frequencies are fixed in its code, and so are
the patterns that split texts. These models have the weights of built-in ones, and other entries in
their configuration.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlpress.model.loading import resolve_model
from vlpress.quant.deployment.gguf.tokenizer import PATTERNS


@dataclass(frozen=True)
class Model:
    """Weights of a built-in model under a configuration that llama.cpp computes."""

    name: str
    source: str
    config: Mapping[str, Any]
    """Entries of config.json that are replaced, nested ones one by one."""


MODELS = (
    Model("tiny, windows of 112", "tiny", {"vision_config": {"window_size": 112}}),
    Model(
        "tiny3, sections 11 11 10",
        "tiny3",
        {"text_config": {"rope_scaling": {"mrope_section": [11, 11, 10]}}},
    ),
    Model("tiny3.5", "tiny3.5", {}),
)


def make_model(model: Model, folder: Path) -> Path:
    """Copy a built-in model, with other entries of its configuration and Qwen2's pattern."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(resolve_model(model.source), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(_merged(config, model.config), indent=2))
    use_known_pattern(folder)
    return folder


def use_known_pattern(folder: Path) -> None:
    """Let the tokenizer of a built-in model split texts by Qwen2's pattern."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    pattern = next(pattern for pattern, name in PATTERNS.items() if name == "qwen2")
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    path.write_text(json.dumps(tokenizer, ensure_ascii=False))


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    nested = {k: _merged(values[k], v) for k, v in changes.items() if isinstance(v, Mapping)}
    return {**values, **changes, **nested}
