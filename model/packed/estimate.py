"""Expected size of packed tensors, by packing samples of them in memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from safetensors.torch import save
from torch import Tensor

from .choosing import choose_layout
from .container import BLOCK, encode_block
from .header import LENGTH, header_length, parse_header


def coded_share(tensors: Mapping[str, Tensor]) -> float:
    """Return the coded bytes of tensors as a share of their bytes; 1 if there are none.

    The container's index, CRCs and digests are not counted, which are below 0.1 % of large tensors.

    Args:
        tensors: by name; each is coded as `pack_file` codes its first block.
    """
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    length = header_length(data[:LENGTH], len(data))
    stored, coded = 0, 0
    for info in parse_header(data[:length], len(data)):
        block = data[info.begin : min(info.end, info.begin + BLOCK)]
        layout = choose_layout(info.dtype, info.shape, np.frombuffer(block, np.uint8), BLOCK)
        block = block[: max(1, len(block) // layout.unit) * layout.unit]
        stored += len(block)
        coded += sum(len(stream) for stream, _ in encode_block(layout, block)[1])
    return coded / stored if stored else 1.0
