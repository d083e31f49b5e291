"""Apply a reduction rule: select the tokens of a visual, and shorten prompts accordingly.

Tokens are dropped between the merger and the decoder, so the KV cache is shorter in every layer.
Kept tokens keep their M-RoPE positions and text keeps the positions that it would have had: the
result is that of a decoder in which no token attends to the dropped ones. Text is never dropped.
A video is reduced frame by frame, a frame being one temporal patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..config import ModelConfig
from ..features import HIDDEN
from ..processing.inputs import Prompt, TokenSelection, Visual, visual_mask
from .rule import Frame, ReductionRule


def select_tokens(
    rule: ReductionRule, visual: Visual, features: Mapping[str, Tensor], merge: int
) -> TokenSelection:
    """Select the tokens of a visual that are kept.

    Args:
        rule: the rule.
        visual: the visual.
        features: result of `QwenVL.encode` for it.
        merge: patches per token and side, `spatial_merge_size`.
    """
    frames, height, width = visual.grid[0], visual.grid[1] // merge, visual.grid[2] // merge
    kept = []
    for number, of_frame in enumerate(torch.split(features[HIDDEN], height * width)):
        content = visual.digest if frames == 1 else f"{visual.digest} {number}"
        selected = rule.select(Frame(of_frame, height, width, content))
        kept.append(selected + number * height * width)
    return TokenSelection(torch.cat(kept), frames * height * width)


def reduce_prompt(
    prompt: Prompt, selections: Sequence[TokenSelection], config: ModelConfig
) -> Prompt:
    """Drop the tokens of a prompt's visuals that are not selected.

    Args:
        prompt: with all tokens.
        selections: one for each of its visuals.
        config: gives the ids of image and video tokens.

    Raises:
        ValueError: the selections do not fit the prompt, the prompt is reduced already, or it ends
            in a visual, so that the position of the next token would change.
    """
    if prompt.selections:
        raise ValueError("the prompt is reduced already; reduce the one with all tokens")
    places = torch.nonzero(visual_mask(prompt.input_ids, config)).flatten()
    total = sum(selection.total for selection in selections)
    if len(selections) != len(prompt.visuals) or total != len(places):
        raise ValueError(
            f"{len(selections)} selections of {total} tokens for {len(prompt.visuals)} visuals of "
            f"{len(places)} tokens; select from the visuals of this prompt"
        )
    is_kept = torch.ones(len(prompt), dtype=torch.bool)
    is_kept[places] = False
    start = 0
    for selection in selections:
        is_kept[places[start + selection.kept]] = True
        start += selection.total
    reduced = replace(
        prompt,
        input_ids=prompt.input_ids[is_kept],
        position_ids=prompt.position_ids[:, is_kept],
        selections=tuple(selections),
    )
    if reduced.next_position != prompt.next_position:
        raise ValueError(
            "the prompt ends in an image or video, and the position after it would change; put "
            "text after it"
        )
    return reduced
