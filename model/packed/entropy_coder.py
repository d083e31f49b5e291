"""Huffman coding of byte streams with zstandard: the third stage of Deep Compression.

Han et al. 2015 (arXiv 1510.00149, section 4). The bytes of weights repeat by chance only, and a
match of such bytes costs more than their code words do. The parameters below make zstandard find
next to none, so that its literals, Huffman-coded in blocks of 128 KiB (RFC 8878, section 4.2), are
all there is. benchmarks/packing.py compares coders.
"""

from __future__ import annotations

import numpy as np
import zstandard

from .layouts import Bytes

# A table of 2**6 hashes of seven bytes is overwritten before one of them comes again by chance.
PARAMETERS = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    min_match=7,
    window_log=20,
    hash_log=6,
    search_log=1,
    target_length=0,
    write_content_size=True,
)
LARGEST_WINDOW = 2**20


def encode(stream: bytes) -> bytes:
    """Code a stream; one that does not get shorter is returned as it is."""
    coded: bytes = zstandard.ZstdCompressor(compression_params=PARAMETERS).compress(stream)
    return coded if len(coded) < len(stream) else stream


def decode(data: bytes, size: int) -> bytes:
    """Decode a stream of `size` bytes; data of that size are the stream itself.

    Nothing is allocated before the size in the data has been compared with `size`.

    Raises:
        ValueError: the data are damaged.
    """
    if len(data) == size:
        return data
    try:
        frame = zstandard.get_frame_parameters(data)
        if frame.content_size != size or frame.window_size > LARGEST_WINDOW:
            raise ValueError(f"a stream of {frame.content_size} bytes; expected {size}")
        decoder = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
        stream: bytes = decoder.decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
    if len(stream) != size:
        raise ValueError(f"a stream of {len(stream)} bytes; expected {size}")
    return stream


def order0_bits(stream: Bytes) -> float:
    """Return the order-0 entropy of a stream, in bits for the whole of it."""
    counts = np.bincount(stream, minlength=1)
    present = counts[counts > 0].astype(np.float64)
    return float((present * np.log2(len(stream) / present)).sum())
