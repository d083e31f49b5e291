"""The whole model: visuals are encoded, put in place of their tokens, and read by the decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import CacheType, KVCache
from .config import ModelConfig
from .families import family_of
from .finite import check_finite
from .processing.inputs import Batch, Prompt, Visual
from .text import TextModel
from .vision import VisionTower

# Patches encoded in one go. Bounds the memory of the vision tower (its widest activation is a few
# kilobytes per patch) and changes no result: visuals never attend to each other.
MAX_PATCHES = 32768


class QwenVL(nn.Module):
    """Qwen2-VL or Qwen2.5-VL; attribute names equal the checkpoint's.

    `lm_head` is None when the output shares the token embedding.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = VisionTower(config.vision)
        self.model = TextModel(config.text, family_of(config).mrope_layout)
        self.lm_head: nn.Module | None = (
            None
            if config.text.tie_word_embeddings
            else nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        )
        self.cache_type: CacheType = "model"
        """How keys and values are kept while an answer is generated."""
        self.head_product: Callable[[Tensor, Tensor], Tensor] = F.linear
        """Multiplies hidden states with a shared head; whoever prepares a model may replace it."""

    @property
    def device(self) -> torch.device:
        """Where the decoder's embedding lies, and inputs go."""
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the decoder's embedding and of the hidden states."""
        return self.model.embed_tokens.weight.dtype

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` prompts of at most `capacity` tokens with their answers."""
        return KVCache(self.config.text, batch, capacity, self.cache_type)

    def encode(self, visuals: Sequence[Visual]) -> list[Tensor]:
        """Features of each visual, `[n_tokens, hidden]` in decoder order.

        Raises:
            NotFiniteError: A feature is NaN or infinite.
        """
        features: list[Tensor] = []
        for group in _within(visuals, MAX_PATCHES):
            patches = torch.cat([visual.patches for visual in group])
            grid = torch.tensor([visual.grid for visual in group])
            unit = self.config.vision.merge_unit
            sizes = [visual.patches.shape[0] // unit for visual in group]
            found = self.visual(patches, grid)
            check_finite(found, "the vision tower's features are", self)
            features += torch.split(found, sizes)
        return features

    def embed(
        self, prompts: Sequence[Prompt], features: Sequence[Sequence[Tensor]] | None = None
    ) -> Batch:
        """Embed prompts as one batch, padded on the left.

        Args:
            prompts: At least one.
            features: What `encode` gave for the visuals of each prompt; computed when None.

        Raises:
            ValueError: A prompt's visual tokens and features differ in number.
        """
        if not prompts:
            raise ValueError("no prompts given; give at least one")
        if features is None:
            flat = iter(self.encode([visual for prompt in prompts for visual in prompt.visuals]))
            features = [[next(flat) for _ in prompt.visuals] for prompt in prompts]
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
        if (parts := list(chain.from_iterable(features))) and bool(is_visual.any()):
            places = torch.nonzero(is_visual, as_tuple=True)
            values = torch.cat([part.to(embeds.device, embeds.dtype) for part in parts])
            embeds = embeds.index_put([place.to(embeds.device) for place in places], values)
        return Batch(embeds, position_ids.to(self.device), padding.to(self.device))

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 scores `[..., vocab]` of final hidden states `[..., hidden]`."""
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        if isinstance(head, nn.Embedding):
            return self.head_product(hidden, head.weight).float()
        out: Tensor = head(hidden)
        return out.float()

    def forward(
        self,
        prompts: Sequence[Prompt],
        features: Sequence[Sequence[Tensor]] | None = None,
        last: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """float32 logits `[tokens, vocab]` of each prompt; padding changes no result.

        Args:
            prompts: At least one.
            features: What `encode` gave for the visuals of each prompt; computed when None.
            last: For each prompt how many final positions are wanted; all when None.
        """
        batch = self.embed(prompts, features)
        hidden = self.model(batch.embeds, batch.position_ids, batch.attention_mask())
        wanted = [len(prompt) for prompt in prompts] if last is None else list(last)
        total = hidden.shape[1]
        rows = [hidden[row, total - count :] for row, count in enumerate(wanted)]
        # One product for all prompts, over the wanted rows only: the vocabulary is the widest
        # dimension of the model.
        return list(torch.split(self.logits(torch.cat(rows)), wanted))

    def _visual_tokens(self, input_ids: Tensor, padding: Tensor) -> Tensor:
        config = self.config
        real = torch.arange(input_ids.shape[1]) >= padding[:, None]
        visual = (input_ids == config.image_token_id) | (input_ids == config.video_token_id)
        return visual & real


def _check_counts(is_visual: Tensor, features: Sequence[Sequence[Tensor]]) -> None:
    if len(features) != is_visual.shape[0]:
        raise ValueError(
            f"features for {len(features)} prompts but {is_visual.shape[0]} prompts; "
            "give one list per prompt"
        )
    for row, (found, parts) in enumerate(zip(is_visual.sum(1).tolist(), features, strict=True)):
        given = sum(part.shape[0] for part in parts)
        if found != given:
            raise ValueError(
                f"prompt {row} has {found} image and video tokens but features of {given}; "
                "a prompt must not be cut inside a visual"
            )


def _within(visuals: Sequence[Visual], limit: int) -> Iterator[list[Visual]]:
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
