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
from .roles import Role, Roles, find_roles, rotates_values
from .rotation import Rotation

CHUNK = 2**24
"""Elements that are multiplied at once, 128 MiB in float64."""


@dataclass(frozen=True)
class Folding:
    """A draw of rotations for one model, as a change of its tensors."""

    roles: Roles
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
        roles = find_roles(config, residual=r1, values=r2 and rotates_values(config))
        gains = {name: reader.tensor(name).double() + roles.offset for name in roles.norms}
        values = {
            block: [
                Rotation.random(text.head_dim, f"{key}/{block}/{head}")
                for head in range(text.num_key_value_heads)
            ]
            for block in roles.attentions
        }
        residual = Rotation.random(text.hidden_size, f"{key}/residual") if r1 else None
        groups = text.num_attention_heads // text.num_key_value_heads
        return cls(roles, gains, residual, values, groups)

    def change(self, name: str, tensor: LazyTensor) -> Mapping[str, TensorLike]:
        """Change one tensor of the source, see `rewriting.Change`."""
        if name not in self.gains and name not in self.roles.tensors:
            return {name: tensor}
        return {name: mapped(tensor, lambda value: self.apply(name, value))}

    def apply(self, name: str, value: Tensor) -> Tensor:
        """Return the changed tensor, in its dtype; the input is not changed.

        Args:
            name: canonical name of a tensor.
            value: `[out, in]`, `[out]` of a bias, `[experts, ..., ...]`, or the weight of a norm.
        """
        if name in self.gains:
            return torch.full_like(value, 1 - self.roles.offset)
        role = self.roles.tensors.get(name)
        if role is None:
            return value
        if value.ndim == 1:
            column = value.double()[:, None]
            return self._write(column, role)[:, 0].to(value.dtype)
        if value.ndim == 3:
            experts = (self._expert(matrix, role) for matrix in value)
            return torch.stack(list(experts))
        if role.writes or role.values:
            return self._matrix(value, role)
        # Without outputs to rotate, the rows are independent.
        rows = max(1, CHUNK // value.shape[1])
        return torch.cat([self._matrix(part, role) for part in torch.split(value, rows)])

    def _expert(self, stored: Tensor, role: Role) -> Tensor:
        if not role.input_major:
            return self._matrix(stored, role)
        return self._matrix(stored.t(), role).t()

    def _matrix(self, weight: Tensor, role: Role) -> Tensor:
        """Change a weight `[out, in]`."""
        wide = weight.double()
        if role.norm is not None:
            wide = wide * self.gains[role.norm]
        if role.reads and self.residual is not None:
            wide = self.residual.apply(wide)
        if role.context is not None:
            heads = self.values[role.context]
            of_query = [rotation for rotation in heads for _ in range(self.groups)]
            wide = _by_head(wide, of_query)
        return self._write(wide, role).to(weight.dtype)

    def _write(self, wide: Tensor, role: Role) -> Tensor:
        """Rotate the output features of a float64 `[out, in]`."""
        if role.writes and self.residual is not None:
            wide = self.residual.apply(wide.t()).t()
        if role.values is not None:
            wide = _by_head(wide.t(), self.values[role.values]).t()
        return wide


def _by_head(rows: Tensor, rotations: list[Rotation]) -> Tensor:
    """Rotate each head's part of rows `[n, heads * head_dim]`."""
    parts = torch.split(rows, rotations[0].size, dim=1)
    pairs = zip(parts, rotations, strict=True)
    return torch.cat([rotation.apply(part) for part, rotation in pairs], dim=1)
