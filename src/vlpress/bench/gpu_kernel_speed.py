"""Speed of quantized layers on a GPU, relative to torch's layers and to the copy bandwidth.

As in `kernel_speed.py`, every kind of layer computes the same product, and its output is compared
with the float product in the same run. Triton's benchmark clears the L2 cache before each call and
times with events of the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..quant.methods.rtn import rtn
from ..quant.recipe.scheme import QuantScheme, TableScheme
from ..quant.runtime.compressed_linear import CompressedLinear
from ..quant.runtime.linear import QuantLinear
from ..quant.runtime.table_linear import TableLinear
from .kernel_speed import GROUP, MAX_ERROR, SHAPES

ROWS = (1, 16, 64, 1024, 4096)
COPY_BYTES = 2**30
"""Size of the copy whose bandwidth is the reference, larger than every cache."""
FP8 = "fp8"
_TILES = 8  # inner tiles of torch's int4 layout

Layer = Callable[[Tensor], Tensor]


def measure(
    device: torch.device,
    shapes: Iterable[tuple[int, int]] = SHAPES,
    rows: Iterable[int] = ROWS,
) -> dict[str, Any]:
    """Time every kind of layer.

    Args:
        device: a CUDA device.
        shapes: pairs of in_features and out_features.
        rows: tokens per call.

    Returns:
        As `kernel_speed.measure`, with the name of the `device` in place of `threads`. The
        bandwidth is that of a copy, reads and writes together.

    Raises:
        ValueError: there is no CUDA device, a kernel does not support a shape, or a layer's output
            differs from the float layer's.
    """
    if not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch has no CUDA device here; use cpu")
    with torch.cuda.device(device), torch.inference_mode():
        bandwidth = copy_bandwidth(device)
        results = []
        for k, n in shapes:
            random = torch.Generator(device).manual_seed(0)
            weight = torch.randn(n, k, generator=random, device=device) / k**0.5
            layers = _layers(weight)
            for m in rows:
                results += _time(layers, weight, m, bandwidth)
    return {"device": torch.cuda.get_device_name(device), "rows": results}


def copy_bandwidth(device: torch.device) -> float:
    """Measure the bandwidth of a copy within the device's memory, in bytes per second."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _seconds(lambda: target.copy_(source))


def _seconds(call: Callable[[], object]) -> float:
    # Imported on use: torch's CPU builds have no Triton.
    from triton.testing import do_bench

    return float(do_bench(call, return_mode="median")) / 1e3


def _layers(weight: Tensor) -> dict[str, tuple[float, Layer]]:
    """Make each kind of layer, with the bytes that it reads per weight."""
    grouped, bf16 = 0.5 + 4 / GROUP, weight.bfloat16()
    return {
        "torch bf16": (2.0, lambda x: F.linear(x, bf16)),
        "torch int4pack": (grouped, _torch_int4(weight)),
        "w4a16": (grouped, _integers(weight, QuantScheme(4, GROUP))),
        "w4a16-asym": (grouped, _integers(weight, QuantScheme(4, GROUP, False))),
        "w8a16": (1 + 4 / GROUP, _integers(weight, QuantScheme(8, GROUP))),
        "w8a8": (1.0, _integers(weight, QuantScheme(8, -1, activations="dynamic"))),
        "w4a8": (grouped, _integers(weight, QuantScheme(4, GROUP, activations="dynamic"))),
        FP8: (1.0, _levels(weight, TableScheme("fp8", activations="dynamic"))),
    }


def _integers(weight: Tensor, scheme: QuantScheme) -> Layer:
    return _on_triton(QuantLinear(rtn(weight, scheme)))


def _levels(weight: Tensor, scheme: TableScheme) -> Layer:
    grid = scheme.fit_for_rounding(weight)
    return _on_triton(TableLinear(grid.compressed(grid.nearest(weight))))


def _on_triton(layer: CompressedLinear) -> Layer:
    if (reason := layer.why_not()) is not None:
        raise ValueError(f"{layer.extra_repr()}: {reason}")
    layer.select_kernel(None)
    return layer


def _torch_int4(weight: Tensor) -> Layer:
    """Make a layer of torch's own int4 kernel, with its scales in bf16."""
    quantized = rtn(weight, QuantScheme(4, GROUP), signed=False)
    pairs = quantized.integers[:, ::2] << 4 | quantized.integers[:, 1::2]
    packed = torch.ops.aten._convert_weight_to_int4pack(pairs, _TILES)
    grid = torch.stack((quantized.scales, torch.zeros_like(quantized.scales)), -1)
    grid = grid.transpose(0, 1).contiguous().bfloat16()
    return lambda x: torch.ops.aten._weight_int4pack_mm(x, packed, GROUP, grid)


def _time(
    layers: dict[str, tuple[float, Layer]], weight: Tensor, m: int, bandwidth: float
) -> list[dict[str, Any]]:
    n, k = weight.shape
    random = torch.Generator(weight.device).manual_seed(m)
    x = torch.randn(m, k, generator=random, device=weight.device).bfloat16()
    expected = x.float() @ weight.t()
    rows = []
    for name, (bytes_per_weight, layer) in layers.items():
        error = float((layer(x).float() - expected).norm() / expected.norm())
        bound = MAX_ERROR[8 if bytes_per_weight >= 1 and name != FP8 else 4]
        if not error < bound:
            raise ValueError(
                f"{name} of {k} x {n} at {m} rows has a relative error of {error:.3f}; "
                f"at most {bound} is expected"
            )
        seconds, size = _seconds(partial(layer, x)), bytes_per_weight * n * k
        rows.append(
            {
                "in_features": k,
                "out_features": n,
                "rows": m,
                "kind": name,
                "seconds": seconds,
                "bytes": size,
                "bandwidth": bandwidth,
                "bandwidth_share": size / seconds / bandwidth,
                "error": error,
            }
        )
    return rows
