"""Tokens and merges of a file of ranks, the form in which tiktoken stores byte-level BPE.

A line is a token's bytes in base64 and its rank, which is its id. Such a file has no merges: text
is merged in the order of ranks, always the two neighbours that make the token of lowest rank. The
merge that makes a token is found by merging its own bytes with the tokens of lower ranks until two
are left.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from ..config import refuse_pointer

LARGEST_TOKEN = 2**10  # bytes; the longest of published files has 128
BYTES = 256


def read_ranks(path: Path) -> list[bytes]:
    """Read the tokens of a file of ranks, by rank.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line is malformed, a rank is missing or given twice, a token is, or there is
            no token for some byte.
    """
    refuse_pointer(path)
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        token, rank = _read_line(line, f"{path}, line {number}")
        if rank in tokens:
            raise ValueError(f"{path}, line {number}: rank {rank} is given twice; {_REMEDY}")
        tokens[rank] = token
    if missing := sorted(set(range(len(tokens))) - tokens.keys()):
        raise ValueError(
            f"{path}: {len(tokens)} tokens and none of rank {missing[0]}; allowed: ranks 0 to "
            f"{len(tokens) - 1}, each once; {_REMEDY}"
        )
    ordered = [tokens[rank] for rank in range(len(tokens))]
    if len(set(ordered)) < len(ordered):
        twice = next(token for token in ordered if ordered.count(token) > 1)
        raise ValueError(f"{path}: the token {twice!r} has two ranks; {_REMEDY}")
    single = {token[0] for token in ordered if len(token) == 1}
    if absent := sorted(set(range(BYTES)) - single):
        raise ValueError(f"{path}: no token for the byte {absent[0]}; {_REMEDY}")
    return ordered


_REMEDY = "take the file from the original checkpoint"


def _read_line(line: bytes, where: str) -> tuple[bytes, int]:
    fields = line.split()
    try:
        token, rank = base64.b64decode(fields[0], validate=True), int(fields[1])
    except (IndexError, ValueError, binascii.Error):
        token, rank = b"", -1
    if len(fields) != 2 or not 0 < len(token) <= LARGEST_TOKEN or rank < 0:
        raise ValueError(
            f"{where}: {line[:40]!r}; allowed: a token of 1 to {LARGEST_TOKEN} bytes in base64, a "
            f"space and its rank; {_REMEDY}"
        )
    return token, rank


def merges_of(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the merges that make the tokens of more than one byte, in the order of ranks.

    Tokens that their own bytes do not merge to have none; they are used for a whole word only.

    Args:
        tokens: by rank; every byte is one.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    parts = (_two_parts(token, rank, ranks) for rank, token in enumerate(tokens) if len(token) > 1)
    return [pair for pair in parts if pair is not None]


def _two_parts(token: bytes, rank: int, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """Return the two tokens whose merge makes a token; None: it is not made of two."""
    size = len(ranks)
    halves = [
        (token[:cut], token[cut:])
        for cut in range(1, len(token))
        if ranks.get(token[:cut], size) < rank and ranks.get(token[cut:], size) < rank
    ]
    if len(halves) < 2:
        # If merging reaches the token at all, it ends with this cut, and if it does not, the two
        # halves are never neighbours: most tokens need no search.
        return halves[0] if halves else None
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        best, index = min(
            (ranks.get(left + right, size), index)
            for index, (left, right) in enumerate(pairwise(parts))
        )
        if best >= rank:
            return None
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts[0], parts[1]
