"""Load the blocks of a float checkpoint one at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...model.checkpoint import CheckpointReader
from ...model.loading import load_block, release_block
from ...model.qwen_vl import QwenVL
from ..methods.cholesky import is_finite
from .padding import Padding, pad_tensors


class CheckpointBlocks:
    """Block source over a float checkpoint, for a model whose modules are on `meta`."""

    def __init__(
        self,
        reader: CheckpointReader,
        model: QwenVL,
        padding: Sequence[Padding],
        device: torch.device,
    ) -> None:
        self._reader, self._model, self._padding = reader, model, padding
        self.device = device

    def load(self, path: str) -> nn.Module:
        """See `BlockSource.load`.

        Raises:
            ValueError: a weight is not finite, or its shape differs from the model's config.
        """
        load_block(
            self._reader, self._model, path, device=self.device, transform=self._check_and_pad
        )
        return self._model.get_submodule(path)

    def release(self, path: str) -> None:
        """See `BlockSource.release`."""
        release_block(self._model.get_submodule(path))

    def _check_and_pad(self, name: str, value: Tensor) -> Tensor:
        """Refuse values that are not finite; pad the widths that grow."""
        if value.is_floating_point() and not is_finite(value):
            kind = "NaN" if bool(value.isnan().any()) else "infinity"
            raise ValueError(
                f"{self._reader.folder}: {name} holds {kind}; the checkpoint is broken, fetch or "
                "train it again"
            )
        return pad_tensors({name: value}, self._model.config, self._padding).get(name, value)
