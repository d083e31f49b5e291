"""Prefix sharing: compute the KV cache of a common prefix once per batch.

The rotations of a multiple-choice question show the same images before the same question, and most
of their tokens are image tokens. Each distinct prefix is prefilled once, its keys and values are
copied to all prompts that start with it, and only the suffixes are prefilled per prompt.

This is exact up to rounding: attention is causal, so the keys and values of a prefix do not depend
on the tokens after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .cache import KVCache, padded_causal_mask
from .config import ModelConfig
from .features import Features
from .processing.inputs import Prompt, visual_mask
from .qwen_vl import QwenVL

MIN_SAVED_SHARE = 0.25
"""Share of all tokens that must be saved. Two passes of the decoder, of prefixes and of suffixes,
read the weights twice and copy the cache, so below it one plain prefill is faster."""


@dataclass(frozen=True)
class PrefixSplit:
    """Prompts split in two; prompt i is `prefixes[prefix_of[i]]` followed by `suffixes[i]`."""

    prefixes: list[Prompt]
    """Distinct prefixes, with all visuals."""
    suffixes: list[Prompt]
    """Rest of each prompt: at least one token, because its hidden state predicts the next one, and
    no visuals."""
    prefix_of: list[int]
    """Index of each prompt's prefix."""
    example_of: list[int]
    """Index of one prompt that has each prefix."""


def split_prompts(prompts: Sequence[Prompt], config: ModelConfig) -> PrefixSplit | None:
    """Split prompts with the same visuals where they begin to differ.

    Args:
        prompts: at least one, of any lengths.
        config: gives the ids of image and video tokens.

    Returns:
        None if that saves less than `MIN_SAVED_SHARE` of all tokens.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        kept = tuple(tuple(each.kept.tolist()) for each in prompt.selections)
        groups.setdefault((*(v.digest for v in prompt.visuals), kept), []).append(index)
    prefixes: list[Prompt] = []
    example_of: list[int] = []
    cuts: dict[int, tuple[int, int]] = {}  # prompt -> its prefix, length of the prefix
    for members in groups.values():
        length = _common_length([prompts[index] for index in members])
        if length <= _end_of_visuals(prompts[members[0]], config):
            # The common prefix does not reach beyond the visuals, and a suffix must not hold visual
            # tokens: nothing is shared, each prompt is its own prefix but for the last token.
            for index in members:
                cuts[index] = len(prefixes), len(prompts[index]) - 1
                prefixes.append(_prefix(prompts[index], len(prompts[index]) - 1))
                example_of.append(index)
            continue
        cuts |= dict.fromkeys(members, (len(prefixes), length))
        prefixes.append(_prefix(prompts[members[0]], length))
        example_of.append(members[0])
    suffixes = [_suffix(prompt, cuts[index][1]) for index, prompt in enumerate(prompts)]
    computed = sum(map(len, prefixes)) + sum(map(len, suffixes))
    total = sum(map(len, prompts))
    if total - computed < MIN_SAVED_SHARE * total:
        return None
    prefix_of = [cuts[index][0] for index in range(len(prompts))]
    return PrefixSplit(prefixes, suffixes, prefix_of, example_of)


def _common_length(prompts: Sequence[Prompt]) -> int:
    """Number of tokens that all begin with, at most all but one of the shortest."""
    length = min(map(len, prompts)) - 1
    first = prompts[0]
    for other in prompts[1:]:
        same = first.input_ids[:length] == other.input_ids[:length]
        # The same tokens after images of other sizes have other positions.
        same &= (first.position_ids[:, :length] == other.position_ids[:, :length]).all(0)
        length = int(same.long().cumprod(0).sum())  # length of the run of True at the start
    return length


def _end_of_visuals(prompt: Prompt, config: ModelConfig) -> int:
    """Index after the last image or video token; 0 without any."""
    indices = torch.nonzero(visual_mask(prompt.input_ids, config))
    return int(indices[-1]) + 1 if len(indices) else 0


def _prefix(prompt: Prompt, length: int) -> Prompt:
    return replace(
        prompt,
        input_ids=prompt.input_ids[:length],
        position_ids=prompt.position_ids[:, :length],
        answer_tokens=0,
    )


def _suffix(prompt: Prompt, length: int) -> Prompt:
    return Prompt(prompt.input_ids[length:], prompt.position_ids[:, length:])


def prefill(
    model: QwenVL,
    prompts: Sequence[Prompt],
    features: Sequence[Sequence[Features]] | None,
    reserve: int,
) -> tuple[Tensor, KVCache, Tensor]:
    """Run prompts through the decoder and fill a cache.

    Args:
        model: in eval mode.
        prompts: at least one.
        features: result of `QwenVL.encode` for each prompt's visuals; None computes it.
        reserve: number of tokens that the cache has capacity for after the prompts.

    Returns:
        Hidden states of the last tokens `[batch, 1, hidden]`, the cache, and which of its columns
        hold a token and no padding, bool `[batch, columns]`.
    """
    prompts, features = model.reduce(prompts, features)
    split = split_prompts(prompts, model.config)
    if split is None:
        batch = model.embed(prompts, features)
        cache = model.new_cache(len(prompts), batch.embeds.shape[1] + reserve)
        mask = batch.attention_mask()
        hidden = model.model(batch.embeds, batch.position_ids, mask, cache, batch.added)
        return hidden[:, -1:], cache, batch.is_token()
    prefix_features = None if features is None else [features[index] for index in split.example_of]
    prefixes = model.embed(split.prefixes, prefix_features)
    columns = prefixes.embeds.shape[1]
    prefix_cache = model.new_cache(len(split.prefixes), columns)
    mask = prefixes.attention_mask()
    model.model(prefixes.embeds, prefixes.position_ids, mask, prefix_cache, prefixes.added)
    suffixes = model.embed(split.suffixes, [[] for _ in split.suffixes])
    new = suffixes.embeds.shape[1]
    rows = torch.tensor(split.prefix_of, device=prefixes.embeds.device)
    cache = prefix_cache.copy_rows(rows, columns + new + reserve)
    del prefix_cache  # before the suffixes' activations need memory
    # A suffix is padded on the left too, so its padding is between prefix and suffix.
    is_token = torch.cat([prefixes.is_token()[rows], suffixes.is_token()], dim=1)
    mask = padded_causal_mask(is_token, new)
    hidden = model.model(suffixes.embeds, suffixes.position_ids, mask, cache)
    return hidden[:, -1:], cache, is_token
