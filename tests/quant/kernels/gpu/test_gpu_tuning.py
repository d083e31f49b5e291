"""The tables of block sizes."""

from __future__ import annotations

from dataclasses import replace

import torch

from vlpress.quant.kernels.gpu.packing import ROWS
from vlpress.quant.kernels.gpu.tuning import Blocks, byte_blocks, float_blocks

CPU = torch.device("cpu")
CAPABILITIES = (80, 89, 90, 100)


def test_blocks_fit_tensor_cores() -> None:
    for capability in CAPABILITIES:
        for tokens in (1, 16, 17, 64, 65, 4096):
            choices = [float_blocks(tokens, kind, capability) for kind in ("nibbles", "bytes")]
            choices += [byte_blocks(tokens, grouped, capability) for grouped in (True, False)]
            for blocks in choices:
                assert blocks.m >= 16 and ROWS % blocks.n == 0 and blocks.stages >= 3
                assert all(size & (size - 1) == 0 for size in (blocks.m, blocks.n, blocks.warps))
                assert blocks.persistent == (tokens > 64)
                assert blocks.m >= tokens or blocks.persistent


def test_splits_fill_the_processor() -> None:
    blocks = Blocks(16, 128, stages=4, per_processor=3, processors=100)
    # 300 programs at a time; 28 blocks of 3584 outputs.
    assert blocks.split_count(1, 3584, 296, CPU) == 10
    assert blocks.split_count(1, 3584, 16, CPU) == 4  # each has a tile per stage
    assert blocks.split_count(1, 128 * 301, 296, CPU) == 1
    assert replace(blocks, splits=5).split_count(1, 3584, 3, CPU) == 3


def test_persistent_programs() -> None:
    blocks = Blocks(128, 128, per_processor=2, persistent=True, processors=100)
    assert blocks.programs(256, 1280, CPU) == 20 and blocks.programs(4096, 12800, CPU) == 200
