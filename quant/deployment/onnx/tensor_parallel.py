"""Division of a decoder among ranks: heads and inner channels of the MLP.

"Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism" (arXiv
1909.08053, section 3): layers that read the hidden state are divided by output features, those that
write to it by input features, and the partial results are added.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ....model.config import TextConfig
from ....model.families import LinearSpec
from ...checkpoint.formats.format import integers_of
from ...compressed_weight import CompressedWeight
from ..source import ExportSource


def why_not_divided(source: ExportSource, ranks: int) -> str | None:
    """Return the reason that a decoder cannot be divided among so many ranks, or None."""
    text = source.config.text
    counts = {
        "attention heads": text.num_attention_heads,
        "key/value heads": text.num_key_value_heads,
        "inner channels of the MLP": text.intermediate_size,
    }
    for name, count in counts.items():
        if count % ranks:
            return f"--tp {ranks} does not divide {count} {name}; allowed: {_divisors(text)}"
    for layer, scheme in source.schemes.items():
        spec = source.layers[layer]
        width, columns = scheme.width(spec.in_features), spec.in_features // ranks
        if _is_divided(spec) and spec.input_split and columns % width and width < spec.in_features:
            return (
                f"--tp {ranks} divides groups of {width} input features of {layer} "
                f"({columns} for each rank); quantize with a group_size that divides {columns}"
            )
    return None


def _divisors(text: TextConfig) -> str:
    sizes = text.num_attention_heads, text.num_key_value_heads, text.intermediate_size
    counts = range(1, text.num_key_value_heads + 1)
    return ", ".join(str(n) for n in counts if all(size % n == 0 for size in sizes))


def _is_divided(spec: LinearSpec) -> bool:
    return spec.part == "decoder"


@dataclass(frozen=True)
class RankWeights:
    """The weights of one rank.

    Args:
        source: of the whole weights; `why_not_divided` is None.
        rank: from 0.
        ranks: their number.
    """

    source: ExportSource
    rank: int
    ranks: int

    def weight(self, name: str) -> CompressedWeight | Tensor:
        """Read the rank's part of the weight of a linear layer; that of the head is whole."""
        weight, spec = self.source.weight(name), self.source.layers[name]
        if not _is_divided(spec):
            return weight
        if spec.input_split:
            return self._columns(weight)
        if isinstance(weight, Tensor):
            return self._part(weight, 0)
        stored = integers_of(weight)
        return replace(
            stored,
            integers=self._part(stored.integers, 0),
            scales=self._part(stored.scales, 0),
            zero_points=self._part(stored.zero_points, 0),
        )

    def tensor(self, name: str) -> Tensor:
        """Read a float tensor; of a bias of a divided layer, the rank's part."""
        tensor, (owner, _, leaf) = self.source.tensor(name), name.rpartition(".")
        spec = self.source.layers.get(owner)
        is_part = leaf == "bias" and spec is not None and _is_divided(spec)
        return self._part(tensor, 0) if is_part else tensor

    def _part(self, tensor: Tensor, dim: int) -> Tensor:
        return tensor.chunk(self.ranks, dim)[self.rank]

    def _columns(self, weight: CompressedWeight | Tensor) -> CompressedWeight | Tensor:
        if isinstance(weight, Tensor):
            return self._part(weight, 1)
        stored = integers_of(weight)
        integers = self._part(stored.integers, 1)
        if stored.scales.shape[1] == 1:  # one scale per row belongs to all columns
            return replace(stored, integers=integers, scheme=replace(stored.scheme, group_size=-1))
        return replace(
            stored,
            integers=integers,
            scales=self._part(stored.scales, 1),
            zero_points=self._part(stored.zero_points, 1),
        )
