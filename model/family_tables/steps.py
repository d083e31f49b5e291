"""Functions of stages that most families need, see `Stage`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..features import split_features
from ..text import State

if TYPE_CHECKING:
    from ..processing.inputs import Prompt
    from ..qwen_vl import QwenVL


def embed_patches(model: QwenVL, prompt: Prompt, previous: State | None) -> State:
    """Compute the state before the first block of the tower."""
    patches = torch.cat([visual.patches for visual in prompt.visuals])
    grid = torch.tensor([visual.grid for visual in prompt.visuals])
    return model.visual.prepare(patches, grid)


def run_tower_block(model: QwenVL, index: int, state: State) -> State:
    """Run one block of the tower."""
    return model.visual.step(index, state)


def merge_kept(model: QwenVL, index: int, state: State) -> State:
    """Run the merger of an output that the tower has kept."""
    return model.visual.merge_kept(index, state)


def merge_patches(model: QwenVL, index: int, state: State) -> State:
    """Run the merger of the tower."""
    return model.visual.merge(state)


def select_features(model: QwenVL, state: State) -> State:
    """Select the features from the state after all mergers."""
    return model.visual.finish(state)


def embed_tokens(model: QwenVL, prompt: Prompt, features: State | None) -> State:
    """Compute the state before the first decoder layer from tokens and features of visuals."""
    unit = model.config.vision.merge_unit
    sizes = [visual.patches.shape[0] // unit for visual in prompt.visuals]
    batch = model.embed([prompt], [split_features(features, sizes) if features else []])
    return model.model.prepare(batch.embeds, batch.position_ids, added=batch.added)


def run_decoder_layer(model: QwenVL, index: int, state: State) -> State:
    """Run one decoder layer."""
    return model.model.step(index, state)


def complete_decoder_layer(model: QwenVL, index: int, state: State, output: Tensor) -> State:
    """Return the state after a decoder layer from its output."""
    return model.model.complete(index, state, output)


def keys_values(model: QwenVL, index: int, state: State) -> tuple[Tensor, Tensor]:
    """Compute the keys and values that a decoder layer caches."""
    return model.model.cached(index, state)


def normalize(model: QwenVL, prompt: Prompt, state: State | None) -> State:
    """Apply the final norm."""
    assert state is not None  # every sample passes the decoder
    return {"hidden": model.model.finish(state)}


def predict(model: QwenVL, index: int, state: State) -> State:
    """Compute logits."""
    return {"hidden": model.logits(state["hidden"])}
