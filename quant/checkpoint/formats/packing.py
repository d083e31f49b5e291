"""Packing of integers into int32 words, in the layout of GPTQ checkpoints.

32 consecutive values of b bits fill b words, lowest bits first, as one stream of bits. Where b
divides 32 no value crosses a word boundary; for 3 bits this is the layout known as 10-1-10-1-10
(ten whole values, one split, ten whole, one split, ten whole).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 2**16
"""Values that are packed or unpacked at a time, so that intermediate results stay in the cache."""
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
    word, shift, room, crossing = _positions(bits, values.device)
    columns = values.shape[1]
    groups = values.reshape(rows // VALUES, VALUES, columns)
    packed = torch.empty(len(groups), bits, columns, dtype=torch.int32, device=values.device)
    for chunk in _chunks(groups):
        value = groups[chunk].to(torch.int64)  # int64 holds unsigned words
        words = torch.zeros(len(value), bits, columns, dtype=torch.int64, device=values.device)
        words.index_add_(1, word, (value << shift) & 0xFFFFFFFF)
        # Bits beyond the word go into the next one.
        words.index_add_(1, word[crossing] + 1, value[:, crossing] >> room[crossing])
        packed[chunk] = torch.where(words >= 2**31, words - 2**32, words)
    return packed.reshape(-1, columns)


def _positions(bits: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the positions of `VALUES` values in their words.

    Returns:
        The word [VALUES] of each, its lowest bit [VALUES, 1], the bits from there to the end of the
        word [VALUES, 1], and the indices of those with bits in the next word.
    """
    first = torch.arange(VALUES, device=device) * bits
    shift = (first % 32).to(torch.int32)
    room = 32 - shift
    return first // 32, shift[:, None], room[:, None], (room < bits).nonzero()[:, 0]


def _chunks(groups: Tensor) -> list[slice]:
    """Divide [groups, ...] into runs of about `CHUNK_ELEMENTS` values."""
    step = max(1, CHUNK_ELEMENTS // max(1, VALUES * groups.shape[-1]))
    return [slice(begin, begin + step) for begin in range(0, len(groups), step)]


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
    word, shift, room, crossing = _positions(bits, words.device)
    runs = words.reshape(rows // bits, bits, columns)
    values = torch.empty(rows // bits, VALUES, columns, dtype=torch.uint8, device=words.device)
    # The sign bit fills from the left: only bits in the word itself count.
    own = (1 << room.clamp(max=bits)) - 1
    for chunk in _chunks(runs):
        value = (runs[chunk][:, word] >> shift) & own
        if len(crossing):
            following = runs[chunk][:, word[crossing] + 1] << room[crossing]
            value[:, crossing] |= following & (2**bits - 1)
        values[chunk] = value
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
