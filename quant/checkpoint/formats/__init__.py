"""Checkpoint formats of quantized weights: one module each, and their registry."""

from collections.abc import Mapping
from typing import Any

from .awq import AWQ
from .compressed_tensors import CompressedTensors
from .format import Contents, Format, refusal
from .gptq import GPTQ, version_of

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        GPTQ("gptq", zero_offset=True),
        GPTQ("gptq_v2", zero_offset=False),
        CompressedTensors(),
        AWQ(),
    )
}
METHODS = ("gptq", "compressed-tensors", "awq")
"""Supported values of `quant_method`."""
AUTO = "auto"
"""Selects the first of `PREFERRED` that can hold the contents."""
PREFERRED = ("compressed-tensors", "gptq")
"""The format that most engines load comes first, see `engines.py`."""


def format_of(config: Mapping[str, Any]) -> Format:
    """Return the format of a `quantization_config`.

    Raises:
        ValueError: its `quant_method` or version is not supported.
    """
    method = config.get("quant_method")
    if method not in METHODS:
        raise ValueError(f"quant_method is {method!r}; allowed: {', '.join(METHODS)}")
    return FORMATS[version_of(config) if method == "gptq" else method]


def find_format(contents: Contents, name: str = AUTO) -> tuple[Format, str]:
    """Return a format by name; for `auto` the first of `PREFERRED` that can hold the contents.

    Returns:
        The format, and the reasons against the preferred ones before it (empty if it is the first).
        If none can hold the contents: the last one, and the reasons against all.

    Raises:
        ValueError: the name is unknown.
    """
    if name != AUTO:
        if name not in FORMATS:
            allowed = ", ".join((AUTO, *FORMATS))
            raise ValueError(f"format {name!r} is unknown; allowed: {allowed}")
        return FORMATS[name], ""
    reasons = []
    for candidate in PREFERRED:
        reason = refusal(FORMATS[candidate], contents)
        if reason is None:
            break
        reasons.append(f"format {candidate}: {reason}")
    return FORMATS[candidate], "; ".join(reasons)


def choose_format(contents: Contents, name: str = AUTO) -> Format:
    """Return a format by name, as `find_format`, which can hold the contents.

    Raises:
        ValueError: the name is unknown, or the format (with `auto`: every preferred one) cannot
            hold the contents.
    """
    format, reasons = find_format(contents, name)
    if reason := refusal(format, contents):
        raise ValueError(reasons or f"format {format.name}: {reason}")
    return format
