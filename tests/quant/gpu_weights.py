"""Random weights in the layouts of the reference and of the Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from vlpress.quant.kernels import reference
from vlpress.quant.kernels.gpu import packing

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Weight:
    """A random weight of integers."""

    def __init__(self, rows: int, columns: int, group: int, bits: int, symmetric: bool) -> None:
        random = torch.Generator().manual_seed(rows + bits)
        groups = 1 if group == -1 else columns // group
        shape = (rows, groups)
        self.integers = torch.randint(
            0, 2**bits, (rows, columns), dtype=torch.uint8, generator=random
        )
        # As quantization stores them: exact in bf16 and fp16; a negative one mirrors the grid.
        self.scales = (torch.rand(shape, generator=random) + 0.1).bfloat16().float()
        self.scales[0] *= -1
        self.zeros = torch.full(shape, 1 << (bits - 1), dtype=torch.uint8)
        self.bits, self.bias = bits, None
        if not symmetric:
            self.zeros = torch.randint(0, 2**bits, shape, dtype=torch.uint8, generator=random)
            self.bias = torch.randn(rows, generator=random).to(DEVICE)

    @property
    def reference(self) -> tuple[Tensor, Tensor, Tensor, int, Tensor | None]:
        """Arguments of the functions of `reference.py`."""
        packed = reference.prepack(self.integers, self.bits).to(DEVICE)
        return packed, self.scales.to(DEVICE), self.zeros.to(DEVICE), self.bits, self.bias

    def packed(self) -> packing.PackedWeight:
        """Pack for the Triton kernels."""
        grid = (self.scales.to(DEVICE), self.zeros.to(DEVICE), self.bits)
        return packing.prepack(self.integers.to(DEVICE), *grid)


def inputs(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random activations."""
    random = torch.Generator().manual_seed(rows)
    return torch.randn(rows, columns, generator=random).to(DEVICE, dtype)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected magnitude."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    return float((actual.float() - expected.float()).abs().max() / expected.float().abs().max())
