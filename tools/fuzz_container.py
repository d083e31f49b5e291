"""Damage to containers: bytes, lengths and order of blocks, and an index with a valid checksum.

Random bytes rarely pass the checksum of the index, so that the code after it, which handles
unexpected values, would not be tested.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard
from fuzz_json import damage_json

FORGED = (0, 1, 2**20, 2**31, 2**40, 2**63, -1)
"""Sizes that a damaged index claims."""
SECTION = 2**10
"""Bytes of the passages that are exchanged."""


def container_seed() -> bytes:
    """Container of three tensors in several blocks each."""
    import torch
    from safetensors.torch import save_file

    from vlpress.model.packed.writing import pack_file

    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(24, 24, generator=generator).to(torch.bfloat16),
        "b": torch.randint(-(2**31), 2**31 - 1, (12, 8), generator=generator).to(torch.int32),
        "c": torch.randn(16, 16, generator=generator).mul(10).to(torch.int8),
    }
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "x.safetensors", Path(folder) / "x.vlz"
        save_file(tensors, source)
        pack_file(source, target, threads=1, on_bytes=lambda count: None, block=256)
        return target.read_bytes()


def damage_container(data: bytes, seed: int) -> bytes | None:
    """Damage a container in one of several ways; None if its index cannot be read.

    Args:
        data: a container.
        seed: determines the way, positions and changes.
    """
    try:
        return _damage(data, random.Random(seed))
    except (struct.error, zstandard.ZstdError, ValueError, LookupError, TypeError):
        return None


def _damage(data: bytes, rng: random.Random) -> bytes:
    ways: tuple[Callable[[bytes, random.Random], bytes], ...] = (
        _flip,
        _truncate,
        _extend,
        _exchange,
        _damage_index,
        _forge_numbers,
        _swap_blocks,
    )
    while (damaged := rng.choice(ways)(data, rng)) == data:
        pass
    return damaged


def _flip(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _extend(data: bytes, rng: random.Random) -> bytes:
    at = rng.choice((len(data), rng.randrange(len(data))))
    return data[:at] + rng.randbytes(rng.randint(1, 64)) + data[at:]


def _exchange(data: bytes, rng: random.Random) -> bytes:
    """Exchange two passages of the same length."""
    size = rng.randint(1, min(SECTION, len(data) // 2))
    first = rng.randint(0, len(data) - 2 * size)
    second = rng.randint(first + size, len(data) - size)
    damaged = bytearray(data)
    damaged[first : first + size] = data[second : second + size]
    damaged[second : second + size] = data[first : first + size]
    return bytes(damaged)


def _damage_index(data: bytes, rng: random.Random) -> bytes:
    blocks, index = _parts(data)
    text = damage_json(json.dumps(index).encode(), rng.randrange(2**32))
    return data if text is None else _with_index(blocks, text)


def _forge_numbers(data: bytes, rng: random.Random) -> bytes:
    """Change sizes in the index."""
    blocks, index = _parts(data)
    segment = rng.choice(index["segments"])
    forged = rng.choice(FORGED)
    match rng.randrange(4):
        case 0:
            index["size"] = forged
        case 1:
            segment["size"] = forged
        case 2:
            segment["block"] = forged
        case _:
            block = rng.choice(segment["blocks"])
            block[rng.randrange(len(block))] = forged
    return _with_index(blocks, json.dumps(index).encode())


def _swap_blocks(data: bytes, rng: random.Random) -> bytes:
    """Exchange two blocks of a tensor in the index."""
    blocks, index = _parts(data)
    segment = rng.choice(index["segments"])
    order = segment["blocks"]
    first, second = rng.randrange(len(order)), rng.randrange(len(order))
    order[first], order[second] = order[second], order[first]
    if order[first] == order[second]:
        return data
    return _with_index(blocks, json.dumps(index).encode())


def _parts(data: bytes) -> tuple[bytes, Any]:
    """Return the begin of a container up to its index, and the index."""
    from vlpress.model.packed.container import TRAILER

    offset, size, _, _ = TRAILER.unpack(data[-TRAILER.size :])
    text = zstandard.ZstdDecompressor().decompress(data[offset : offset + size])
    return data[:offset], json.loads(text)


def _with_index(blocks: bytes, text: bytes) -> bytes:
    """Return a container with another index, and its valid checksum."""
    from vlpress.model.packed.container import MAGIC, TRAILER

    coded = zstandard.ZstdCompressor().compress(text)
    digest = hashlib.sha256(coded).digest()
    return blocks + coded + TRAILER.pack(len(blocks), len(coded), digest, MAGIC)
