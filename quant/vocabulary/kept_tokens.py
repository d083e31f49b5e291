"""The map of token ids between an original and a model with a pruned vocabulary."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

REMOVED = -1
"""New id of a removed token."""


@dataclass(frozen=True)
class KeptTokens:
    """The ids of the original's tokens that a pruned vocabulary keeps.

    The new id of a kept token is its position among them, so the order of ids stays: of two equal
    logits, both models choose the same token.
    """

    ids: tuple[int, ...]
    """In increasing order, without gaps below the original's number of rows."""
    rows: int
    """Rows of the original's embedding."""

    def __post_init__(self) -> None:
        is_sorted = all(a < b for a, b in zip(self.ids, self.ids[1:], strict=False))
        if not self.ids or not is_sorted or not 0 <= self.ids[0] <= self.ids[-1] < self.rows:
            raise ValueError(
                f"{len(self.ids)} kept tokens of {self.rows} rows; allowed: at least one id, in "
                "increasing order, below the number of rows"
            )

    @cached_property
    def new_ids(self) -> Mapping[int, int]:
        """New id of each kept token, by its original one."""
        return {old: new for new, old in enumerate(self.ids)}

    @cached_property
    def index(self) -> Tensor:
        """Original id of each new one, int64 `[kept]`."""
        return torch.tensor(self.ids)

    @cached_property
    def _table(self) -> Tensor:
        table = torch.full((self.rows,), REMOVED)
        table[self.index] = torch.arange(len(self.ids))
        return table

    def to_new(self, ids: Tensor) -> Tensor:
        """Map original ids to new ones; `REMOVED` for removed tokens.

        Args:
            ids: int64, of any shape.
        """
        return self._table.to(ids.device)[ids]

    def translate(self, ids: Sequence[int]) -> list[int] | None:
        """Map the original ids of a text to new ones; None if one of the tokens was removed."""
        mapped = [self.new_ids.get(token, REMOVED) for token in ids]
        return None if REMOVED in mapped else mapped

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `from_dict` reads: one bit for each row of the original."""
        bits = np.zeros(self.rows, dtype=bool)
        bits[list(self.ids)] = True
        packed = np.packbits(bits, bitorder="little").tobytes()
        return {"rows": self.rows, "kept": base64.b64encode(packed).decode("ascii")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` returned.

        Raises:
            ValueError: it is damaged.
        """
        rows, kept = data.get("rows"), data.get("kept")
        try:
            packed = base64.b64decode(str(kept), validate=True)
        except binascii.Error:
            packed = b""
        if type(rows) is not int or rows < 1 or len(packed) != -(-rows // 8):
            raise ValueError("the record of the kept tokens is damaged; prune the original again")
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=rows, bitorder="little")
        return cls(tuple(np.flatnonzero(bits).tolist()), rows)
