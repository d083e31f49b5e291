"""How fast quantized layers are, beside torch's own and beside what memory allows.

For each shape and number of rows every kind of layer computes the same product. What comes out is
compared with the float product in the same run: a fast wrong answer is an error, not a result.
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
from ..quant.recipe.scheme import QuantScheme
from .timing import copies_of, time_in_turns

SHAPES = ((2048, 11008), (11008, 2048), (3584, 18944), (18944, 3584))
"""in_features and out_features of the MLPs of the 3B and 7B models."""
ROWS = (1, 4, 16, 256, 1024)
GROUP = 128
READING, BLOCK = "read", 11 * 2**20
"""What the time of reading so many bytes is called."""
LARGEST_ERROR = {4: 0.25, 8: 0.05}
"""Of an output's size, by bits of the weight: random numbers give about 0.1 and 0.01."""


Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Kind:
    """A way to compute a layer."""

    name: str
    bytes_per_weight: float
    pack: Callable[[Tensor], Any]
    """From a float weight ``[N, K]`` what lies in memory."""
    layer: Callable[[Any], Layer]
    """From that the layer."""


def measure(
    shapes: Iterable[tuple[int, int]] = SHAPES, rows: Iterable[int] = ROWS
) -> dict[str, Any]:
    """Time every kind of layer.

    Args:
        shapes: of in_features and out_features.
        rows: tokens at a time.

    Returns:
        `rows`, each with the median seconds of a call, the bytes of the weight, the `bandwidth` in
        bytes per second at which the same memory is read in turns with the layers, the share of
        it that the weight takes, and the error.

    Raises:
        ValueError: a layer's output is not that of the float layer.
        OSError: the kernels are not built.
    """
    found = []
    for k, n in shapes:
        weight = torch.randn(n, k, generator=torch.Generator().manual_seed(0)) / k**0.5
        layers = {kind.name: _copies(kind, weight) for kind in _kinds()}
        for m in rows:
            found += _time(layers, weight, m)
    return {"threads": torch.get_num_threads(), "rows": found}


Copies = dict[str, tuple[Kind, list[Layer]]]


def _copies(kind: Kind, weight: Tensor) -> tuple[Kind, list[Layer]]:
    """One layer, and others like it elsewhere in memory."""
    packed = kind.pack(weight)
    count = copies_of(int(kind.bytes_per_weight * weight.numel()))
    return kind, [kind.layer(packed), *(kind.layer(deepcopy(packed)) for _ in range(count - 1))]


def _time(layers: Copies, weight: Tensor, m: int) -> list[dict[str, Any]]:
    n, k = weight.shape
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(m)).bfloat16()
    wanted = x.float() @ weight.t()
    calls: dict[str, list[Callable[[], object]]] = {}
    errors = {}
    for name, (_, copies) in layers.items():
        errors[name] = float((copies[0](x).float() - wanted).norm() / wanted.norm())
        calls[name] = [_bound(layer, x) for layer in copies]
    # Of a layer's size, and in turns with them: a shared machine's memory is not always as fast.
    blocks = torch.ones(copies_of(BLOCK), BLOCK, dtype=torch.uint8)
    calls[READING] = [partial(library.read_memory, block) for block in blocks]
    seconds = time_in_turns(calls)
    bandwidth = BLOCK / seconds[READING]
    result = []
    for name, (kind, _) in layers.items():
        if not errors[name] < LARGEST_ERROR[4 if kind.bytes_per_weight < 1 else 8]:
            raise ValueError(
                f"{name} of {k} x {n} at {m} rows is off by {errors[name]:.3f} of its size"
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
        Kind("torch int4pack", 0.5 + 4 / GROUP, _pack_int4, _torch_int4),
        Kind("torch int8", 1.0, _pack_int8, _torch_int8),
        Kind("w4a16", grouped, partial(_tiles, bits=4, group=GROUP), _ours(None)),
        Kind(
            "w4a16-asym",
            grouped + 1 / GROUP,
            partial(_tiles, bits=4, group=GROUP, symmetric=False),
            _ours(None),
        ),
        Kind("w8a16", 1 + scales, partial(_tiles, bits=8, group=GROUP), _ours(None)),
        Kind("w8a8", 1.0, partial(_tiles, bits=8, group=-1), _ours(0.0)),
        Kind("w4a8", grouped, partial(_tiles, bits=4, group=GROUP), _ours(0.0)),
    ]


def _pack_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    found = rtn(weight, QuantScheme(4, GROUP), signed=False)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(found.integers.int(), 1)
    both = torch.stack((found.scales, torch.zeros_like(found.scales)), -1).transpose(0, 1)
    return packed, both.contiguous().bfloat16()


def _torch_int4(packed: tuple[Tensor, Tensor]) -> Layer:
    integers, pairs = packed
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, integers, GROUP, pairs)


def _pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    found = rtn(weight, QuantScheme(8, -1))
    return (found.integers.int() - found.zero_points.int()).to(torch.int8), found.scales


def _torch_int8(packed: tuple[Tensor, Tensor]) -> Layer:
    """The product of integers alone; what surrounds it is only there for the comparison."""
    levels, scales = packed
    return lambda x: _INT8(x, levels.t(), scales)


class _Int8:
    """Rounds an input once; then only the product is timed."""

    def __init__(self) -> None:
        self.known: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, levels: Tensor, scales: Tensor) -> Tensor:
        if self.known is None or self.known[0] is not x:
            scale = x.float().abs().amax(-1, keepdim=True) / 127
            self.known = x, (x.float() / scale).round().to(torch.int8), scale
            sums = torch._int_mm(self.known[1], levels)
            return sums * self.known[2] * scales[:, 0]
        return torch._int_mm(self.known[1], levels)


_INT8 = _Int8()


def _tiles(weight: Tensor, bits: int, group: int, symmetric: bool = True) -> cpu_layout.TiledWeight:
    found = rtn(weight, QuantScheme(bits, group, symmetric))
    return cpu_layout.prepack(found.integers, found.scales, found.zero_points, bits, None)


def _ours(input_scale: float | None) -> Callable[[cpu_layout.TiledWeight], Layer]:
    kernels = library.chosen_kernels()
    if isinstance(kernels, str):
        raise OSError(kernels)

    def layer(weight: cpu_layout.TiledWeight) -> Layer:
        product = cpu.Product([weight], [None], kernels)
        return lambda x: product(x, input_scale)[0]

    return layer
