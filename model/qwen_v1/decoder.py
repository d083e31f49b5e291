"""The decoder of Qwen-VL of 2023, that of Qwen-7B ("Qwen Technical Report", arXiv 2309.16609).

Multi-head attention with one joint projection of queries, keys and values, SwiGLU, RMSNorm, rotary
positions in one dimension. `dynamic_ntk.py` has what happens beyond the training's length.
Attribute names equal the checkpoint's (`attn.c_attn`, `mlp.w1`, ...): of the MLP, w2 is the gate.

Letters in shapes: B batch, T new tokens, S all tokens seen so far, H hidden size, I MLP size,
D head size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cache import KVCache
from ..config import TextConfig
from ..dynamic_ntk import logn_scale, ntk_rotary
from ..fused_linear import project
from ..rope import rotate
from ..text import RMSNorm, State, TextModel

QUERY_SCALE = "query_scale"
"""Key of the factors of the queries in the state, `[B, T]`; missing: they are 1."""


class Attention(nn.Module):
    """Causal multi-head attention; the rows of `c_attn` are thirds of queries, keys and values."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.index, self.head_dim = index, config.head_dim
        width = config.num_attention_heads * config.head_dim
        self.c_attn = nn.Linear(config.hidden_size, 3 * width)
        self.c_proj = nn.Linear(width, config.hidden_size, bias=False)

    def context(self, x: Tensor, state: Mapping[str, Tensor], cache: KVCache | None) -> Tensor:
        """Compute the input of `c_proj`, `[B, T, heads * D]`, from `x` `[B, T, H]`.

        Args:
            x: normalized hidden states.
            state: of `QwenV1Decoder.prepare`.
            cache: see `DecoderLayer.forward` in `text.py`.
        """
        q, k, v = self.projected(x, state)
        if cache is not None:
            k, v = cache.update(self.index, k, v)
        mask = state.get("mask")
        causal = mask is None and q.shape[2] > 1
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return mixed.transpose(1, 2).flatten(2)

    def projected(self, x: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute scaled queries and keys after the rotation, and values, `[B, heads, T, D]`."""
        by_head = self.c_attn(x).view(*x.shape[:2], 3, -1, self.head_dim)
        q, k, v = by_head.permute(2, 0, 3, 1, 4).unbind(0)
        # Angles are float32 in every dtype, as the model was trained.
        cos, sin = state["cos"][:, None], state["sin"][:, None]
        wide = torch.promote_types(q.dtype, cos.dtype)
        q, k = (rotate(each.to(wide), cos, sin).to(v.dtype) for each in (q, k))
        if QUERY_SCALE in state:
            q = q * state[QUERY_SCALE][:, None, :, None].to(q.dtype)
        return q, k, v


class MLP(nn.Module):
    """SwiGLU without biases; w2 is the gate."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(width, inner, bias=False)
        self.c_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP, `[..., H]` to `[..., H]`."""
        out: Tensor = self.c_proj(self.inner(x))
        return out

    def inner(self, x: Tensor) -> Tensor:
        """Compute the input of `c_proj`, `[..., I]`."""
        up, gate = project(x, self.w1, self.w2)
        return up * F.silu(gate)


class Layer(nn.Module):
    """One decoder layer: normalize, attend, add; normalize, feed forward, add.

    Every method takes the state of `QwenV1Decoder.prepare` with this layer's hidden states, or,
    but for `forward` and `cached`, one that `forward_to` returned for an earlier tap.
    """

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = Attention(config, index)
        self.ln_2 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, state: Mapping[str, Tensor], cache: KVCache | None = None) -> Tensor:
        """Run the layer, to `[B, T, H]`."""
        hidden = state["hidden"]
        context = self.attn.context(self.ln_1(hidden), state, cache)
        hidden = hidden + self.attn.c_proj(context)
        out: Tensor = hidden + self.mlp(self.ln_2(hidden))
        return out

    def cached(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the keys and values that the layer caches, `[B, heads, T, D]`."""
        _, keys, values = self.attn.projected(self.ln_1(state["hidden"]), state)
        return keys, values

    def forward_to(self, tap: str, state: Mapping[str, Tensor]) -> tuple[State, Tensor]:
        """Run `forward` up to the input of some of its linear layers.

        Args:
            tap: `o`, `gate_up` or `down`, as in the family table.
            state: see the class.

        Returns:
            The state for a later tap or `forward_from`, and the tap's tensor.
        """
        if tap == "o":
            context = self._context(state)
            return {"hidden": state["hidden"], "context": context}, context
        attended = self._attended(state)
        if tap == "gate_up":
            return {"attended": attended}, self.ln_2(attended)
        inner = self.mlp.inner(self.ln_2(attended))
        return {"attended": attended, "inner": inner}, inner

    def forward_from(self, state: Mapping[str, Tensor]) -> Tensor:
        """Run the rest of `forward` on a state of `forward_to`, to `[B, T, H]`."""
        attended, inner = self._attended(state), state.get("inner")
        if inner is None:
            inner = self.mlp.inner(self.ln_2(attended))
        out: Tensor = attended + self.mlp.c_proj(inner)
        return out

    def _attended(self, state: Mapping[str, Tensor]) -> Tensor:
        if "attended" in state:
            return state["attended"]
        out: Tensor = state["hidden"] + self.attn.c_proj(self._context(state))
        return out

    def _context(self, state: Mapping[str, Tensor]) -> Tensor:
        if "context" in state:
            return state["context"]
        return self.attn.context(self.ln_1(state["hidden"]), state, None)


class QwenV1Decoder(TextModel):
    """Token embedding, layers and the final norm."""

    layer_class = Layer

    def prepare(
        self,
        embeds: Tensor,
        position_ids: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        added: Mapping[str, Tensor] | None = None,
    ) -> State:
        """Compute the state before the first layer, see `TextModel.prepare`.

        `cos` and `sin` stay float32, and there are factors of queries, `query_scale` `[B, T]`, in a
        batch with a position beyond the training's length. Of the three axes of `position_ids` the
        first is read.
        """
        state = super().prepare(embeds, position_ids, mask, cache, added)
        state["cos"], state["sin"] = ntk_rotary(position_ids[0], self.config)
        scaling = self.config.length_scaling
        if scaling is not None and scaling.logn:
            scale = logn_scale(position_ids[0], scaling)
            if bool((scale != 1).any()):
                state[QUERY_SCALE] = scale
        return state

    def step(self, index: int, state: State, cache: KVCache | None = None) -> State:
        """Run layer `index`, see `TextModel.step`."""
        return self.complete(index, state, self.layers[index](state, cache))

    def cached(self, index: int, state: State) -> tuple[Tensor, Tensor]:
        """Compute the keys and values that layer `index` caches, see `Layer.cached`."""
        layer = self.layers[index]
        assert isinstance(layer, Layer)
        return layer.cached(state)
