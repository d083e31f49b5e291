"""A model whose vision tower gives the decoder further features, as no built-in family does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tiny_models import SMALL, make_random_model, small_config
from torch import Tensor

from vlpress.model.config import ModelConfig, VisionConfig
from vlpress.model.features import Features
from vlpress.model.qwen_vl import QwenVL
from vlpress.model.text import State
from vlpress.model.vision import PatchMerger, VisionTower


class ToyTower(VisionTower):
    """Keeps the outputs of its first blocks; each has a merger, for one decoder layer."""

    EXTRA = 2

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        self.more = torch.nn.ModuleList(PatchMerger(config) for _ in range(self.EXTRA))

    def step(self, index: int, state: State) -> State:
        state = super().step(index, state)
        return {**state, f"deepstack.{index}": state["hidden"]} if index < self.EXTRA else state

    def merge_kept(self, number: int, state: State) -> State:
        key = f"deepstack.{number}"
        merged = self.more[number](state[key])
        return {**state, key: merged[torch.argsort(state["window_index"])]}

    def merge(self, state: State) -> State:
        for number in range(self.EXTRA):
            state = self.merge_kept(number, state)
        return super().merge(state)

    def finish(self, state: Mapping[str, Tensor]) -> Features:
        keys = ["hidden", *(f"deepstack.{number}" for number in range(self.EXTRA))]
        return {key: state[key] for key in keys}


def toy_model(seed: int = 0) -> QwenVL:
    """Make a random model with this tower on the CPU."""
    config = ModelConfig.from_dict(small_config())
    model = make_random_model(config=config, seed=seed, size=SMALL)
    model.visual = ToyTower(config.vision)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 5
            parameter.copy_(noise / scale + (parameter.dim() == 1))
    return model.requires_grad_(False)
