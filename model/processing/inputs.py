"""What a model is fed: images cut into patches, and prompts that refer to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Visual:
    """One image or video, cut into patches in merge order."""

    kind: Literal["image", "video"]
    patches: Tensor  # float32 [t * h * w, channels * frames * patch * patch]
    grid: tuple[int, int, int]  # t, h, w in patches
    seconds_per_grid: float  # seconds that one temporal patch lasts; 0 for an image
    digest: str  # sha256 of the decoded pixels and the pixel budget; key of feature caches


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids with their positions and the visuals they stand for, in order of appearance."""

    input_ids: Tensor  # int64 [tokens]
    position_ids: Tensor  # int64 [3, tokens]
    visuals: tuple[Visual, ...] = ()
    answer_tokens: int = 0  # how many at the end are the answer with its end of turn

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    @property
    def next_position(self) -> int:
        """Position id (t = h = w) of the token that follows the prompt."""
        return int(self.position_ids.max()) + 1


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of unequal length, padded on the left so that they all end together."""

    embeds: Tensor  # [batch, tokens, hidden]
    position_ids: Tensor  # int64 [3, batch, tokens]
    padding: Tensor  # int64 [batch]: padded tokens on the left

    def attention_mask(self) -> Tensor | None:
        """Causal mask that hides the padding, bool `[batch, 1, tokens, tokens]`; None without any.

        A padded token sees itself, so that no row is empty (an empty softmax is NaN).
        """
        if not bool(self.padding.any()):
            return None
        tokens = self.embeds.shape[1]
        index = torch.arange(tokens, device=self.padding.device)
        causal = index[:, None] >= index
        real = index >= self.padding[:, None]
        mask = causal & real[:, None, :] | (index[:, None] == index)
        return mask[:, None]
