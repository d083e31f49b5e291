"""Vision features, computed once per picture and model.

The rotated rows of a question and repeated pictures share them. Each picture is encoded by
itself, so that its features do not depend on which other pictures were asked about before, in
this run or before it was interrupted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...model.finite import NotFiniteError
from ...model.processing.inputs import Prompt, Visual
from ...model.processing.processor import Processor
from ...model.qwen_vl import QwenVL
from ..tasks.files.image_store import Picture
from ..tasks.resolution import Bounds
from ..tasks.task import Item

CACHE_BYTES = 2 << 30

_Key = tuple[Picture, Bounds | None]  # how large it is shown


@dataclass(frozen=True)
class _Entry:
    visual: Visual  # patches replaced by as many zeros without memory: only their number is read
    features: tuple[Tensor, ...]  # one per model, [tokens, hidden]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.features)


class FeatureCache:
    """Turns items into prompts and their pictures into features, least recently used dropped.

    Args:
        processor: shared by all models.
        models: each gets its own features.
        max_bytes: what the features may hold; a single batch may exceed it.
    """

    def __init__(
        self, processor: Processor, models: Sequence[QwenVL], max_bytes: int = CACHE_BYTES
    ) -> None:
        self.encoded = 0  # pictures encoded so far, repeats after eviction included
        self._processor = processor
        self._models = tuple(models)
        self._max_bytes = max_bytes
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._bytes = 0

    def prompts(
        self, items: Sequence[Item], answers: Sequence[str] | None = None
    ) -> tuple[list[Prompt], list[list[list[Tensor]]]]:
        """Prepare items.

        Args:
            items: what to ask.
            answers: appended to each prompt with the end-of-turn token; None asks for one.

        Returns:
            The prompts, and for each model the features of each prompt's pictures.

        Raises:
            NotFiniteError: features of a picture are NaN or infinite; the message names the item.
        """
        prompts: list[Prompt] = []
        features: list[list[list[Tensor]]] = [[] for _ in self._models]
        for row, item in enumerate(items):
            try:
                entries = [self._entry(picture, item.pixels) for picture in pictures(item)]
            except NotFiniteError as error:
                raise error.within(f"item {item.id}") from error
            prompts.append(
                self._processor.encode(
                    item.messages,
                    answer=None if answers is None else answers[row],
                    answer_is_generated=True,
                    visuals=[entry.visual for entry in entries],
                )
            )
            for place in range(len(self._models)):
                features[place].append([entry.features[place] for entry in entries])
        self._evict()
        return prompts, features

    @torch.inference_mode()
    def _entry(self, picture: Picture, bounds: Bounds | None) -> _Entry:
        key = picture, bounds
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        # Decoded here and not by the processor: published scores were taken with another decoding.
        area = (bounds.min_pixels, bounds.max_pixels) if bounds else None
        visual = self._processor.image(picture.open(), area)
        features = tuple(model.encode([visual])[0] for model in self._models)
        self.encoded += 1
        count = visual.patches.shape[0]
        entry = _Entry(replace(visual, patches=torch.zeros(1, 1).expand(count, 1)), features)
        self._entries[key] = entry
        self._bytes += entry.nbytes
        return entry

    def _evict(self) -> None:
        while self._bytes > self._max_bytes and self._entries:
            _, entry = self._entries.popitem(last=False)
            self._bytes -= entry.nbytes


def pictures(item: Item) -> Iterator[Picture]:
    """The pictures of an item, in order of appearance."""
    for message in item.messages:
        if isinstance(message["content"], str):
            continue
        for part in message["content"]:
            if part["type"] == "image":
                yield part["image"]
