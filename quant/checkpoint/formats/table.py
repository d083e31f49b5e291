"""The table of checkpoint formats, by their names in options."""

from collections.abc import Mapping
from typing import Any

from ....model.families import family_of
from ..safetensors_folder.folder_format import FolderFormat
from .awq import AWQ
from .compressed_tensors import CompressedTensors
from .contents import Contents
from .format import Format, refusal
from .fp8 import BlockFP8
from .gptq import GPTQ

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        GPTQ("gptq", zero_offset=True),
        GPTQ("gptq_v2", zero_offset=False),
        CompressedTensors(),
        AWQ(),
        BlockFP8(),
    )
}
AUTO = "auto"
"""Selects the first of `PREFERRED` that can hold the contents."""
PREFERRED = ("compressed-tensors", "gptq")
"""The format that most engines load comes first, see `engines.py`; a family may have its own."""


def format_of(config: Mapping[str, Any]) -> FolderFormat:
    """Return the format of a `quantization_config`.

    Raises:
        ValueError: its `quant_method` or version is not supported.
    """
    method = config.get("quant_method")
    readable = [format for format in FORMATS.values() if isinstance(format, FolderFormat)]
    for format in readable:
        if format.quant_method == method and format.reads(config):
            return format
    methods = dict.fromkeys(format.quant_method for format in readable)
    raise ValueError(f"quant_method is {method!r}; allowed: {', '.join(methods)}")


def find_format(contents: Contents, name: str = AUTO) -> tuple[Format, str]:
    """Return a format by name; for `auto` the first of `PREFERRED` that can hold the contents.

    Returns:
        The format, and the reasons against the preferred ones before it (empty if it is the first).
        If none can hold the contents: the last one that has such kinds of weights, if any, and the
        reasons against all.

    Raises:
        ValueError: the name is unknown.
    """
    if name != AUTO:
        if name not in FORMATS:
            allowed = ", ".join((AUTO, *FORMATS))
            raise ValueError(f"format {name!r} is unknown; allowed: {allowed}")
        return FORMATS[name], ""
    reasons: list[str] = []
    kinds = {scheme.kind for scheme in contents.schemes.values()}
    preferred = family_of(contents.config).formats or PREFERRED
    for candidate in preferred:
        reason = refusal(FORMATS[candidate], contents)
        if reason is None:
            return FORMATS[candidate], "; ".join(reasons)
        reasons.append(f"format {candidate}: {reason}")
    suited = [name for name in preferred if kinds <= set(FORMATS[name].kinds)]
    return FORMATS[(suited or preferred)[-1]], "; ".join(reasons)


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
