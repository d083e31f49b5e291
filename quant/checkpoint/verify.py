"""Read a finished checkpoint back and have it say something, one block at a time.

What was computed while a model was quantized is no proof of its files. Here they are read as an
engine would read them, and a few tokens are generated; memory holds one block.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from ...calib.activation_store import MemoryActivationStore, hold_block
from ...calib.block_runner import FEATURES, BlockRunner
from ...model.finite import dtype_name, nonfinite_kind
from ...model.loading import build_model, choose_device, choose_dtype, load_block, release_block
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL
from ..runtime.linear import QuantLinear
from ..targets import put_module
from .formats.checkpoint import QuantizedCheckpoint


class QuantizedBlocks:
    """A block source over a quantized checkpoint, for a model whose modules are on `meta`."""

    def __init__(
        self, checkpoint: QuantizedCheckpoint, model: QwenVL, device: torch.device
    ) -> None:
        self._checkpoint, self._model = checkpoint, model
        self.device = device

    def load(self, path: str) -> nn.Module:
        """See `BlockSource.load`.

        Raises:
            ValueError: the checkpoint is damaged.
        """
        for name in self._checkpoint.schemes:
            if name == path or name.startswith(path + "."):
                bias = self._checkpoint.bias(name)
                if bias is not None:
                    bias = bias.to(self.device, self._model.dtype, copy=True)
                weight = self._checkpoint.weight(name, self.device)
                put_module(self._model, name, QuantLinear(weight, bias))
        load_block(self._checkpoint.reader, self._model, path, device=self.device)
        return self._model.get_submodule(path)

    def release(self, path: str) -> None:
        """See `BlockSource.release`."""
        release_block(self._model.get_submodule(path))


@torch.no_grad()
def first_tokens(
    folder: Path,
    prompt: Prompt,
    count: int,
    *,
    stop_ids: Collection[int] = (),
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> list[int]:
    """The tokens with which a checkpoint greedily goes on, every one by a pass over all blocks.

    Args:
        folder: of a quantized checkpoint.
        prompt: without an answer.
        count: tokens at most.
        stop_ids: tokens that end an answer; the last one returned may be one of them.
        device: auto, cpu, cuda, cuda:n.
        dtype: of everything that is not quantized; auto takes what the checkpoint says.

    Raises:
        ValueError: the checkpoint is damaged, or a score is not finite.
    """
    checkpoint = QuantizedCheckpoint(folder)
    checkpoint.check()
    chosen = choose_dtype(dtype, checkpoint.config, checkpoint.reader)
    model = build_model(checkpoint.config, dtype=chosen)
    blocks = QuantizedBlocks(checkpoint, model, choose_device(device))
    store = MemoryActivationStore()
    _advance(BlockRunner(model, [prompt], blocks, store))
    features = store.get(FEATURES, 0) if prompt.visuals else None
    found: list[int] = []
    while len(found) < count and not (found and found[-1] in stop_ids):
        if features is not None:
            store.put(FEATURES, 0, features)
        longer = _followed(prompt, found)
        scores = _scores(BlockRunner(model, [longer], blocks, store))
        if not bool(torch.isfinite(scores).all()):
            wider = "in bf16 or fp32" if chosen == torch.float16 else "with another recipe"
            raise ValueError(
                f"{folder}: read back, the checkpoint gives scores that are not finite "
                f"({nonfinite_kind(scores)} for token {len(found) + 1} in {dtype_name(chosen)}); its "
                f"weights or activations overflow: quantize again {wider}"
            )
        # Behind one of these the next pass would look for a picture.
        scores[[model.config.image_token_id, model.config.video_token_id]] = -torch.inf
        found.append(int(scores.argmax()))
    return found


def _advance(walk: BlockRunner) -> None:
    """Bring the pictures through the tower."""
    if walk.samples_with_images:
        steps = [*walk.vision, *walk.merger, walk.decoder[0]]
        for step, following in pairwise(steps):
            walk.enter(step)
            with hold_block(walk.blocks, step):
                walk.advance(step, following)


def _scores(walk: BlockRunner) -> Tensor:
    """float32 ``[vocab]`` behind the last token."""
    for step, following in pairwise(walk.decoder):
        walk.enter(step)
        with hold_block(walk.blocks, step):
            walk.advance(step, following)
    last, model = walk.decoder[-1], walk.model
    walk.enter(last)
    with hold_block(walk.blocks, last):
        hidden = walk.output(last, 0)[:, -1:]
    walk.store.drop(last, 0)
    head = walk.head[0] if walk.head else "model.embed_tokens"
    with hold_block(walk.blocks, "model.norm"), hold_block(walk.blocks, head):
        return model.logits(model.model.finish({"hidden": hidden})).flatten()


def _followed(prompt: Prompt, tokens: Sequence[int]) -> Prompt:
    """A prompt with tokens of an answer behind it."""
    begin = prompt.next_position
    positions = torch.arange(begin, begin + len(tokens)).expand(3, -1)
    return replace(
        prompt,
        input_ids=torch.cat([prompt.input_ids, torch.tensor(tokens, dtype=torch.int64)]),
        position_ids=torch.cat([prompt.position_ids, positions], dim=1),
    )
