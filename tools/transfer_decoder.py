"""Take over the decoder of a Qwen2.5-VL for a Qwen3-VL of the same hidden size and vocabulary.

What differs is fitted on the activations of the Qwen2.5-VL:

- biases of queries, keys and values, which Qwen3 does not have: the constant 1 is regressed on the
  normalized input, and its coefficients times the bias are added to the weight;
- norms of queries and keys, which Qwen2.5 does not have: one constant per layer, the geometric mean
  of the root mean squares of the heads;
- additional query heads: left as they are, with zero columns in `o_proj`;
- a narrower MLP: the neurons with the largest contribution are kept, and `down_proj` is refitted by
  least squares.

Nothing is fitted for the layout of the rotary positions, which differs too.
"""

from __future__ import annotations

import torch
from moments import Moments
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vlpress.model.mlp import MLP
from vlpress.model.text import Attention, DecoderLayer, TextModel


class LayerStatistics:
    """What is seen of one layer of the old decoder, as long as its hooks are there."""

    def __init__(self, layer: DecoderLayer) -> None:
        assert isinstance(layer.mlp, MLP)
        self.layer, self.mlp = layer, layer.mlp
        self.attention_input, self.down_input = Moments(), Moments()
        self.log_rms: dict[str, list[Tensor]] = {"q": [], "k": []}
        self.handles: list[RemovableHandle] = [
            layer.full_attention.register_forward_pre_hook(self._on_attention),
            self.mlp.down_proj.register_forward_pre_hook(self._on_down),
        ]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    def norm_constant(self, name: str) -> float:
        """Geometric mean of the root mean squares of the heads of `q` or `k`."""
        return float(torch.stack(self.log_rms[name]).mean().exp())

    def _on_attention(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        attention = self.layer.full_attention
        self.attention_input.add(args[0])
        for name, linear in (("q", attention.q_proj), ("k", attention.k_proj)):
            heads = linear(args[0]).unflatten(-1, (-1, attention.head_dim))
            squares = heads.square().mean(-1).clamp(min=1e-8)
            self.log_rms[name].append(squares.log().mean() / 2)

    def _on_down(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.down_input.add(args[0])


def without_bias(linear: nn.Linear, seen: Moments) -> Tensor:
    """Weight `[out, in]` whose products come nearest to those of a linear layer with a bias."""
    size = linear.in_features
    constant = seen.solve(torch.arange(size), torch.tensor([size]))[:, 0]
    return linear.weight.double() + linear.bias.double()[:, None] * constant


@torch.no_grad()
def transfer_attention(new: Attention, seen: LayerStatistics) -> None:
    """Take over projections and fit the norms; the additional heads of a group come last."""
    old = seen.layer.full_attention
    size = old.head_dim
    new.k_proj.weight.copy_(without_bias(old.k_proj, seen.attention_input))
    new.v_proj.weight.copy_(without_bias(old.v_proj, seen.attention_input))
    queries = without_bias(old.q_proj, seen.attention_input)
    new.o_proj.weight.zero_()
    for head in range(queries.shape[0] // size):
        to = head // old.groups * new.groups + head % old.groups
        rows, old_rows = slice(to * size, to * size + size), slice(head * size, head * size + size)
        new.q_proj.weight[rows] = queries[old_rows].float()
        new.o_proj.weight[:, rows] = old.o_proj.weight[:, old_rows]
    for name, norm in (("q", new.q_norm), ("k", new.k_norm)):
        assert norm is not None
        norm.weight.fill_(seen.norm_constant(name))


@torch.no_grad()
def transfer_mlp(new: MLP, seen: LayerStatistics) -> None:
    """Keep the neurons that contribute most, and refit `down_proj` to the outputs of all."""
    old = seen.mlp
    sizes = seen.down_input.sum.diagonal()[:-1]
    contribution = sizes * old.down_proj.weight.double().square().sum(0)
    kept = contribution.topk(new.gate_proj.out_features).indices.sort().values
    everything = torch.arange(old.gate_proj.out_features)
    mixing = seen.down_input.solve(kept, everything)  # of all activations from the kept ones
    new.gate_proj.weight.copy_(old.gate_proj.weight[kept])
    new.up_proj.weight.copy_(old.up_proj.weight[kept])
    new.down_proj.weight.copy_(old.down_proj.weight.double() @ mixing.t())


@torch.no_grad()
def transfer_decoder(old: TextModel, new: TextModel, seen: list[LayerStatistics]) -> None:
    """Take over embeddings, norms, attention and MLPs; `seen` has one entry per layer."""
    new.embed_tokens.weight.copy_(old.embed_tokens.weight)
    new.norm.weight.copy_(old.norm.weight)
    for layer, statistics in zip(new.layers, seen, strict=True):
        assert isinstance(layer, DecoderLayer)
        assert isinstance(layer.mlp, MLP)
        before = statistics.layer
        layer.input_layernorm.weight.copy_(before.input_layernorm.weight)
        layer.post_attention_layernorm.weight.copy_(before.post_attention_layernorm.weight)
        transfer_attention(layer.full_attention, statistics)
        transfer_mlp(layer.mlp, statistics)
