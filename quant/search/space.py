"""Groups of layers and the schemes that a search chooses from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch

from ...model.carried import CarriedTensors
from ...model.config import ModelConfig
from ...model.families import LinearSpec, family_of
from ...model.loading import parameter_shapes
from ...model.untying import untied_config
from ..checkpoint.formats.table import FORMATS
from ..driver.padding import Padding, choose_padding, padded_config, padded_layers
from ..plan.fused_layers import fused_layers
from ..plan.layer_bytes import float_bytes, quantized_bytes
from ..plan.plan import check_shape
from ..plan.target_matching import check_groups
from ..recipe.mask import MaskRule, Score
from ..recipe.scheme import QuantScheme, Scheme

FORMAT = "compressed-tensors"
"""Format that bytes are counted for: the one that holds several schemes, also in the tower."""

Schemes = tuple[Scheme | None, ...]

PART_SCHEMES: Mapping[str, Schemes] = {
    "decoder": (
        QuantScheme(2, 32),
        QuantScheme(3, 128),
        QuantScheme(3, 32),
        QuantScheme(4, 128),
        QuantScheme(4, 32),
        QuantScheme(8, 128),
    ),
    "tower": (QuantScheme(4, 32), QuantScheme(8, -1), None),
    "embedding": (QuantScheme(4, 128), QuantScheme(8, 128), None),
    "head": (QuantScheme(8, 128), None),
}
"""Schemes of each part of the model; None = stays in float."""

Masks = tuple[MaskRule | None, ...]

SCORE: Score = "sparsegpt"
"""Of masks if none is asked for."""
KEPT_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Shares of kept weights that layers of the decoder choose from, beside all of them."""


def masks_by(score: Score) -> Masks:
    """Return the masks of a search for zeros: none, and every share with this score."""
    return (None, *(MaskRule(share, score) for share in KEPT_SHARES))


@dataclass(frozen=True)
class Choice:
    """One way to store the layers of a group."""

    schemes: Schemes
    """Of the group's layers; the same for all, except for an embedding with its head."""
    mask: MaskRule | None = None
    """Which weights of every layer are zero; None = none."""
    unties: bool = False
    """The head of a tied model becomes a tensor of its own."""
    is_tied: bool = False
    """The head is not stored, because it is tied to the token embedding."""

    @property
    def label(self) -> str:
        """Short form for tables, such as `int4 g128 sym`."""
        if self.is_tied:
            return "float, tied"
        names = [scheme.label if scheme else "float" for scheme in self.schemes]
        if self.unties:
            return " + head ".join(names)
        return names[0] if self.mask is None else f"{names[0]}, {self.mask.label}"


@dataclass(frozen=True)
class Group:
    """Layers that are stored alike, because engines compute them together."""

    name: str
    """Of its first layer; of experts that of their block."""
    layers: tuple[LinearSpec, ...]
    """With padded widths."""
    choices: tuple[Choice, ...]

    @property
    def part(self) -> str:
        """Part of the model; of a tied head and the embedding, the embedding."""
        return self.layers[0].part


@dataclass(frozen=True)
class SearchSpace:
    """All groups of a model and the bytes of their choices."""

    config: ModelConfig
    """Of the source."""
    prepared: ModelConfig
    """Untied, and padded in all widths that a choice pads."""
    groups: tuple[Group, ...]
    padding: tuple[Padding, ...]
    """Of `prepared`."""
    fixed_bytes: int
    """Of the tensors that belong to no group: norms, routers, the patch embedding, `mtp.*`."""
    dtype: torch.dtype
    tp: int = 1

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        tp: int = 1,
        carried: CarriedTensors | None = None,
        masks: Masks = (None,),
    ) -> SearchSpace:
        """Collect the groups of a model.

        Args:
            config: of the source.
            tp: tensor-parallel size at serving time.
            carried: tensors of the source that the model does not compute with, which stay.
            masks: that every scheme of the decoder is combined with.

        Raises:
            ValueError: no scheme fits a layer of the decoder.
        """
        family, tied = family_of(config), config.text.tie_word_embeddings
        dtype = config.dtype or torch.float32
        untied = untied_config(config) if tied else config
        names = [spec.name for spec in family.linears(untied)]
        padding = choose_padding(untied, names, tp)
        prepared = padded_config(untied, padding)
        specs = [*family.linears(prepared), family.embedding(prepared)]
        groups = tuple(_groups(prepared, specs, tied, tp, masks))
        sources = {spec.name: spec for spec in [*family.linears(config), family.embedding(config)]}
        total = sum(map(prod, parameter_shapes(config).values())) * dtype.itemsize
        stored = sum(float_bytes(spec, dtype.itemsize) for spec in sources.values())
        fixed = total - stored + sum((carried or CarriedTensors()).bytes.values())
        return cls(config, prepared, groups, padding, fixed, dtype, tp)

    def choice_bytes(self, padding: Collection[Padding]) -> list[list[int | None]]:
        """Count the bytes of every choice of every group if some widths are padded.

        Args:
            padding: some of `self.padding`.

        Returns:
            None for a choice that needs another padding.
        """
        padded = set(padded_layers(self.prepared, tuple(padding)))
        needed = set(padded_layers(self.prepared, self.padding)) - padded
        sources = {spec.name: spec for spec in self._sources()}
        return [
            [self._bytes(group, choice, padded, needed, sources) for choice in group.choices]
            for group in self.groups
        ]

    def _sources(self) -> Iterator[LinearSpec]:
        family, config = family_of(self.config), self.config
        yield from family.linears(untied_config(config))
        yield family.embedding(config)

    def _bytes(
        self,
        group: Group,
        choice: Choice,
        padded: Collection[str],
        needed: Collection[str],
        sources: Mapping[str, LinearSpec],
    ) -> int | None:
        total = 0
        for spec, scheme in zip(group.layers, choice.schemes, strict=True):
            if choice.is_tied and spec.part == "head":
                continue
            if scheme is None:
                stored = spec if spec.name in padded else sources[spec.name]
                total += float_bytes(stored, self.dtype.itemsize)
            elif spec.name in needed:
                return None
            else:
                total += sum(quantized_bytes(spec, scheme, FORMATS[FORMAT], self.dtype))
        return total

    def decoder_bits(self) -> tuple[list[list[int]], int]:
        """Count the stored bits of decoder weights for every choice, without biases.

        Returns:
            Bits by group and choice, 0 outside the decoder, and the number of decoder weights.
        """
        bits, weights = [], 0
        for group in self.groups:
            if group.part != "decoder":
                bits.append([0] * len(group.choices))
                continue
            weights += sum(spec.weights for spec in group.layers)
            bits.append([self._bits(group, choice) for choice in group.choices])
        return bits, weights

    def kept_weights(self) -> list[list[int]]:
        """Count the weights that no mask holds at zero, by group and choice.

        Returns:
            0 outside the decoder, where there are no masks.
        """
        return [
            [
                sum(_kept(spec, choice.mask) for spec in group.layers if spec.part == "decoder")
                for choice in group.choices
            ]
            for group in self.groups
        ]

    def _bits(self, group: Group, choice: Choice) -> int:
        total = 0
        for spec, scheme in zip(group.layers, choice.schemes, strict=True):
            assert scheme is not None  # the decoder has no choice of floats
            total += 8 * quantized_bytes(spec, scheme, FORMATS[FORMAT], self.dtype)[0]
        return total


def _kept(spec: LinearSpec, mask: MaskRule | None) -> int:
    kept = spec.in_features if mask is None else mask.kept(spec.in_features)
    return spec.out_features * kept


def _groups(
    config: ModelConfig, specs: Sequence[LinearSpec], tied: bool, tp: int, masks: Masks
) -> Iterator[Group]:
    by_name = {spec.name: spec for spec in specs}
    for names in _members(config, specs):
        layers = tuple(by_name[name] for name in names)
        first = layers[0]
        if first.part == "head" and tied:
            continue  # together with the embedding
        if first.part == "embedding" and tied:
            (head,) = (spec for spec in specs if spec.part == "head")
            yield Group(first.name, (first, head), tuple(_tied_choices(first, head)))
            continue
        fitting = [s for s in PART_SCHEMES[first.part] if _fits(layers, s, tp)]
        if not fitting:
            raise ValueError(
                f"{first.name} is {first.out_features} x {first.in_features}, which no scheme of "
                "the search fits; give a recipe with group_size -1 to vlpress quantize instead"
            )
        name = first.name
        if first.slice is not None:
            name = first.slice.tensor.rpartition(".")[0]
        of_part = masks if first.part == "decoder" else (None,)
        pairs = [(scheme, mask) for scheme in fitting for mask in of_part]
        choices = tuple(Choice((scheme,) * len(layers), mask) for scheme, mask in pairs)
        yield Group(name, layers, choices)


def _members(config: ModelConfig, specs: Sequence[LinearSpec]) -> Iterator[tuple[str, ...]]:
    """Yield the names of the layers of each group, in the order of computation."""
    fused = {name: names for names in fused_layers(config) for name in names}
    experts: dict[str, list[str]] = {}
    for spec in specs:
        if spec.slice is not None:
            experts.setdefault(spec.slice.tensor.rpartition(".")[0], []).append(spec.name)
    yielded: set[str] = set()
    for spec in [s for s in specs if s.part == "embedding"] + [
        s for s in specs if s.part != "embedding"
    ]:
        names = fused.get(spec.name, (spec.name,))
        if spec.slice is not None:
            names = tuple(experts[spec.slice.tensor.rpartition(".")[0]])
        if spec.name not in yielded:
            yielded.update(names)
            yield names


def _tied_choices(embedding: LinearSpec, head: LinearSpec) -> Iterator[Choice]:
    """Yield the tied choice, then all pairs of schemes of an embedding and a head of its own."""
    yield Choice((None, None), is_tied=True)
    for scheme in PART_SCHEMES["embedding"]:
        for of_head in PART_SCHEMES["head"]:
            pair = (scheme, of_head)
            if all(_fits((spec,), s, 1) for spec, s in zip((embedding, head), pair, strict=True)):
                if pair != (None, None):
                    yield Choice(pair, unties=True)


def _fits(layers: Sequence[LinearSpec], scheme: Scheme | None, tp: int) -> bool:
    if scheme is None:
        return True
    try:
        for spec in layers:
            check_shape(spec, scheme)
        check_groups(layers, scheme, tp)
    except ValueError:
        return False
    return True
