"""Packing of integers into int32 words, in the layout of GPTQ checkpoints.

32 consecutive values of b bits fill b words, lowest bits first, as one stream of bits. Where b
divides 32 no value crosses a word boundary; for 3 bits this is the layout known as 10-1-10-1-10
(ten whole values, one split, ten whole, one split, ten whole).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 2**25
"""Values that are packed at a time, to bound the memory beside the result."""
VALUES = 32
"""Values that fill a whole number of words at every width."""


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack along the first dimension.

    Args:
        values: integers [R, C] from 0 to 2**bits - 1; R a multiple of 32.
        bits: 2 to 8.

    Returns:
        int32 [R * bits / 32, C].

    Raises:
        ValueError: R is not a multiple of 32, or a value is out of range.

    Example:
        >>> hex(int(pack(torch.full((32, 1), 7), bits=4)[0]))
        '0x77777777'
    """
    rows = len(values)
    if rows % VALUES:
        raise ValueError(f"cannot pack {rows} values: the number must be a multiple of {VALUES}")
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < 2**bits:
        raise ValueError(
            f"values from {int(values.min())} to {int(values.max())} do not fit "
            f"{bits} unsigned bits"
        )
    # Columns do not depend on each other, and words are built in eight bytes each.
    runs = torch.split(values, max(1, CHUNK_ELEMENTS // max(1, rows)), dim=1)
    return torch.cat([_pack_columns(run, bits) for run in runs], dim=1)


def _pack_columns(values: Tensor, bits: int) -> Tensor:
    """See `pack`; the values are checked."""
    rows, columns = values.shape
    words = torch.zeros(rows // VALUES, bits, columns, dtype=torch.int64, device=values.device)
    grouped = values.reshape(rows // VALUES, VALUES, columns)
    for index in range(VALUES):
        word, shift = divmod(index * bits, 32)
        value = grouped[:, index].to(torch.int64)
        # int64 holds unsigned words; bits beyond the word go into the next one.
        words[:, word] |= (value << shift) & 0xFFFFFFFF
        if shift + bits > 32:
            words[:, word + 1] |= value >> (32 - shift)
    signed = torch.where(words >= 2**31, words - 2**32, words)
    return signed.to(torch.int32).reshape(-1, columns)


def unpack(words: Tensor, bits: int) -> Tensor:
    """Unpack the words of `pack`.

    Args:
        words: int32 [R * bits / 32, C].
        bits: 2 to 8.

    Returns:
        uint8 [R, C].

    Raises:
        ValueError: the number of words is not a multiple of `bits`.
    """
    rows, columns = words.shape
    if rows % bits:
        raise ValueError(
            f"cannot unpack {rows} words: for {bits} bits it must be a multiple of {bits}"
        )
    runs = words.reshape(rows // bits, bits, columns)
    values = torch.empty(rows // bits, VALUES, columns, dtype=torch.uint8, device=words.device)
    for index in range(VALUES):
        word, shift = divmod(index * bits, 32)
        value = (runs[:, word].to(torch.int64) & 0xFFFFFFFF) >> shift
        if shift + bits > 32:
            value = value | (runs[:, word + 1].to(torch.int64) & 0xFFFFFFFF) << (32 - shift)
        values[:, index] = (value & (2**bits - 1)).to(torch.uint8)
    return values.reshape(-1, columns)


def packed_words(count: int, bits: int) -> int:
    """Return the number of int32 words of `count` values in `pack_padded`."""
    return -(-count * bits // 32)


def pack_padded(values: Tensor, bits: int) -> Tensor:
    """Pack any number of rows R, see `pack`; the last word is padded with zero bits.

    Returns:
        int32 [packed_words(R, bits), C].
    """
    rows = len(values)
    padded = F.pad(values, (0, 0, 0, -rows % VALUES))
    return pack(padded, bits)[: packed_words(rows, bits)]


def unpack_padded(words: Tensor, bits: int, count: int) -> Tensor:
    """Unpack the words of `pack_padded`.

    Args:
        words: int32 [packed_words(count, bits), C].
        bits: 2 to 8.
        count: rows of the result.

    Returns:
        uint8 [count, C].
    """
    padded = F.pad(words, (0, 0, 0, -len(words) % bits))
    return unpack(padded, bits)[:count]
