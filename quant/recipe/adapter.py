"""Low-rank adapters as data: their rank, and what they are fitted to.

An adapter adds `(x A') B'` in 16 bits to the output of a quantized layer. It is stored as a folder
of the library peft beside the weights. Without torch, so that recipes can be read before it is
loaded; `methods/low_rank.py` finds A and B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from ...common.validation import Integer, OneOf, validated

AdapterRank = Annotated[int, Integer(1)]
"""Rows of A, and columns of B."""
AdapterKind = Annotated[Literal["eora", "svd", "svd_first"], OneOf(("eora", "svd", "svd_first"))]
"""See `AdapterRule.kind`."""
ADAPTER = "adapter"
"""Key of the adapter in records."""
FIRST = "svd_first"
"""Kind of adapters that hold a part of the weights."""
NUMBER_BYTES = 2
"""Bytes of a number of A and B."""


@validated
class AdapterRule:
    """The adapter of a step's layers.

    Raises:
        ValueError: a field is out of range.
    """

    rank: AdapterRank
    kind: AdapterKind
    """What it is fitted to: the error that the quantized weight leaves in the outputs ("eora"), the
    error of the weight, which needs no calibration ("svd"), or the weight itself, before the rest
    of it is quantized ("svd_first", the order of SVDQuant)."""

    @property
    def label(self) -> str:
        """Short form for tables, for example `adapter of rank 32 by eora`."""
        return f"adapter of rank {self.rank} by {self.kind}"

    @property
    def comes_first(self) -> bool:
        """Whether it is found before the weight is quantized."""
        return self.kind == FIRST

    def nbytes(self, out_features: int, in_features: int) -> int:
        """Count the bytes of both matrices."""
        return NUMBER_BYTES * self.rank * (out_features + in_features)


def adapter_entry(
    rank: int, sizes: Mapping[str, int], weights: int, kinds: Sequence[str] = ()
) -> dict[str, Any]:
    """Describe an adapter as JSON values, for records and plans.

    Args:
        rank: of all its layers.
        sizes: bytes of both matrices by layer.
        weights: number of weights of these layers.
        kinds: see `AdapterRule.kind`; empty if they are unknown.
    """
    total = sum(sizes.values())
    return {
        "rank": rank,
        "kinds": sorted(set(kinds)),
        "layers": len(sizes),
        "bytes": total,
        "bits_per_weight": 8 * total / weights,
    }


def describe_adapter(described: Mapping[str, Any]) -> str:
    """Describe an adapter in a line, from the result of `adapter_entry`."""
    kinds = f" by {' and '.join(described['kinds'])}" if described["kinds"] else ""
    return (
        f"adapter of rank {described['rank']}{kinds}: {described['layers']} layers, "
        f"{described['bits_per_weight']:.3f} bits per weight of these"
    )


def holds_weights(record: Mapping[str, Any]) -> bool:
    """Whether the adapter of a checkpoint holds a part of the weights, which it needs to answer."""
    return FIRST in record.get(ADAPTER, {}).get("kinds", ())


def check_separable(record: Mapping[str, Any], checkpoint: object) -> None:
    """Refuse to write a copy of a checkpoint without an adapter that it needs.

    Args:
        record: of the checkpoint; empty if it has none.
        checkpoint: for the message.

    Raises:
        ValueError: the adapter holds a part of the weights.
    """
    if holds_weights(record):
        raise ValueError(
            f"{checkpoint}: its adapter holds a part of the weights ({FIRST}), and the others "
            "answer nonsense without it; allowed: formats of checkpoints, with the adapter, or a "
            "checkpoint that is quantized with another kind of adapter"
        )


def without_adapter(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a checkpoint for a copy of it without its adapter."""
    return {key: value for key, value in record.items() if key != ADAPTER}
