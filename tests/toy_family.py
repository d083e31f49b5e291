"""A family defined outside of the package: its tower gives the decoder further features.

The outputs of the tower's first blocks have mergers of their own, which are a stage; their results
are added to the hidden states after the first decoder layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_models import SMALL, make_random_model, small_config
from torch import Tensor

from vlpress.model.config import ModelConfig, VisionConfig
from vlpress.model.config_readers import READERS
from vlpress.model.families import FAMILIES, BlockLinear, Family, NormBinding, Stage
from vlpress.model.family_tables import steps
from vlpress.model.features import Features
from vlpress.model.qwen_vl import QwenVL
from vlpress.model.text import State, TextModel
from vlpress.model.vision import PatchMerger, VisionTower


class ToyTower(VisionTower):
    """Keeps the outputs of its first blocks."""

    kept = 2

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        self.more = torch.nn.ModuleList(PatchMerger(config) for _ in range(self.kept))

    def step(self, index: int, state: State) -> State:
        state = super().step(index, state)
        return {**state, f"deepstack.{index}": state["hidden"]} if index < self.kept else state

    def merge_kept(self, number: int, state: State) -> State:
        key = f"deepstack.{number}"
        merged = self.more[number](state[key])
        return {**state, key: merged[torch.argsort(state["window_index"])]}

    def finish(self, state: Mapping[str, Tensor]) -> Features:
        return {key: state[key] for key in KEYS}


KEYS = ("hidden", *(f"deepstack.{number}" for number in range(ToyTower.kept)))
VISION, MERGER, DECODER, HEAD = FAMILIES["qwen2_5_vl"].stages
MORE = Stage(
    name="more mergers",
    part="tower",
    path="visual.more.{}",
    count=lambda config: ToyTower.kept,
    step=steps.merge_kept,
    output="deepstack.{}",
    linears=(
        BlockLinear(
            "mlp.0", "merged", "merged", bias=True, tap="more_in", row_parts=("vision", "vision")
        ),
        BlockLinear("mlp.2", "merged", "hidden", bias=True, tap="more_out", input_split=True),
    ),
    norms=(NormBinding("ln_q", ("mlp.0",), tiles=4),),
)
TOY = Family(
    name="toy",
    stages=(VISION, MORE, MERGER, DECODER, HEAD),
    build_tower=ToyTower,
    build_decoder=TextModel,
    mrope_layout="sectioned",
    features=lambda config: KEYS,
)


@contextmanager
def registered() -> Iterator[None]:
    """Register the family for the length of a `with` block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "toy", TOY)
        patch.setitem(READERS, "toy", READERS["qwen2_5_vl"])
        yield


def toy_config(**text: Any) -> ModelConfig:
    """Make the config of a small model; `text` replaces its entries. The family is registered."""
    return ModelConfig.from_dict(small_config(**text) | {"model_type": "toy"})


def toy_model(seed: int = 0, dtype: torch.dtype = torch.float32, **text: Any) -> QwenVL:
    """Make a random model on the CPU."""
    return make_random_model(config=toy_config(**text), seed=seed, dtype=dtype, size=SMALL)
