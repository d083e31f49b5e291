"""What all vision towers have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .config import VisionConfig
from .features import Features
from .text import State

if TYPE_CHECKING:
    from .vision import PatchEmbed


class Tower(nn.Module):
    """Encoder from the patches of any number of images and videos to features for the decoder.

    `forward` is `prepare`, `step` for every block, `merge_kept` for every kept output, `merge`,
    `finish`; blockwise drivers call these, as the stages of the family say.
    """

    config: VisionConfig
    patch_embed: PatchEmbed
    blocks: nn.ModuleList
    merger: nn.Module
    kept: int = 0
    """Number of blocks whose outputs have mergers of their own; `step` keeps them in the state."""

    def forward(self, patches: Tensor, grid: Tensor) -> Features:
        """Encode visuals.

        Args:
            patches: `[N, channels * frames * patch * patch]`, concatenated visuals.
            grid: int64 `[visuals, 3]`: t, h, w of each in patches.

        Returns:
            Tensors `[N / merge_unit, out_hidden_size]` in the order of the patches.
        """
        state = self.prepare(patches, grid)
        for index in range(len(self.blocks)):
            state = self.step(index, state)
        for number in range(self.kept):
            state = self.merge_kept(number, state)
        return self.finish(self.merge(state))

    def prepare(self, patches: Tensor, grid: Tensor) -> State:
        """Compute the state before the first block; arguments as in `forward`."""
        raise NotImplementedError

    def step(self, index: int, state: State) -> State:
        """Run block `index`; returns the state with its `hidden`, `state` is not changed."""
        raise NotImplementedError

    def merge_kept(self, number: int, state: State) -> State:
        """Run the merger of a kept output, which its result replaces in the state."""
        raise NotImplementedError

    def merge(self, state: State) -> State:
        """Run the merger of the last block's output; returns the state with its `hidden`."""
        raise NotImplementedError

    def finish(self, state: Mapping[str, Tensor]) -> Features:
        """Select the features from the state after all mergers."""
        raise NotImplementedError
