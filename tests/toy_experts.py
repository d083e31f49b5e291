"""A decoder whose feed-forward is a mixture of experts in two 3-D tensors, stored input-major."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpress.model.config import TextConfig
from vlpress.model.expert_linear import ExpertLinear, routed
from vlpress.model.families import (
    FAMILIES,
    BlockLinear,
    Checkpoints,
    ExpertTensor,
    Family,
    WeightSlice,
)
from vlpress.model.family_tables import steps

EXPERTS, ACTIVE = 4, 2
PARTS = {
    "gate_proj": ("gate_up_proj", (0, 2)),
    "up_proj": ("gate_up_proj", (1, 2)),
    "down_proj": ("down_proj", (0, 1)),
}


class Expert(nn.Module):
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def __init__(self, owner: nn.Module, index: int) -> None:
        super().__init__()
        for name, (tensor, part) in PARTS.items():
            weight = WeightSlice(f"mlp.experts.{tensor}", index, part, input_major=True)
            self.add_module(name, ExpertLinear(owner, weight))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Experts(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(EXPERTS, hidden, 2 * inner))
        self.down_proj = nn.Parameter(torch.empty(EXPERTS, inner, hidden))
        for index in range(EXPERTS):
            self.add_module(str(index), Expert(self, index))


class ToyMoE(nn.Module):
    """Takes the place of `MLP`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, EXPERTS, bias=False)
        self.experts = Experts(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        shares, chosen = self.gate(flat).softmax(dim=-1).topk(ACTIVE)
        out = torch.zeros_like(flat)
        for index in range(EXPERTS):
            tokens, place = torch.where(chosen == index)
            if len(tokens):
                with routed(tokens):
                    y = self.experts.get_submodule(str(index))(flat[tokens])
                out.index_add_(0, tokens, y * shares[tokens, place, None])
        return out.view_as(x)


def expert_family() -> Family:
    family = FAMILIES["qwen2_5_vl"]
    decoder = family.stage("decoder")
    experts = tuple(
        BlockLinear(
            f"mlp.experts.{{}}.{name}",
            "mlp" if name == "down_proj" else "hidden",
            "hidden" if name == "down_proj" else "mlp",
            bias=False,
            tap="expert_down" if name == "down_proj" else "expert_gate_up",
            experts=ExpertTensor(
                f"mlp.experts.{tensor}", lambda _: EXPERTS, lambda _: ACTIVE, part, input_major=True
            ),
        )
        for name, (tensor, part) in PARTS.items()
    )
    decoder = replace(
        decoder,
        linears=(*decoder.linears[:4], *experts),
        norms=decoder.norms[:1],
        pairs=decoder.pairs[:1],
        fused=decoder.fused[:1],
        padded=(),
        kept=("mlp.gate",),
        checkpoints=Checkpoints(("o",), steps.complete_decoder_layer),
    )
    stages = tuple(decoder if stage.name == "decoder" else stage for stage in family.stages)
    return replace(family, stages=stages)


def use_toy_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all models of the test have experts."""
    monkeypatch.setitem(FAMILIES, "qwen2_5_vl", expert_family())
    monkeypatch.setattr("vlpress.model.text.MLP", ToyMoE)
