"""How quantized weights lie on disk: one module per checkpoint format, and the table of them."""

from collections.abc import Mapping
from typing import Any

from .awq import AWQ
from .compressed_tensors import CompressedTensors
from .format import Contents, Format
from .gptq import GPTQ, form_of

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
"""Values of `quant_method` that are read."""
AUTO = "auto"
"""Stands for the first of `PREFERRED` that can hold what is to be written."""
PREFERRED = ("gptq", "compressed-tensors")


def format_of(config: Mapping[str, Any]) -> Format:
    """The format that a `quantization_config` speaks of.

    Raises:
        ValueError: it is none of ours.
    """
    method = config.get("quant_method")
    if method not in METHODS:
        raise ValueError(f"quant_method is {method!r}; allowed are {', '.join(METHODS)}")
    return FORMATS[form_of(config) if method == "gptq" else method]


def find_format(contents: Contents, name: str = AUTO) -> tuple[Format, str]:
    """The format of a name; for ``auto`` the first of `PREFERRED` that can hold the contents.

    Returns:
        The format, and why a preferred one was passed over (empty if none was). If none can hold
        the contents it is the last one, and the reasons are those of all.

    Raises:
        ValueError: the name is unknown.
    """
    if name != AUTO:
        if name not in FORMATS:
            allowed = ", ".join((AUTO, *FORMATS))
            raise ValueError(f"format {name!r} is unknown; allowed are {allowed}")
        return FORMATS[name], ""
    reasons = []
    for candidate in PREFERRED:
        reason = FORMATS[candidate].why_not(contents)
        if reason is None:
            break
        reasons.append(f"format {candidate}: {reason}")
    return FORMATS[candidate], "; ".join(reasons)


def choose_format(contents: Contents, name: str = AUTO) -> Format:
    """As `find_format`, for contents that are to be written.

    Raises:
        ValueError: the name is unknown, or the format cannot hold this; with ``auto`` none can.
    """
    format, passed_over = find_format(contents, name)
    if reason := format.why_not(contents):
        raise ValueError(passed_over or f"format {format.name}: {reason}")
    return format
