"""Targets of quantized layers on a GPU, from given times."""

from __future__ import annotations

from typing import Any

import gpu_speed
import pytest


def row(kind: str, rows: int, seconds: float, share: float) -> dict[str, Any]:
    sizes = {"in_features": 3584, "out_features": 18944, "bytes": 1e6, "bandwidth": 2e12}
    times = {"seconds": seconds, "bandwidth_share": share, "error": 0.1}
    return {"kind": kind, "rows": rows, **sizes, **times}


def test_targets_take_the_worst_shape_and_number_of_rows() -> None:
    rows = [
        *(row("torch bf16", count, 1e-3, 0.9) for count in (1, 16, 1024, 4096)),
        row("w4a16", 1, 3e-4, 0.8),
        row("w4a16", 16, 4e-4, 0.65),
        row("w4a16", 1024, 2e-3, 0.1),
        row("w4a16", 4096, 1.6e-3, 0.1),
        *(row(kind, count, 5e-4, 0.1) for kind in ("w8a8", "fp8") for count in (1024, 4096)),
    ]
    kernels = {"device": "a GPU", "rows": rows}
    lines = gpu_speed.targets(kernels)
    assert [line["smallest"] for line in lines] == pytest.approx([0.65, 0.5, 2.0, 2.0])
    assert [line["met"] for line in lines] == [False, False, True, True]
    machine = {"processor": "a GPU", "threads": 1}
    results = {"date": "", "commit": "", "machine": machine, "versions": {"torch": ""}}
    text = gpu_speed.markdown({**results, "kernels": kernels, "targets": lines})
    assert "memory is copied at 2000.0 to 2000.0 GB/s" in text and "| no" in text
