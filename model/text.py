"""The decoder: grouped-query attention with M-RoPE, SwiGLU, RMSNorm.

Architecture: "Qwen2 Technical Report" (arXiv 2407.10671, section 2.2.1) with the rotary positions
of `rope.py`; Qwen3-VL normalizes queries and keys instead of adding biases to them ("Qwen3
Technical Report", arXiv 2505.09388, section 2). Qwen3.5 has linear attention in most layers
(`linear_attention.py`); in the others a gate multiplies the output of attention, and only a part of
each head is rotated. Attribute names equal the checkpoint's
(`self_attn.q_proj`, `mlp.gate_proj`, ...).

Letters in shapes: B batch, T new tokens, S all tokens seen so far, H hidden size, I MLP size,
D head size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import KVCache, causal_mask
from .config import TextConfig
from .features import DEEPSTACK, VISUAL_ROWS
from .fused_linear import project
from .linear_attention import GatedDeltaNet
from .mlp import MLP
from .moe import MixtureOfExperts
from .rope import MropeLayout, check_mrope_layout, rotate, text_rotary

State = dict[str, Tensor]
"""Input of a decoder layer, see `TextModel.prepare`."""


class RMSNorm(nn.Module):
    """Root mean square normalization (arXiv 1910.07467); statistics in float32.

    Args:
        size: channels.
        eps: added to the mean square.
        offset: added to the weight, in float32: 1 if the stored weights are zero-centred.
    """

    def __init__(self, size: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        """Scale the last dimension of `x` to unit root mean square, then by weight and offset."""
        if not self.offset:
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        wide = torch.promote_types(x.dtype, torch.float32)
        weight = self.weight.to(wide) + self.offset
        return F.rms_norm(x.to(wide), (x.shape[-1],), weight, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention; o has no bias, q, k and v have `qkv_bias`.

    With a gate, `q_proj` gives for each head its query, then its gate.
    """

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.head_dim = config.head_dim
        width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.gated = config.query_gate
        q_width = 2 * width if self.gated else width
        self.q_proj = nn.Linear(config.hidden_size, q_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        # One weight for all heads.
        norms = [
            RMSNorm(config.head_dim, config.rms_norm_eps, config.norm_offset)
            if config.qk_norm
            else None
            for _ in range(2)
        ]
        self.q_norm, self.k_norm = norms

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """Attend, `[B, T, H]` to `[B, T, H]`; arguments as in `DecoderLayer.forward`."""
        return self.output(self.context(x, cos, sin, mask, cache))

    def context(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """Compute the input of `o_proj`, `[B, T, heads * D]`; arguments as in `DecoderLayer`."""
        q, k, v, gate = self.projected(x, cos, sin)
        # Keys are cached after the rotation: a token's position never changes, so later steps
        # need not rotate them again.
        if cache is not None:
            k, v = cache.update(self.index, k, v)
        attended = self.attend(q, k, v, mask)
        if gate is not None:
            attended = attended * gate.sigmoid()
        return attended.transpose(1, 2).flatten(2)

    def output(self, context: Tensor) -> Tensor:
        """Apply `o_proj`, `[B, T, heads * D]` to `[B, T, H]`."""
        out: Tensor = self.o_proj(context)
        return out

    def projected(
        self, x: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Compute queries and keys after the rotary embedding, values, and the gate if any.

        Returns:
            Queries and the gate `[B, heads, T, D]`, keys and values `[B, kv_heads, T, D]`.
        """
        q, k, v = (
            projected.view(*x.shape[:2], -1, width).transpose(1, 2)
            for projected, width in zip(
                project(x, self.q_proj, self.k_proj, self.v_proj),
                (self.head_dim * (2 if self.gated else 1), self.head_dim, self.head_dim),
                strict=True,
            )
        )
        gate = None
        if self.gated:
            q, gate = q.chunk(2, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        # Under autocast q is narrower than the angles; without it this is a no-op.
        cos, sin = cos[:, None].to(q.dtype), sin[:, None].to(q.dtype)
        return rotate(q, cos, sin), rotate(k, cos, sin), v, gate

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Compute scaled dot-product attention under grouped-query attention.

        Args:
            q: `[B, heads, T, D]`.
            k: `[B, kv_heads, S, D]`.
            v: `[B, kv_heads, S, D]`.
            mask: bool `[B, 1, T, S]`; None is causal.

        Returns:
            `[B, heads, T, D]`.
        """
        if q.shape[2] == 1:
            # One new token: the heads of a group act as rows of one query, and the cache is not
            # copied for each of them.
            grouped = q.reshape(q.shape[0], -1, self.groups, self.head_dim)
            return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask).reshape_as(q)
        if self.groups > 1:
            k, v = k.repeat_interleave(self.groups, 1), v.repeat_interleave(self.groups, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


class FusedLayer(Protocol):
    """Optional fused implementation of a decoder layer."""

    def supports(self, hidden: Tensor) -> bool:
        """Return whether it can compute the layer for this input."""
        ...

    def __call__(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """Compute the layer, see `DecoderLayer.forward`."""
        ...


class DecoderLayer(nn.Module):
    """One decoder layer: normalize, attend, add; normalize, feed forward, add."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        width, eps, offset = config.hidden_size, config.rms_norm_eps, config.norm_offset
        is_linear = config.layer_type(index) == "linear_attention"
        self.input_layernorm = RMSNorm(width, eps, offset)
        # One of them is None.
        self.linear_attn = GatedDeltaNet(config, index) if is_linear else None
        self.self_attn = None if is_linear else Attention(config, index)
        self.post_attention_layernorm = RMSNorm(width, eps, offset)
        self.mlp = (
            MLP(config.hidden_size, config.intermediate_size)
            if config.experts is None
            else MixtureOfExperts(config.hidden_size, config.experts)
        )
        self.fused_layer: FusedLayer | None = None
        """Set by `quant.runtime` when a fused kernel is available."""

    @property
    def mixer(self) -> Attention | GatedDeltaNet:
        """The layer's attention, full or linear."""
        mixer = self.linear_attn or self.self_attn
        assert mixer is not None
        return mixer

    @property
    def full_attention(self) -> Attention:
        """The attention of a layer that is known to have full attention."""
        assert self.self_attn is not None
        return self.self_attn

    def forward(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Run the layer, `[B, T, H]` to `[B, T, H]`.

        Args:
            hidden: `[B, T, H]`.
            cos: `[B, T, rotary_dim / 2]`, from `TextModel.prepare`.
            sin: `[B, T, rotary_dim / 2]`.
            mask: bool `[B, 1, T, S]`, True where a token may attend; None is causal over T tokens
                (or, for one token, everything in the cache). The last token is no padding.
            cache: stores the new keys and values and returns all S; None without generation.
        """
        if self.fused_layer is not None and self.fused_layer.supports(hidden):
            return self.fused_layer(hidden, cos, sin, mask, cache)
        hidden = hidden + self.mixer(self.input_layernorm(hidden), cos, sin, mask, cache)
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out

    def cached(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the keys and values that the layer caches, `[B, kv_heads, T, D]`.

        Args:
            state: of `TextModel.prepare`, with this layer's hidden states.
        """
        x = self.input_layernorm(state["hidden"])
        _, keys, values, _ = self.full_attention.projected(x, state["cos"], state["sin"])
        return keys, values

    def forward_to(self, tap: str, state: Mapping[str, Tensor]) -> tuple[State, Tensor]:
        """Run `forward` up to the input of some of its linear layers.

        Calibration quantizes a layer's linears one tap after the other. With the state stored at
        the tap, the part of the layer before it runs once per sample instead of once per tap.

        Args:
            tap: `o`, `gate_up` or `down`, `shared_down` of a shared expert, or one of the experts'
                taps, as in the family table. The latter stand for the input of the router, see
                `expert_inputs`.
            state: `TextModel.prepare`'s with this layer's hidden states, or the one returned for an
                earlier tap.

        Returns:
            The state for `forward_to` a later tap, `expert_inputs` or `forward_from`, and the tap's
            tensor.
        """
        if tap == "o":
            context = self._context(state)
            return {"hidden": state["hidden"], "context": context}, context
        attended = self._attended(state)
        normed = self.post_attention_layernorm(attended)
        if isinstance(self.mlp, MixtureOfExperts):
            shared = self.mlp.shared_expert if tap == "shared_down" else None
            return {"attended": attended}, normed if shared is None else shared.inner(normed)
        if tap == "gate_up":
            return {"attended": attended}, normed
        inner = self.mlp.inner(normed)
        return {"attended": attended, "inner": inner}, inner

    def expert_inputs(
        self, tap: str, state: Mapping[str, Tensor], experts: Collection[int], *, all_tokens: bool
    ) -> Iterator[tuple[int, Tensor | None, Tensor]]:
        """Compute what some experts read at a tap of theirs; the others do not run.

        Args:
            tap: `expert_gate_up` or `expert_down`, as in the family table.
            state: that `forward_to` returned for a tap of experts.
            experts: see `MixtureOfExperts.inputs`.
            all_tokens: see `MixtureOfExperts.inputs`.

        Yields:
            As `MixtureOfExperts.inputs`; at `expert_down` the input is `[n, I]`.
        """
        assert isinstance(self.mlp, MixtureOfExperts)
        normed = self.post_attention_layernorm(state["attended"])
        for index, tokens, x in self.mlp.inputs(normed, experts, all_tokens=all_tokens):
            yield index, tokens, self.mlp.expert(index).inner(x) if tap == "expert_down" else x

    def forward_from(self, state: Mapping[str, Tensor]) -> Tensor:
        """Run the rest of `forward` on a state of `forward_to`, to `[B, T, H]`."""
        attended, inner = self._attended(state), state.get("inner")
        if inner is None:  # not by way of `inner`, which a layer with experts has not
            mlp_out: Tensor = self.mlp(self.post_attention_layernorm(attended))
        else:
            assert isinstance(self.mlp, MLP)
            mlp_out = self.mlp.down_proj(inner)
        return attended + mlp_out

    def _attended(self, state: Mapping[str, Tensor]) -> Tensor:
        if "attended" in state:
            return state["attended"]
        return state["hidden"] + self.mixer.output(self._context(state))

    def _context(self, state: Mapping[str, Tensor]) -> Tensor:
        if "context" in state:
            return state["context"]
        x, mask = self.input_layernorm(state["hidden"]), state.get("mask")
        return self.mixer.context(x, state["cos"], state["sin"], mask, None)


class TextModel(nn.Module):
    """Token embedding, decoder layers and the final norm.

    `forward` is `prepare`, `step` for every layer, `finish`; blockwise drivers call these. There is
    no loop over layers but `layer_states`.

    Raises:
        ValueError: the M-RoPE layout is not implemented.
    """

    layer_class: type[nn.Module] = DecoderLayer
    """Built from the sizes and the index of each layer; other decoders have their own."""

    def __init__(self, config: TextConfig, mrope_layout: MropeLayout) -> None:
        super().__init__()
        check_mrope_layout(mrope_layout)
        self.config = config
        self.mrope_layout = mrope_layout
        weight = torch.empty(config.vocab_size, config.hidden_size)
        if not weight.is_meta:  # there, torch would import its compiler to fill it: two seconds
            nn.init.normal_(weight)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=weight)
        self.layers = nn.ModuleList(
            self.layer_class(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_offset)

    def forward(
        self,
        embeds: Tensor,
        position_ids: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        added: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Compute the hidden states after the final norm, `[B, T, H]`. Differentiable.

        Args:
            embeds: `[B, T, H]`.
            position_ids: int64 `[3, B, T]`.
            mask: bool `[B, 1, T, S]`, True where a token may attend (to one token at least); None
                is causal.
            cache: filled in place; S counts its tokens and the T new ones.
            added: see `Batch.added`.
        """
        state = self.prepare(embeds, position_ids, mask, cache, added)
        for following in self.layer_states(state, cache):
            state = following
        if cache is not None:
            cache.advance(embeds.shape[1])
        return self.finish(state)

    def prepare(
        self,
        embeds: Tensor,
        position_ids: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        added: Mapping[str, Tensor] | None = None,
    ) -> State:
        """Compute the state before the first layer; arguments as in `forward`.

        Returns:
            `hidden` `[B, T, H]`, `cos` and `sin` `[B, T, rotary_dim / 2]` and, unless plainly
            causal, `mask` `[B, 1, T, S]`, and the entries of `added`. Layers change `hidden`, and
            drop what they have added to it.
        """
        cos, sin = text_rotary(position_ids, self.config, self.mrope_layout)
        new, past = embeds.shape[1], cache.length if cache is not None else 0
        # SDPA's own causal mask aligns the first query with the first key, which is wrong once the
        # cache holds tokens. One new token attends to everything and needs no mask.
        if mask is None and past and new > 1:
            mask = causal_mask(new, past + new, embeds.device)
        state = {"hidden": embeds, "cos": cos.to(embeds.dtype), "sin": sin.to(embeds.dtype)}
        if mask is not None:
            state["mask"] = mask
        return {**state, **(added or {})}

    def layer_states(self, state: State, cache: KVCache | None = None) -> Iterator[State]:
        """Run all layers on a state of `prepare`; yield the state after each of them."""
        for index in range(len(self.layers)):
            state = self.step(index, state, cache)
            yield state

    def step(self, index: int, state: State, cache: KVCache | None = None) -> State:
        """Run layer `index`; returns the state with its `hidden`, `state` is not changed."""
        hidden = self.layers[index](
            state["hidden"], state["cos"], state["sin"], state.get("mask"), cache
        )
        return self.complete(index, state, hidden)

    def cached(self, index: int, state: State) -> tuple[Tensor, Tensor]:
        """Compute the keys and values that layer `index` caches, see `DecoderLayer.cached`."""
        layer = self.layers[index]
        assert isinstance(layer, DecoderLayer)
        return layer.cached(state)

    def complete(self, index: int, state: State, hidden: Tensor) -> State:
        """Return the state after layer `index` from its input state and its output.

        Features of visuals for this layer are added to the output and leave the state.

        Args:
            index: of the layer.
            state: input of the layer; not changed.
            hidden: output of the layer, `[B, T, H]`.
        """
        key = f"{DEEPSTACK}{index}"
        if key not in state:
            return {**state, "hidden": hidden}
        rows = state[VISUAL_ROWS].to(hidden.device)
        features = state[key].to(hidden.device, hidden.dtype)
        total = hidden.flatten(0, 1).index_add(0, rows, features).view_as(hidden)
        state = {name: value for name, value in state.items() if name != key}
        if not any(name.startswith(DEEPSTACK) for name in state):
            del state[VISUAL_ROWS]
        return {**state, "hidden": total}

    def finish(self, state: Mapping[str, Tensor]) -> Tensor:
        """Apply the final norm to `hidden`, `[B, T, H]`."""
        out: Tensor = self.norm(state["hidden"])
        return out
