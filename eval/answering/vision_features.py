"""Vision features, computed once per image and model.

One cache serves every pass over the items of an evaluation: answers, log-probabilities or
divergences, and the noise floor. The rotations of a question and repeated images share entries.
Each image is encoded by itself, so that its features do not depend on the images encoded before
it, in this run or before an interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...model.features import Features, feature_bytes
from ...model.finite import NotFiniteError
from ...model.processing.inputs import Prompt, TokenSelection, Visual
from ...model.processing.processor import Processor
from ...model.qwen_vl import QwenVL
from ...model.token_reduction.apply import reduce_prompt, select_tokens
from ..bounded_cache import BoundedCache
from ..tasks.files.image_store import StoredImage
from ..tasks.resolution import PixelBounds
from ..tasks.task import Item
from .prompt_lengths import prompt_length

CACHE_BYTES = 2 << 30
"""Default budget for features, on the device of the model."""

_Key = tuple[StoredImage, PixelBounds | None]


@dataclass(frozen=True)
class _Encoded:
    """One encoded image."""

    visual: Visual
    """Its patches are zeros without memory: only their number is read."""
    features: Features
    """In the dtype of the model."""
    selection: TokenSelection | None
    """The tokens that the model's `reduction` keeps; None without one."""


class FeatureCache:
    """Prompts of items and features of their images, for one model.

    Args:
        model: in eval mode.
        processor: processor of the model.
        max_bytes: budget for features; the features of a batch in progress are not counted.
    """

    def __init__(
        self, model: QwenVL, processor: Processor, *, max_bytes: int = CACHE_BYTES
    ) -> None:
        self.model = model
        self.processor = processor
        self.encoded = 0
        """Images encoded so far, including those encoded again after eviction."""
        self._entries: BoundedCache[_Key, _Encoded] = BoundedCache(max_bytes)

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Count the tokens of each item's prompt; decodes and encodes no image."""
        return [prompt_length(item, self.processor) for item in items]

    def prompts(
        self, items: Sequence[Item], answers: Sequence[str] | None = None
    ) -> tuple[list[Prompt], list[list[Features]]]:
        """Build the prompts of a batch.

        Args:
            items: the questions.
            answers: appended to each prompt with the end-of-turn token; None leaves the prompts
                open for generation.

        Returns:
            The prompts, reduced if the model has a `reduction`, and the features of all tokens of
            each prompt's images.

        Raises:
            NotFiniteError: features of an image are NaN or infinite; the message names the item.
        """
        prompts: list[Prompt] = []
        features: list[list[Features]] = []
        # The images of the batch stay here even if the cache evicts them.
        batch: dict[_Key, _Encoded] = {}
        for row, item in enumerate(items):
            keys = [(image, item.pixels) for image in item.images]
            try:
                batch.update({key: self._encode(key) for key in keys if key not in batch})
            except NotFiniteError as error:
                raise error.within(f"item {item.id}") from error
            prompt = self.processor.encode(
                item.messages,
                answer=None if answers is None else answers[row],
                answer_is_generated=True,
                visuals=[batch[key].visual for key in keys],
            )
            selections = [s for key in keys if (s := batch[key].selection) is not None]
            prompts.append(
                reduce_prompt(prompt, selections, self.model.config) if selections else prompt
            )
            features.append([batch[key].features for key in keys])
        return prompts, features

    def clear(self) -> None:
        """Drop all features."""
        self._entries.clear()

    @torch.inference_mode()
    def _encode(self, key: _Key) -> _Encoded:
        if (cached := self._entries.get(key)) is not None:
            return cached
        image, bounds = key
        # Decoded here and not by the processor: published scores use another way of decoding.
        visual = self.processor.image(image.open(), bounds.area if bounds else None)
        [features] = self.model.encode([visual])
        self.encoded += 1
        merge, rule = self.model.config.vision.spatial_merge_size, self.model.reduction
        selection = None if rule is None else select_tokens(rule, visual, features, merge)
        count = visual.patches.shape[0]
        without_patches = replace(visual, patches=torch.zeros(1, 1).expand(count, 1))
        encoded = _Encoded(without_patches, features, selection)
        self._entries.add(key, encoded, feature_bytes(features))
        return encoded
