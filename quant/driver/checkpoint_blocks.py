"""Load the blocks of a float checkpoint one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...model.checkpoint import CheckpointReader
from ...model.families import EMBEDDING
from ...model.loading import load_block, release_block
from ...model.qwen_vl import QwenVL
from ..methods.hessian.cholesky import is_finite
from ..methods.rtn import row_chunks
from ..steps.step import Step
from .padding import Padding, pad_tensors


@dataclass(frozen=True)
class CheckpointBlocks:
    """Block source over a float checkpoint, for a model whose modules are on `meta`."""

    reader: CheckpointReader
    model: QwenVL
    padding: Sequence[Padding]
    device: torch.device
    embedding: Step | None = None
    """Rounds the token embedding, whose rows the decoder is then calibrated on. It is rounded again
    whenever it is loaded: that takes seconds, and the float table is in memory anyway."""

    def load(self, path: str) -> nn.Module:
        """See `BlockSource.load`.

        Raises:
            ValueError: a weight is not finite, or its shape differs from the model's config.
        """
        load_block(self.reader, self.model, path, device=self.device, transform=self._transform)
        return self.model.get_submodule(path)

    def release(self, path: str) -> None:
        """See `BlockSource.release`."""
        release_block(self.model.get_submodule(path))

    def _transform(self, name: str, value: Tensor) -> Tensor:
        """Refuse values that are not finite; pad the widths that grow; round the embedding."""
        if value.is_floating_point() and not is_finite(value):
            kind = "NaN" if bool(value.isnan().any()) else "infinity"
            raise ValueError(
                f"{self.reader.folder}: {name} holds {kind}; the checkpoint is broken, fetch or "
                "train it again"
            )
        if self.embedding is not None and name == f"{EMBEDDING}.weight":
            return _rounded(value.to(self.model.dtype), self.embedding)
        return pad_tensors({name: value}, self.model.config, self.padding).get(name, value)


def _rounded(table: Tensor, step: Step) -> Tensor:
    """Round the rows of a table, in place."""
    for rows in row_chunks(table):
        rows.copy_(step.solve(rows, None).weight.dequantize(table.dtype))
    return table
