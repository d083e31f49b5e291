"""Inputs of a model: visuals as patches, prompts with their visuals, and batches of prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..cache import padded_causal_mask
from ..config import ModelConfig


@dataclass(frozen=True, eq=False)
class Visual:
    """One image or video, cut into patches in merge order."""

    kind: Literal["image", "video"]
    patches: Tensor  # float32 [t * h * w, channels * frames * patch * patch]
    grid: tuple[int, int, int]  # t, h, w in patches
    seconds_per_grid: float  # seconds per temporal patch; 0 for an image
    digest: str  # sha256 of the decoded pixels and the pixel budget; key of feature caches
    times: tuple[float, ...] = ()  # of each temporal patch of a video, in seconds


@dataclass(frozen=True, eq=False)
class TokenSelection:
    """The tokens of a visual that the decoder computes with, see `token_reduction`."""

    kept: Tensor  # int64 [kept], ascending indices of tokens, at least one
    total: int  # tokens of the visual


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids with their positions, and the visuals of the placeholder tokens in order."""

    input_ids: Tensor  # int64 [tokens]
    position_ids: Tensor  # int64 [3, tokens]
    visuals: tuple[Visual, ...] = ()
    answer_tokens: int = 0  # number of tokens of the answer at the end, end of turn included
    selections: tuple[TokenSelection, ...] = ()
    """Of each visual, if the prompt is reduced to these tokens; empty: it has all tokens."""

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    @property
    def next_position(self) -> int:
        """Position id (t = h = w) of the next token after the prompt."""
        return int(self.position_ids.max()) + 1

    @property
    def kept_visual_tokens(self) -> int:
        """Number of tokens that a reduction has kept of the visuals; 0 without a reduction."""
        return sum(len(selection.kept) for selection in self.selections)

    @property
    def dropped_tokens(self) -> int:
        """Number of tokens that a reduction has dropped."""
        return sum(selection.total for selection in self.selections) - self.kept_visual_tokens


def visual_mask(input_ids: Tensor, config: ModelConfig) -> Tensor:
    """Return a mask of the image and video tokens, bool of the shape of `input_ids`."""
    is_image = input_ids == config.image_token_id
    if config.video_token_id is None:
        return is_image
    return is_image | (input_ids == config.video_token_id)


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of unequal length, padded on the left so that they all end together."""

    embeds: Tensor  # [batch, tokens, hidden]
    position_ids: Tensor  # int64 [3, batch, tokens]
    padding: Tensor  # int64 [batch]: number of padded tokens on the left
    added: Mapping[str, Tensor] = field(default_factory=dict)
    """Features of all visuals that decoder layers add to hidden states, each `[visual tokens,
    hidden]`, and the rows of these tokens, `VISUAL_ROWS`; empty if there are none."""

    def attention_mask(self) -> Tensor | None:
        """Build the causal mask, see `padded_causal_mask`; None if nothing is padded."""
        if not bool(self.padding.any()):
            return None
        return padded_causal_mask(self.is_token(), self.embeds.shape[1])

    def is_token(self) -> Tensor:
        """Return which columns are not padding, bool `[batch, tokens]`."""
        columns = torch.arange(self.embeds.shape[1], device=self.padding.device)
        return columns >= self.padding[:, None]
