"""Prompts that begin alike: what they share is read once.

The rotations of a multiple-choice question show the same pictures before the same question, and
pictures are most of their tokens. Each distinct beginning is prefilled once, its keys and values
are copied to every prompt that has it, and only the rest of each prompt is read by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .cache import KVCache
from .config import ModelConfig
from .processing.inputs import Prompt
from .qwen_vl import QwenVL

WORTHWHILE = 0.25  # of all tokens that must be saved; below, one plain prefill is faster


@dataclass(frozen=True)
class Split:
    """Prompts cut in two; a head and its tail together are the prompt."""

    heads: list[Prompt]
    """The distinct beginnings, with all visuals."""
    tails: list[Prompt]
    """The rest of each prompt, at least one token, without visuals."""
    head_of: list[int]
    """Which head each prompt has."""
    first: list[int]
    """A prompt that has each head."""


def split_prompts(prompts: Sequence[Prompt], config: ModelConfig) -> Split | None:
    """Cut prompts where those with the same visuals begin to differ.

    Args:
        prompts: at least one, of any lengths.
        config: tells which tokens stand for visuals.

    Returns:
        None if that saves less than `WORTHWHILE` of all tokens.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(tuple(v.digest for v in prompt.visuals), []).append(place)
    heads: list[Prompt] = []
    first: list[int] = []
    cut: dict[int, tuple[int, int]] = {}  # prompt -> its head, and where it is cut
    for members in groups.values():
        length = _shared([prompts[place] for place in members])
        if length <= _visual_end(prompts[members[0]], config):
            for place in members:  # alone: all but the last token
                cut[place] = len(heads), len(prompts[place]) - 1
                heads.append(_head(prompts[place], len(prompts[place]) - 1))
                first.append(place)
            continue
        cut |= dict.fromkeys(members, (len(heads), length))
        heads.append(_head(prompts[members[0]], length))
        first.append(members[0])
    tails = [_tail(prompt, cut[place][1]) for place, prompt in enumerate(prompts)]
    read, total = sum(map(len, heads)) + sum(map(len, tails)), sum(map(len, prompts))
    if total - read < WORTHWHILE * total:
        return None
    return Split(heads, tails, [cut[place][0] for place in range(len(prompts))], first)


def _shared(prompts: Sequence[Prompt]) -> int:
    """How many tokens all begin with, at most all but one of the shortest."""
    length = min(map(len, prompts)) - 1
    first = prompts[0]
    for other in prompts[1:]:
        same = first.input_ids[:length] == other.input_ids[:length]
        same &= (first.position_ids[:, :length] == other.position_ids[:, :length]).all(0)
        length = int(same.long().cumprod(0).sum())
    return length


def _visual_end(prompt: Prompt, config: ModelConfig) -> int:
    """One past the last token that stands for a visual; 0 without any."""
    ids = prompt.input_ids
    places = torch.nonzero((ids == config.image_token_id) | (ids == config.video_token_id))
    return int(places[-1]) + 1 if len(places) else 0


def _head(prompt: Prompt, length: int) -> Prompt:
    return replace(
        prompt,
        input_ids=prompt.input_ids[:length],
        position_ids=prompt.position_ids[:, :length],
        answer_tokens=0,
    )


def _tail(prompt: Prompt, length: int) -> Prompt:
    return Prompt(prompt.input_ids[length:], prompt.position_ids[:, length:])


def prefill(
    model: QwenVL,
    prompts: Sequence[Prompt],
    features: Sequence[Sequence[Tensor]] | None,
    room: int,
) -> tuple[Tensor, KVCache, Tensor]:
    """Read prompts into a cache.

    Args:
        model: in eval mode.
        prompts: at least one.
        features: what `QwenVL.encode` gave for each prompt's visuals; computed when None.
        room: columns that the cache keeps free.

    Returns:
        Hidden states of the last tokens ``[batch, 1, hidden]``, the cache, and which of its columns
        hold a token, bool ``[batch, columns]``.
    """
    parts = split_prompts(prompts, model.config)
    if parts is None:
        batch = model.embed(prompts, features)
        cache = model.new_cache(len(prompts), batch.embeds.shape[1] + room)
        hidden = model.model(batch.embeds, batch.position_ids, batch.attention_mask(), cache)
        return hidden[:, -1:], cache, _real(batch.embeds, batch.padding)
    shown = None if features is None else [features[place] for place in parts.first]
    heads = model.embed(parts.heads, shown)
    columns = heads.embeds.shape[1]
    read = model.new_cache(len(parts.heads), columns)
    model.model(heads.embeds, heads.position_ids, heads.attention_mask(), read)
    tails = model.embed(parts.tails, [[] for _ in parts.tails])
    new = tails.embeds.shape[1]
    owners = torch.tensor(parts.head_of, device=heads.embeds.device)
    cache = read.copy_rows(owners, columns + new + room)
    del read
    real = torch.cat(
        [_real(heads.embeds, heads.padding)[owners], _real(tails.embeds, tails.padding)], dim=1
    )
    hidden = model.model(tails.embeds, tails.position_ids, _mask(real, new), cache)
    return hidden[:, -1:], cache, real


def _real(embeds: Tensor, padding: Tensor) -> Tensor:
    """Which columns are no padding, bool ``[batch, columns]``."""
    return torch.arange(embeds.shape[1], device=padding.device) >= padding[:, None]


def _mask(real: Tensor, new: int) -> Tensor:
    """What the last `new` columns may look at, bool ``[batch, 1, new, columns]``.

    A padded token sees itself, so that no row is empty (an empty softmax is NaN).
    """
    total = real.shape[1]
    columns = torch.arange(total, device=real.device)
    rows = columns[total - new :]
    mask = (rows[:, None] >= columns) & real[:, None, :] | (rows[:, None] == columns)
    return mask[:, None]
