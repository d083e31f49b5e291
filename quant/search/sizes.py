"""Sizes with units, as users state them."""

from __future__ import annotations

import re

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
SIZE_PATTERN = r"\d+(\.\d+)?\s*([kKMG]?i?B)?"
SIZE_ALLOWED = "a number of bytes with a unit: 2.4GB, 900MB, 2GiB, 2400000000"


def parse_size(text: str) -> int:
    """Convert a size with a unit to bytes.

    Raises:
        ValueError: it is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in UNITS:
        raise ValueError(f"size {text!r}; allowed: {SIZE_ALLOWED}")
    whole, _, fraction = match[1].partition(".")
    unit = UNITS[match[2].upper()]
    return int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)
