"""Smoke test of a saved checkpoint: load it block by block and decode a few tokens.

Results computed during quantization do not prove that the files are right. This test reads them
like an engine, packed weights included, with one block in memory at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from ...calib.activation_store import MemoryActivationStore, State, hold_block
from ...calib.block_runner import BlockRunner
from ...model.checkpoint import CheckpointReader
from ...model.config import ModelConfig
from ...model.families import family_of
from ...model.finite import dtype_name, nonfinite_kind
from ...model.loading import (
    build_model,
    check_tensors,
    choose_device,
    choose_dtype,
    load_block,
    release_block,
)
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL
from ..driver.checkpoint_blocks import CheckpointBlocks
from ..targets import put_loaded
from .adapter import put_adapter
from .safetensors_folder.reading import QuantizedCheckpoint


class QuantizedBlocks:
    """A `BlockSource` over a quantized checkpoint, for a model whose modules are on `meta`."""

    def __init__(
        self, checkpoint: QuantizedCheckpoint, model: QwenVL, device: torch.device
    ) -> None:
        self._checkpoint, self.model = checkpoint, model
        self.device = device

    def load(self, path: str) -> nn.Module:
        """Load the module at `path`, see `BlockSource.load`.

        Raises:
            ValueError: the checkpoint is damaged.
        """
        for name in self._checkpoint.layers:
            if name == path or name.startswith(path + "."):
                bias = self._checkpoint.bias(name)
                if bias is not None:
                    bias = bias.to(self.device, self.model.dtype, copy=True)
                weight = self._checkpoint.weight(name, self.device)
                like = torch.empty(0, dtype=self.model.dtype, device=self.device)
                put_loaded(self.model, name, weight, bias, like)
        load_block(self._checkpoint.reader, self.model, path, device=self.device)
        if self._checkpoint.adapter is not None:
            put_adapter(self.model, self._checkpoint.adapter, path)
        return self.model.get_submodule(path)

    def release(self, path: str) -> None:
        """Free the weights of the module at `path`, see `BlockSource.release`."""
        release_block(self.model.get_submodule(path))


def open_blocks(
    folder: Path, device: str | torch.device, dtype: str | torch.dtype
) -> QuantizedBlocks | CheckpointBlocks:
    """Open a checkpoint, quantized or float, whose modules are on `meta` until they are loaded.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    config = ModelConfig.from_folder(folder)
    if config.raw.get("quantization_config") is None:
        reader = CheckpointReader(folder)
        model = build_model(config, dtype=choose_dtype(dtype, config, reader))
        check_tensors(reader, model)
        return CheckpointBlocks(reader, model, (), choose_device(device))
    checkpoint = QuantizedCheckpoint(folder)
    checkpoint.check()
    chosen = choose_dtype(dtype, checkpoint.config, checkpoint.reader)
    model = build_model(checkpoint.config, dtype=chosen)
    return QuantizedBlocks(checkpoint, model, choose_device(device))


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
    """Decode the first tokens of a checkpoint's greedy answer, one block in memory at a time.

    Every token takes a pass over all blocks without a KV cache: `count` should be small.

    Args:
        folder: folder of a checkpoint, quantized or float.
        prompt: a prompt without an answer.
        count: maximum number of tokens.
        stop_ids: tokens that end an answer; the last token returned may be one of them.
        device: auto, cpu, cuda, cuda:n.
        dtype: dtype of all tensors that are not quantized; auto is the checkpoint's.

    Raises:
        ValueError: the checkpoint is damaged, or a logit is not finite.
    """
    blocks = open_blocks(folder, device, dtype)
    model = blocks.model
    store = MemoryActivationStore()
    features = _encode_visuals(BlockRunner(model, [prompt], blocks, store))
    tokens: list[int] = []
    while len(tokens) < count and not (tokens and tokens[-1] in stop_ids):
        runner = BlockRunner(model, [_extend(prompt, tokens)], blocks, store)
        logits = _next_logits(runner, features)
        if not bool(torch.isfinite(logits).all()):
            remedy = "in bf16 or fp32" if model.dtype == torch.float16 else "with another recipe"
            raise ValueError(
                f"{folder}: read back, the checkpoint gives scores that are not finite "
                f"({nonfinite_kind(logits)} for token {len(tokens) + 1} in "
                f"{dtype_name(model.dtype)}); its weights or activations overflow: quantize "
                f"again {remedy}"
            )
        # After a placeholder token the next pass would expect an image.
        logits[model.config.placeholder_ids] = -torch.inf
        tokens.append(int(logits.argmax()))
    return tokens


def _encode_visuals(runner: BlockRunner) -> State | None:
    """Run the blocks of the tower; return the features of the prompt's visuals, None if none."""
    family, config = family_of(runner.model.config), runner.model.config
    tower = [block for stage in family.tower for block in stage.blocks(config)]
    if not runner.samples(tower[0]):
        return None
    decoder = family.decoder.block_path(0)
    run_blocks(runner, [*tower, decoder])
    key = runner.entry_key(decoder)
    features = runner.store.get(key, 0)
    runner.store.drop(key, 0)
    return features


def _next_logits(runner: BlockRunner, features: State | None) -> Tensor:
    """Run decoder and head, to the logits after the last token, float32 `[vocab]`."""
    model, family = runner.model, family_of(runner.model.config)
    decoder = family.decoder.blocks(model.config)
    if features is not None:
        runner.store.put(runner.entry_key(decoder[0]), 0, features)
    run_blocks(runner, decoder)
    last = decoder[-1]
    runner.enter(last)
    with hold_block(runner.blocks, last):
        hidden = runner.output(last, 0)[:, -1:]
    runner.store.drop(last, 0)
    with hold_head(runner):
        return model.logits(model.model.finish({"hidden": hidden})).flatten()


@contextmanager
def hold_head(runner: BlockRunner) -> Iterator[None]:
    """Load the final norm and the head for the length of a `with` block."""
    family, config = family_of(runner.model.config), runner.model.config
    # A tied head has no module of its own; its weight is that of the embedding.
    head = family.head.blocks(config) or family.decoder.entry
    with ExitStack() as held:
        for path in (*family.head.entry, *head):
            held.enter_context(hold_block(runner.blocks, path))
        yield


def run_blocks(runner: BlockRunner, steps: Sequence[str]) -> None:
    """Run all blocks but the last, whose input is left in the store."""
    for step, following in pairwise(steps):
        runner.enter(step)
        with hold_block(runner.blocks, step):
            runner.advance(step, following)


def _extend(prompt: Prompt, tokens: Sequence[int]) -> Prompt:
    """Append tokens of an answer to a prompt."""
    begin = prompt.next_position
    positions = torch.arange(begin, begin + len(tokens)).expand(3, -1)
    return replace(
        prompt,
        input_ids=torch.cat([prompt.input_ids, torch.tensor(tokens, dtype=torch.int64)]),
        position_ids=torch.cat([prompt.position_ids, positions], dim=1),
    )
