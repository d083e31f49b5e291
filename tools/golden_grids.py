"""Write `tests/golden/grids.json`: codes of small float formats by ml_dtypes.

    pip install ml_dtypes numpy
    python tools/golden_grids.py tests/golden/grids.json

For each format all finite numbers, then numbers with their codes: halfway between two neighbours,
next to that on either side, around zero and around the largest number. E4M3 and E5M2 of ml_dtypes
do not saturate, so their inputs stay below what rounds to NaN or infinity.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

FORMATS = {
    "fp8": ml_dtypes.float8_e4m3fn,
    "fp8-e5m2": ml_dtypes.float8_e5m2,
    "nvfp4": ml_dtypes.float4_e2m1fn,
}


def main() -> None:
    """Write the file named by the first argument."""
    out = Path(sys.argv[1])
    golden: dict[str, Any] = {"ml_dtypes": ml_dtypes.__version__}
    golden |= {name: vectors(kind) for name, kind in FORMATS.items()}
    golden["powers"] = powers()
    out.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


def vectors(kind: Any) -> dict[str, Any]:
    """Return the numbers of a format by code, and rounded inputs with their codes."""
    width = 16 if kind is ml_dtypes.float4_e2m1fn else 256
    numbers = np.arange(width, dtype=np.uint8).view(kind).astype(np.float32)
    finite = {int(code): float(value) for code, value in enumerate(numbers) if np.isfinite(value)}
    levels = np.unique(np.array([*finite.values()], dtype=np.float32))
    middles = ((levels[1:].astype(np.float64) + levels[:-1]) / 2).astype(np.float32)
    low, high = np.float32(-np.inf), np.float32(np.inf)
    tiny = np.float32(2.0**-30)
    inputs = np.concatenate(
        [
            middles,
            np.nextafter(middles, low),
            np.nextafter(middles, high),
            levels * np.float32(1 + 2.0**-20),
            np.array([tiny, -tiny, 0.0], dtype=np.float32),
        ]
    )
    inputs = inputs[np.abs(inputs) <= levels[-1]]
    codes = inputs.astype(kind).view(np.uint8)
    return {
        "numbers": finite,
        "inputs": [float(value) for value in inputs],
        "codes": [int(code) & (width - 1) for code in codes],
    }


def powers() -> dict[int, float]:
    """Return the numbers of E8M0 by code."""
    numbers = np.arange(255, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu)
    return {code: float(value) for code, value in enumerate(numbers.astype(np.float64))}


if __name__ == "__main__":
    main()
