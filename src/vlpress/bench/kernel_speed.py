"""Speed of quantized layers, relative to torch's layers and to the memory bandwidth.

For each shape and number of rows, every kind of layer computes the same product. Its output is
compared with the float product in the same run: a fast wrong result is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..quant.kernels import cpu, cpu_layout, library
from ..quant.methods.rtn import rtn
from ..quant.recipe.scheme import QuantScheme, TableScheme
from ..quant.runtime.table_linear import TableLinear
from .timing import copies_of, time_in_turns

SHAPES = ((2048, 11008), (11008, 2048), (3584, 18944), (18944, 3584))
"""in_features and out_features of the MLPs of the 3B and 7B models."""
ROWS = (1, 4, 16, 256, 1024)
GROUP = 128
TABLES = {
    "fp8": TableScheme("fp8"),
    "fp8-block": TableScheme("fp8", 128, 128),
    "nvfp4": TableScheme("nvfp4"),
    "mxfp4": TableScheme("mxfp4"),
}
"""Layers whose weights are levels of a table, with float activations."""
READ, READ_BYTES = "read", 11 * 2**20
"""Name and size of the memory read that is timed in turns with the layers."""
MAX_ERROR = {4: 0.25, 8: 0.05}
"""Largest relative error of an output by bits of the weight; random weights give about 0.1 and
0.01."""


Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Kind:
    """An implementation of a linear layer."""

    name: str
    bytes_per_weight: float
    pack: Callable[[Tensor], Any]
    """Packs a float weight `[N, K]`."""
    layer: Callable[[Any], Layer]
    """Makes a layer of a packed weight."""


def measure(
    shapes: Iterable[tuple[int, int]] = SHAPES, rows: Iterable[int] = ROWS
) -> dict[str, Any]:
    """Time every kind of layer.

    Args:
        shapes: pairs of in_features and out_features.
        rows: tokens per call.

    Returns:
        `threads` and `rows`. Each row has the median seconds of a call, the bytes of the weight,
        the `bandwidth` in bytes per second of reads in turns with the layers, the share of it that
        the layer reaches, and the relative error.

    Raises:
        ValueError: a layer's output differs from the float layer's.
        OSError: the kernels are not built.
    """
    results = []
    for k, n in shapes:
        weight = torch.randn(n, k, generator=torch.Generator().manual_seed(0)) / k**0.5
        layers = {kind.name: _copies(kind, weight) for kind in _kinds()}
        for m in rows:
            results += _time(layers, weight, m)
    return {"threads": torch.get_num_threads(), "rows": results}


Copies = dict[str, tuple[Kind, list[Layer]]]


def _copies(kind: Kind, weight: Tensor) -> tuple[Kind, list[Layer]]:
    """Make a layer with as many copies of its weight as no cache holds."""
    packed = kind.pack(weight)
    count = copies_of(int(kind.bytes_per_weight * weight.numel()))
    return kind, [kind.layer(packed), *(kind.layer(deepcopy(packed)) for _ in range(count - 1))]


def _time(layers: Copies, weight: Tensor, m: int) -> list[dict[str, Any]]:
    n, k = weight.shape
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(m)).bfloat16()
    expected = x.float() @ weight.t()
    calls: dict[str, list[Callable[[], object]]] = {}
    errors = {}
    for name, (_, copies) in layers.items():
        errors[name] = float((copies[0](x).float() - expected).norm() / expected.norm())
        calls[name] = [_bound(layer, x) for layer in copies]
    # In turns with the layers, as the bandwidth of a shared machine varies.
    blocks = torch.ones(copies_of(READ_BYTES), READ_BYTES, dtype=torch.uint8)
    calls[READ] = [partial(library.read_memory, block) for block in blocks]
    seconds = time_in_turns(calls)
    bandwidth = READ_BYTES / seconds[READ]
    result = []
    for name, (kind, _) in layers.items():
        bound = MAX_ERROR[4 if kind.bytes_per_weight < 1 else 8]
        if not errors[name] < bound:
            raise ValueError(
                f"{name} of {k} x {n} at {m} rows has a relative error of {errors[name]:.3f}; "
                f"at most {bound} is expected"
            )
        size = kind.bytes_per_weight * n * k
        result.append(
            {
                "in_features": k,
                "out_features": n,
                "rows": m,
                "kind": name,
                "seconds": seconds[name],
                "bytes": size,
                "bandwidth": bandwidth,
                "bandwidth_share": size / seconds[name] / bandwidth,
                "error": errors[name],
            }
        )
    return result


def _bound(layer: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    return lambda: layer(x)


def _kinds() -> list[Kind]:
    grouped, scales = 0.5 + 2 / GROUP, 2 / GROUP
    return [
        Kind("torch bf16", 2.0, Tensor.bfloat16, lambda w: lambda x: F.linear(x, w)),
        Kind("torch float32", 4.0, Tensor.clone, _Float32),
        Kind("torch int4pack", 0.5 + 4 / GROUP, _pack_int4, _torch_int4),
        Kind("torch int8", 1.0, _pack_int8, _torch_int8),
        Kind("w4a16", grouped, partial(_tiles, bits=4, group=GROUP), _cpu_linear(None)),
        Kind(
            "w4a16-asym",
            grouped + 1 / GROUP,
            partial(_tiles, bits=4, group=GROUP, symmetric=False),
            _cpu_linear(None),
        ),
        Kind("w8a16", 1 + scales, partial(_tiles, bits=8, group=GROUP), _cpu_linear(None)),
        Kind("w8a8", 1.0, partial(_tiles, bits=8, group=-1), _cpu_linear(0.0)),
        Kind("w4a8", grouped, partial(_tiles, bits=4, group=GROUP), _cpu_linear(0.0)),
        *(_table_kind(name, scheme) for name, scheme in TABLES.items()),
    ]


def _table_kind(name: str, scheme: TableScheme) -> Kind:
    """Make a kind of layer over a table, with scales in fp16."""
    scales = 0.0 if scheme.group_size == -1 else 2 / scheme.group_size
    return Kind(name, scheme.bits / 8 + scales, partial(_table, scheme=scheme), _cpu_linear(None))


class _Float32:
    """Converts an input at its first use; later calls run the product only."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.converted: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.converted is None or self.converted[0] is not x:
            self.converted = x, x.float()
        return F.linear(self.converted[1], self.weight)


def _pack_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    quantized = rtn(weight, QuantScheme(4, GROUP), signed=False)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(quantized.integers.int(), 1)
    pairs = torch.stack((quantized.scales, torch.zeros_like(quantized.scales)), -1)
    return packed, pairs.transpose(0, 1).contiguous().bfloat16()


def _torch_int4(packed: tuple[Tensor, Tensor]) -> Layer:
    integers, pairs = packed
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, integers, GROUP, pairs)


def _pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    quantized = rtn(weight, QuantScheme(8, -1))
    integers = quantized.integers.int() - quantized.zero_points.int()
    return integers.to(torch.int8), quantized.scales


def _torch_int8(packed: tuple[Tensor, Tensor]) -> Layer:
    """Time the integer product alone; quantization and scaling only serve the error check."""
    integers, scales = packed
    return lambda x: _INT8(x, integers.t(), scales)


class _Int8:
    """Quantizes an input at its first use; later calls run the product only."""

    def __init__(self) -> None:
        self.quantized: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, integers: Tensor, scales: Tensor) -> Tensor:
        if self.quantized is None or self.quantized[0] is not x:
            scale = x.float().abs().amax(-1, keepdim=True) / 127
            self.quantized = x, (x.float() / scale).round().to(torch.int8), scale
            sums = torch._int_mm(self.quantized[1], integers)
            return sums * self.quantized[2] * scales[:, 0]
        return torch._int_mm(self.quantized[1], integers)


_INT8 = _Int8()


def _tiles(weight: Tensor, bits: int, group: int, symmetric: bool = True) -> cpu_layout.TiledWeight:
    quantized = rtn(weight, QuantScheme(bits, group, symmetric))
    return cpu_layout.prepack(
        quantized.integers, quantized.scales, quantized.zero_points, bits, None
    )


def _table(weight: Tensor, scheme: TableScheme) -> cpu_layout.TiledWeight:
    grid = scheme.fit_for_rounding(weight)
    return TableLinear(grid.compressed(grid.nearest(weight))).make_tiles()


def _cpu_linear(input_scale: float | None) -> Callable[[cpu_layout.TiledWeight], Layer]:
    kernels = library.chosen_kernels()
    if isinstance(kernels, str):
        raise OSError(kernels)

    def layer(weight: cpu_layout.TiledWeight) -> Layer:
        product = cpu.CpuLinear([weight], [None], kernels)
        return lambda x: product(x, input_scale)[0]

    return layer
