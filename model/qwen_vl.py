"""The whole model: the vision tower encodes visuals, whose features replace placeholder tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import KVCache
from .config import ModelConfig
from .families import family_of
from .family_check import check_family
from .features import (
    HIDDEN,
    VISUAL_ROWS,
    Features,
    count_tokens,
    join_features,
    select_rows,
    split_features,
)
from .finite import check_finite
from .kv_quant.scales import KVScales
from .kv_quant.types import CacheType
from .processing.inputs import Batch, Prompt, Visual, visual_mask
from .token_reduction.apply import reduce_prompt, select_tokens
from .token_reduction.rule import ReductionRule
from .token_table import rows_like

MAX_PATCHES = 32768
"""Patches per call of the vision tower. Bounds its memory (the widest activation takes a few
kilobytes per patch) and changes no result: visuals never attend to each other."""


class QwenVL(nn.Module):
    """A model of any family; attribute names equal the checkpoint's.

    `lm_head` is None if the output head is tied to the token embedding.

    Raises:
        ValueError: the family's table does not describe the modules.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        family = family_of(config)
        self.visual = family.build_tower(config.vision)
        self.model = family.build_decoder(config.text, family.mrope_layout)
        self.lm_head: nn.Module | None = (
            None
            if config.text.tie_word_embeddings
            else nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        )
        check_family(self, family)
        self.cache_type: CacheType = "model"
        """Type of the KV cache, which also `forward` attends through unless it is `model`."""
        self.cache_scales: Sequence[KVScales] | None = None
        """Calibrated scales of an fp8 cache, for each cached layer; None: there are none."""
        self.reduction: ReductionRule | None = None
        """Rule that selects the visual tokens of every prompt; None: all are kept."""
        self.head_product: Callable[[Tensor, Tensor], Tensor] = F.linear
        """Product of hidden states and a tied head; `quant.runtime` may set a faster kernel."""

    @property
    def device(self) -> torch.device:
        """Device of the decoder's embedding, and of the inputs."""
        return rows_like(self.model.embed_tokens).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the decoder's embedding and of the hidden states."""
        return rows_like(self.model.embed_tokens).dtype

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """Create an empty cache for `batch` prompts of `capacity` tokens, answers included."""
        return KVCache(self.config.text, batch, capacity, self.cache_type, self.cache_scales)

    def encode(self, visuals: Sequence[Visual]) -> list[Features]:
        """Compute the features of each visual, tensors `[tokens, hidden]` in decoder order.

        Raises:
            NotFiniteError: a feature is NaN or infinite.
            ValueError: the tower gives others than the family's table lists.
        """
        features: list[Features] = []
        for group in _group(visuals, MAX_PATCHES):
            patches = torch.cat([visual.patches for visual in group])
            grid = torch.tensor([visual.grid for visual in group])
            unit = self.config.vision.merge_unit
            sizes = [visual.patches.shape[0] // unit for visual in group]
            encoded = self.visual(patches, grid)
            expected = family_of(self.config).features(self.config)
            if set(encoded) != set(expected):
                raise ValueError(
                    f"the tower gives the features {', '.join(encoded)}, the table of "
                    f"{self.config.family} lists {', '.join(expected)}; correct one of them"
                )
            for values in encoded.values():
                check_finite(values, "the vision tower's features are", self)
            features += split_features(encoded, sizes)
        return features

    def reduce(
        self, prompts: Sequence[Prompt], features: Sequence[Sequence[Features]] | None = None
    ) -> tuple[Sequence[Prompt], Sequence[Sequence[Features]] | None]:
        """Drop visual tokens by `reduction`; the prompts are returned as they are without one.

        Args:
            prompts: those that are reduced already stay as they are.
            features: result of `encode` for the visuals of each prompt; None computes it.

        Returns:
            The prompts, and the features of all tokens, from which `embed` takes the kept ones.
        """
        if self.reduction is None:
            return prompts, features
        if features is None:
            features = self._encode_each(prompts)
        merge = self.config.vision.spatial_merge_size
        reduced = []
        for prompt, of_prompt in zip(prompts, features, strict=True):
            if prompt.visuals and not prompt.selections:
                selections = [
                    select_tokens(self.reduction, visual, of_visual, merge)
                    for visual, of_visual in zip(prompt.visuals, of_prompt, strict=True)
                ]
                prompt = reduce_prompt(prompt, selections, self.config)
            reduced.append(prompt)
        return reduced, features

    def _encode_each(self, prompts: Sequence[Prompt]) -> list[list[Features]]:
        """Compute the features of the visuals of each prompt."""
        flat = iter(self.encode([visual for prompt in prompts for visual in prompt.visuals]))
        return [[next(flat) for _ in prompt.visuals] for prompt in prompts]

    def embed(
        self, prompts: Sequence[Prompt], features: Sequence[Sequence[Features]] | None = None
    ) -> Batch:
        """Embed prompts as one batch, padded on the left.

        Args:
            prompts: at least one; of those that are reduced, the kept tokens are embedded.
            features: result of `encode` for the visuals of each prompt; None computes it.

        Raises:
            ValueError: there are no prompts, or a prompt's visual tokens and features differ in
                number.
        """
        if not prompts:
            raise ValueError("no prompts given; give at least one")
        if features is None:
            features = self._encode_each(prompts)
        features = _kept_features(prompts, features)
        longest = max(len(prompt) for prompt in prompts)
        input_ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        position_ids = torch.zeros(3, len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            input_ids[row, longest - len(prompt) :] = prompt.input_ids
            position_ids[:, row, longest - len(prompt) :] = prompt.position_ids
        padding = torch.tensor([longest - len(prompt) for prompt in prompts])
        is_visual = self._visual_tokens(input_ids, padding)
        _check_counts(is_visual, features)
        embeds = self.model.embed_tokens(input_ids.to(self.device))
        added: Features = {}
        if (flat_features := list(chain.from_iterable(features))) and bool(is_visual.any()):
            # nonzero lists tokens row by row, which is the order of the features.
            indices = torch.nonzero(is_visual, as_tuple=True)
            added = join_features(flat_features, embeds)
            values = added.pop(HIDDEN)
            embeds = embeds.index_put([index.to(embeds.device) for index in indices], values)
            if added:
                rows = torch.nonzero(is_visual.flatten())[:, 0]
                added[VISUAL_ROWS] = rows.to(embeds.device)
        return Batch(embeds, position_ids.to(self.device), padding.to(self.device), added)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute float32 logits `[..., vocab]` from final hidden states `[..., hidden]`."""
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        if isinstance(head, nn.Embedding):
            return self.head_product(hidden, head.weight).float()
        out: Tensor = head(hidden)
        return out.float()

    def forward(
        self,
        prompts: Sequence[Prompt],
        features: Sequence[Sequence[Features]] | None = None,
        last: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Compute float32 logits `[tokens, vocab]` of each prompt; padding changes no result.

        With a `reduction`, the tokens are those that it keeps.

        With a quantized cache every token attends to quantized keys and values, so that the logits
        are those of decoding the tokens one by one.

        Args:
            prompts: at least one.
            features: result of `encode` for the visuals of each prompt; None computes it.
            last: number of final positions to return for each prompt; None: all.
        """
        prompts, features = self.reduce(prompts, features)
        batch = self.embed(prompts, features)
        mask = batch.attention_mask()
        cache = None
        if self.cache_type != "model":
            cache = self.new_cache(len(prompts), batch.embeds.shape[1])
        hidden = self.model(batch.embeds, batch.position_ids, mask, cache, batch.added)
        counts = [len(prompt) for prompt in prompts] if last is None else list(last)
        total = hidden.shape[1]
        rows = [hidden[row, total - count :] for row, count in enumerate(counts)]
        # One product for all prompts, over the requested rows only: the vocabulary is the widest
        # dimension of the model.
        return list(torch.split(self.logits(torch.cat(rows)), counts))

    def _visual_tokens(self, input_ids: Tensor, padding: Tensor) -> Tensor:
        """Which tokens are image or video tokens and no padding, bool `[batch, tokens]`."""
        # Padding has the id 0, which may be a placeholder's.
        is_token = torch.arange(input_ids.shape[1]) >= padding[:, None]
        return visual_mask(input_ids, self.config) & is_token


def _kept_features(
    prompts: Sequence[Prompt], features: Sequence[Sequence[Features]]
) -> Sequence[Sequence[Features]]:
    """Select the features of the tokens that reduced prompts keep."""
    if len(prompts) != len(features) or not any(prompt.selections for prompt in prompts):
        return features
    return [
        [
            select_rows(of_visual, selection.kept)
            for of_visual, selection in zip(of_prompt, prompt.selections, strict=True)
        ]
        if prompt.selections
        else of_prompt
        for prompt, of_prompt in zip(prompts, features, strict=True)
    ]


def _check_counts(is_visual: Tensor, features: Sequence[Sequence[Features]]) -> None:
    if len(features) != is_visual.shape[0]:
        raise ValueError(
            f"features for {len(features)} prompts but {is_visual.shape[0]} prompts; "
            "give one list per prompt"
        )
    counts = is_visual.sum(1).tolist()
    for row, (count, row_features) in enumerate(zip(counts, features, strict=True)):
        available = sum(map(count_tokens, row_features))
        if count != available:
            raise ValueError(
                f"prompt {row} has {count} image and video tokens but features of {available}; "
                "a prompt must not be cut inside a visual"
            )


def _group(visuals: Sequence[Visual], limit: int) -> Iterator[list[Visual]]:
    """Group consecutive visuals with at most `limit` patches per group, at least one visual."""
    group: list[Visual] = []
    size = 0
    for visual in visuals:
        patches = visual.patches.shape[0]
        if group and size + patches > limit:
            yield group
            group, size = [], 0
        group.append(visual)
        size += patches
    if group:
        yield group
