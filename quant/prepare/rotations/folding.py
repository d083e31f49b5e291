"""Fold rotations and the weights of norms into tensors, in float64.

A layer computes `y = W x + b` for columns. With the rotations as matrices R that multiply rows, its
new weight is `A' W diag(g) B`: g is the weight of the norm before it, B rotates what it reads and A
what it writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ....common.lazy_tensor import LazyTensor, TensorLike
from ....model.checkpoint import CheckpointReader
from ....model.config import ModelConfig
from ..rewriting import mapped
from .places import Place, Places, find_places, rotates_values
from .rotation import Rotation

CHUNK = 2**24
"""Elements that are multiplied at once, 128 MiB in float64."""


@dataclass(frozen=True)
class Folding:
    """A draw of rotations for one model, as a change of its tensors."""

    places: Places
    gains: Mapping[str, Tensor]
    """float64 `[hidden]`: weight plus offset of the norms, by name of the tensor."""
    residual: Rotation | None
    """R1; None: the residual stream is not rotated."""
    values: Mapping[str, list[Rotation]]
    """R2 of each key/value head, by attention block."""
    groups: int
    """Query heads for each key/value head."""

    @classmethod
    def draw(
        cls, config: ModelConfig, reader: CheckpointReader, key: str, *, r1: bool, r2: bool
    ) -> Folding:
        """Draw the rotations.

        Args:
            config: of the rotated model.
            reader: of the source; the weights of norms are read.
            key: determines the draw.
            r1: rotate the residual stream.
            r2: rotate values where that is possible.
        """
        text = config.text
        places = find_places(config, residual=r1, values=r2 and rotates_values(config))
        gains = {name: reader.tensor(name).double() + places.offset for name in places.norms}
        values = {
            block: [
                Rotation.random(text.head_dim, f"{key}/{block}/{head}")
                for head in range(text.num_key_value_heads)
            ]
            for block in places.attentions
        }
        residual = Rotation.random(text.hidden_size, f"{key}/residual") if r1 else None
        groups = text.num_attention_heads // text.num_key_value_heads
        return cls(places, gains, residual, values, groups)

    def change(self, name: str, tensor: LazyTensor) -> Mapping[str, TensorLike]:
        """Change one tensor of the source, see `rewriting.Change`."""
        if name not in self.gains and name not in self.places.tensors:
            return {name: tensor}
        return {name: mapped(tensor, lambda value: self.apply(name, value))}

    def apply(self, name: str, value: Tensor) -> Tensor:
        """Return the changed tensor, in its dtype; the input is not changed.

        Args:
            name: canonical name of a tensor.
            value: `[out, in]`, `[out]` of a bias, `[experts, ..., ...]`, or the weight of a norm.
        """
        if name in self.gains:
            return torch.full_like(value, 1 - self.places.offset)
        place = self.places.tensors.get(name)
        if place is None:
            return value
        if value.ndim == 1:
            column = value.double()[:, None]
            return self._write(column, place)[:, 0].to(value.dtype)
        if value.ndim == 3:
            experts = (self._expert(matrix, place) for matrix in value)
            return torch.stack(list(experts))
        if place.writes or place.values:
            return self._matrix(value, place)
        # Without outputs to rotate, the rows are independent.
        rows = max(1, CHUNK // value.shape[1])
        return torch.cat([self._matrix(part, place) for part in torch.split(value, rows)])

    def _expert(self, stored: Tensor, place: Place) -> Tensor:
        if not place.input_major:
            return self._matrix(stored, place)
        return self._matrix(stored.t(), place).t()

    def _matrix(self, weight: Tensor, place: Place) -> Tensor:
        """Change a weight `[out, in]`."""
        wide = weight.double()
        if place.norm is not None:
            wide = wide * self.gains[place.norm]
        if place.reads and self.residual is not None:
            wide = self.residual.apply(wide)
        if place.context is not None:
            heads = self.values[place.context]
            of_query = [rotation for rotation in heads for _ in range(self.groups)]
            wide = _by_head(wide, of_query)
        return self._write(wide, place).to(weight.dtype)

    def _write(self, wide: Tensor, place: Place) -> Tensor:
        """Rotate the output features of a float64 `[out, in]`."""
        if place.writes and self.residual is not None:
            wide = self.residual.apply(wide.t()).t()
        if place.values is not None:
            wide = _by_head(wide.t(), self.values[place.values]).t()
        return wide


def _by_head(rows: Tensor, rotations: list[Rotation]) -> Tensor:
    """Rotate each head's part of rows `[n, heads * head_dim]`."""
    parts = torch.split(rows, rotations[0].size, dim=1)
    pairs = zip(parts, rotations, strict=True)
    return torch.cat([rotation.apply(part) for part, rotation in pairs], dim=1)
