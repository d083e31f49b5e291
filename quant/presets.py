"""Recipes that have a name, as plain data."""

from typing import Any

from .steps import DECODER, Method


def _preset(name: str, method: Method, bits: int) -> dict[str, Any]:
    return {
        "name": name,
        "step": [{"method": method, "bits": bits, "group_size": 128, "targets": [DECODER]}],
    }


HEADS: dict[str, dict[str, Any]] = {
    "w8a16": {"method": "gptq", "bits": 8, "group_size": 128, "targets": ["lm_head"]},
    "w8a16-rtn": {"method": "rtn", "bits": 8, "group_size": 128, "targets": ["lm_head"]},
}
"""What may become of an output head that has a weight of its own."""

PRESETS: dict[str, dict[str, Any]] = {
    "w4a16": _preset("w4a16", "gptq", 4),
    "w8a16": _preset("w8a16", "gptq", 8),
    "w3a16": _preset("w3a16", "gptq", 3),
    "w4a16-rtn": _preset("w4a16-rtn", "rtn", 4),
    "w8a16-rtn": _preset("w8a16-rtn", "rtn", 8),
    "w3a16-rtn": _preset("w3a16-rtn", "rtn", 3),
}
