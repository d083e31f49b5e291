"""Mixture of experts of a decoder layer, in the place of its MLP.

"Qwen3 Technical Report" (arXiv 2505.09388, section 2): a router selects a few experts per token,
each an MLP as in `mlp.py`, and their outputs are added with the router's shares. In Qwen3.5 a
shared expert computes every token, and its output is multiplied by a gate. Attribute names equal
the checkpoint's (`gate` is the router).

Letters in shapes: N tokens, H hidden size, I inner size of an expert, E experts, K experts of a
token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .expert_linear import ExpertLinear, routed, takes_all_tokens
from .family_tables.entries import WeightSlice
from .fused_linear import project
from .mlp import MLP
from .sizes import ExpertSizes

EXPERT_LINEARS = {
    "gate_proj": ("gate_up_proj", (0, 2)),
    "up_proj": ("gate_up_proj", (1, 2)),
    "down_proj": ("down_proj", (0, 1)),
}
"""Tensor of all experts and part of its output features, by name of the layer."""


class Expert(nn.Module):
    """SwiGLU feed-forward with its weights in the tensors of all experts."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def __init__(self, owner: nn.Module, index: int, *, input_major: bool) -> None:
        super().__init__()
        for name, (tensor, part) in EXPERT_LINEARS.items():
            weight = WeightSlice(tensor, index, part, input_major)
            self.add_module(name, ExpertLinear(owner, weight))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the expert, `[N, H]` to `[N, H]`."""
        out: Tensor = self.down_proj(self.inner(x))
        return out

    def inner(self, x: Tensor) -> Tensor:
        """Compute the input of `down_proj`, `[N, I]`."""
        gate, up = project(x, self.gate_proj, self.up_proj)
        return F.silu(gate) * up


class Experts(nn.Module):
    """The tensors of all experts, and a module `0`, `1`, ... for each expert."""

    def __init__(self, hidden_size: int, sizes: ExpertSizes) -> None:
        super().__init__()
        for name, inputs, outputs in (
            ("gate_up_proj", hidden_size, 2 * sizes.intermediate_size),
            ("down_proj", sizes.intermediate_size, hidden_size),
        ):
            shape = (inputs, outputs) if sizes.input_major else (outputs, inputs)
            weight = torch.empty(sizes.count, *shape)
            if not weight.is_meta:  # see `TextModel`
                nn.init.normal_(weight, std=inputs**-0.5)
            self.register_parameter(name, nn.Parameter(weight))
        for index in range(sizes.count):
            self.add_module(str(index), Expert(self, index, input_major=sizes.input_major))


class MixtureOfExperts(nn.Module):
    """Router, experts, and the shared expert if the sizes have one."""

    def __init__(self, hidden_size: int, sizes: ExpertSizes) -> None:
        super().__init__()
        self.active = sizes.active
        self.gate = nn.Linear(hidden_size, sizes.count, bias=False)
        self.experts = Experts(hidden_size, sizes)
        inner = sizes.shared_intermediate_size
        self.shared_expert = MLP(hidden_size, inner) if inner else None
        self.shared_expert_gate = nn.Linear(hidden_size, 1, bias=False) if inner else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the experts of each token, `[B, T, H]` to `[B, T, H]`.

        Tokens are grouped by expert; experts without a token do not run, unless they take all
        tokens (`all_tokens_to_experts`).
        """
        flat = x.flatten(0, -2)
        if takes_all_tokens():
            for expert in self.experts.children():
                expert(flat)
        shares, chosen = self.route(flat)
        out = torch.zeros_like(flat)
        for index, pairs in _pairs_of_experts(chosen):
            tokens = pairs // self.active
            with routed(tokens):
                y = self.expert(index)(flat[tokens])
            out.index_add_(0, tokens, y * shares.flatten()[pairs, None])
        if self.shared_expert is not None and self.shared_expert_gate is not None:
            out = out + self.shared_expert_gate(flat).sigmoid() * self.shared_expert(flat)
        return out.view_as(x)

    def expert(self, index: int) -> Expert:
        """Return an expert by its number."""
        expert = self.experts.get_submodule(str(index))
        assert isinstance(expert, Expert)
        return expert

    def inputs(
        self, x: Tensor, experts: Collection[int], *, all_tokens: bool = False
    ) -> Iterator[tuple[int, Tensor | None, Tensor]]:
        """Yield the inputs of some experts, in the order of their numbers; no expert runs.

        Args:
            x: `[B, T, H]`.
            experts: numbers of experts.
            all_tokens: give them all tokens instead of those routed to them.

        Yields:
            The number of an expert, those of its tokens in the flattened `x`, int64 `[n]` (None =
            all of them), and its input `[n, H]`. Experts without a token are left out.
        """
        flat = x.flatten(0, -2)
        if all_tokens:
            yield from ((index, None, flat) for index in sorted(experts))
            return
        _, chosen = self.route(flat)
        for index, pairs in _pairs_of_experts(chosen):
            if index in experts:
                tokens = pairs // self.active
                yield index, tokens, flat[tokens]

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Select the experts of each token.

        Args:
            x: `[N, H]`.

        Returns:
            The shares of the experts of a token, which add up to 1, in the dtype of `x`, and their
            indexes, int64; both `[N, K]`.
        """
        logits: Tensor = self.gate(x)
        shares, chosen = logits.softmax(dim=-1, dtype=torch.float32).topk(self.active)
        return (shares / shares.sum(dim=-1, keepdim=True)).to(logits.dtype), chosen


def _pairs_of_experts(chosen: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the experts with tokens, and their pairs of a token and one of its experts.

    Args:
        chosen: experts of each token, int64 `[N, K]`.

    Yields:
        The number of an expert, and indexes into the flattened `chosen`, in token order.
    """
    of_pairs, order = chosen.flatten().sort(stable=True)
    indexes, counts = torch.unique_consecutive(of_pairs, return_counts=True)
    yield from zip(indexes.tolist(), torch.split(order, counts.tolist()), strict=True)
