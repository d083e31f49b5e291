"""The linear attention layers of Qwen3.5: gated delta rule with a short convolution.

"Gated Delta Networks" (arXiv 2412.06464, section 3.4): one projection gives queries, keys and
values, which pass a causal depthwise convolution over a few tokens and SiLU; queries and keys are
normalized to length 1; the rule of `gated_delta.py` runs in float32 (or the wider dtype of the
model), and each head of its output is normalized and gated. Attribute names equal the checkpoint's.

Positions play no part: order enters through convolution and decay. Instead of keys and values, the
cache holds the last inputs of the convolution and the state of the rule.

Letters in shapes: B batch, T new tokens, H hidden size, Q width of queries, keys and values
together, V width of all values, n value heads, K kernel of the convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import KVCache, LinearState
from .fused_linear import project
from .gated_delta import DeltaRule, chunked_delta_rule, recurrent_delta_rule
from .sizes import TextConfig

LENGTH_EPS = 1e-6
"""Added to the squared length of queries and keys."""


class GatedRMSNorm(nn.Module):
    """Root mean square normalization times the SiLU of a gate."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Normalize the last dimension of `x` and gate it; the result has the dtype of the gate."""
        normed = F.rms_norm(x, (x.shape[-1],), None, self.eps).to(gate.dtype)
        return (self.weight * normed * F.silu(gate.to(x.dtype))).to(gate.dtype)


class GatedDeltaNet(nn.Module):
    """Linear attention in the place of a decoder layer's attention."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        assert config.linear_attention is not None
        self.index, self.sizes = index, config.linear_attention
        sizes, hidden = self.sizes, config.hidden_size
        self.in_proj_qkv = nn.Linear(hidden, sizes.qkv_width, bias=False)
        self.in_proj_z = nn.Linear(hidden, sizes.value_width, bias=False)
        self.in_proj_b = nn.Linear(hidden, sizes.value_heads, bias=False)
        self.in_proj_a = nn.Linear(hidden, sizes.value_heads, bias=False)
        width = sizes.qkv_width
        self.conv1d = nn.Conv1d(width, width, sizes.conv_kernel, groups=width, bias=False)
        self.A_log = nn.Parameter(torch.zeros(sizes.value_heads))
        self.dt_bias = nn.Parameter(torch.ones(sizes.value_heads))
        self.norm = GatedRMSNorm(sizes.value_head_dim, config.rms_norm_eps)
        self.out_proj = nn.Linear(sizes.value_width, hidden, bias=False)
        self.step_rule: DeltaRule = recurrent_delta_rule
        """The rule for one token; may overwrite the state. `quant.runtime` may set a kernel."""

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """Attend, `[B, T, H]` to `[B, T, H]`; arguments as in `DecoderLayer.forward`."""
        return self.output(self.context(x, cos, sin, mask, cache))

    def context(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """Compute the input of `out_proj`, `[B, T, V]`; arguments as in `DecoderLayer.forward`.

        A batch is padded on the left of its new tokens, so padding is read off the mask's last row.
        """
        tokens = None if mask is None else mask[:, 0, -1, -x.shape[1] :]
        if cache is None:
            state = LinearState.empty(self.sizes, x.shape[0], x)
        else:
            state = cache.linear_state(self.index, x)
        qkv, z = project(x, self.in_proj_qkv, self.in_proj_z)
        b, a = project(x, self.in_proj_b, self.in_proj_a)
        qkv, joined = self._convolve(qkv, state.conv, tokens)
        # In float32 at least: under fp16 the exponential of A_log could overflow.
        wide = state.rule.dtype
        decay = -self.A_log.to(wide).exp() * F.softplus(a.to(wide) + self.dt_bias.to(wide))
        beta = b.to(wide).sigmoid()
        if tokens is not None:
            decay, beta = decay * tokens[..., None], beta * tokens[..., None]
        if cache is not None and cache.keeps_states:
            out = self._run_each(qkv, decay, beta, state.rule, joined, cache)
        else:
            out, rule = self._run_rule(qkv, decay, beta, state.rule)
            if cache is not None:
                conv = joined[:, :, x.shape[1] :]
                cache.set_linear_state(self.index, LinearState(conv, rule))
        normed: Tensor = self.norm(out, z.view_as(out)).flatten(-2)
        return normed

    def output(self, context: Tensor) -> Tensor:
        """Apply `out_proj`, `[B, T, V]` to `[B, T, H]`."""
        out: Tensor = self.out_proj(context)
        return out

    def _convolve(
        self, qkv: Tensor, before: Tensor, tokens: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Convolve new tokens with those before them.

        Args:
            qkv: `[B, T, Q]`.
            before: `[B, Q, K - 1]`, the last tokens so far.
            tokens: bool `[B, T]`, False for padding; None: there is none.

        Returns:
            The result after SiLU, `[B, T, Q]`, and old and new tokens, `[B, Q, K - 1 + T]`.
        """
        if tokens is None:
            joined = torch.cat([before.to(qkv.dtype), qkv.transpose(1, 2)], dim=2)
        else:
            joined = _join(before.to(qkv.dtype), (qkv * tokens[..., None]).transpose(1, 2), tokens)
        weight = self.conv1d.weight.to(qkv.dtype)
        out = F.silu(F.conv1d(joined, weight, groups=joined.shape[1]))
        return out.transpose(1, 2), joined

    def _run_each(
        self,
        qkv: Tensor,
        decay: Tensor,
        beta: Tensor,
        rule: Tensor,
        joined: Tensor,
        cache: KVCache,
    ) -> Tensor:
        """Apply the rule token by token, and store the state after each of them.

        Args:
            qkv: see `_run_rule`.
            decay: see `_run_rule`.
            beta: see `_run_rule`.
            rule: state before the first token; not changed.
            joined: see `_convolve`.
            cache: stores the states.

        Returns:
            The outputs, see `_run_rule`.
        """
        outputs, last = [], joined.shape[2] - qkv.shape[1]
        for t in range(qkv.shape[1]):
            one = slice(t, t + 1)
            # A copy: the rule for one token may overwrite the state.
            out, rule = self._run_rule(qkv[:, one], decay[:, one], beta[:, one], rule.clone())
            conv = joined[:, :, t + 1 : t + 1 + last]
            cache.set_linear_state(self.index, LinearState(conv, rule))
            outputs.append(out)
        return torch.cat(outputs, dim=1)

    def _run_rule(
        self, qkv: Tensor, decay: Tensor, beta: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Apply the rule.

        Args:
            qkv: `[B, T, Q]`.
            decay: `[B, T, n]`, of the state's dtype.
            beta: `[B, T, n]`, likewise.
            state: see `LinearState.rule`.

        Returns:
            The outputs `[B, T, n, value_head_dim]` in its dtype, and the new state.
        """
        sizes, (batch, tokens) = self.sizes, qkv.shape[:2]
        widths = [sizes.key_width, sizes.key_width, sizes.value_width]
        q, k, v = (part.to(state.dtype) for part in torch.split(qkv, widths, dim=-1))
        keys = (batch, tokens, sizes.key_heads)
        q, k = (_unit(x.reshape(*keys, -1)).transpose(1, 2).contiguous() for x in (q, k))
        # Value heads by the key head that serves them.
        v = v.reshape(*keys, -1, sizes.value_head_dim).permute(0, 2, 3, 1, 4).contiguous()
        decay, beta = (x.reshape(*keys, -1).permute(0, 2, 3, 1) for x in (decay, beta))
        of_groups = state.reshape(*v.shape[:3], *state.shape[2:])
        rule = self.step_rule if tokens == 1 else chunked_delta_rule
        out, of_groups = rule(q * sizes.key_head_dim**-0.5, k, v, decay, beta, of_groups)
        return out.flatten(1, 2).transpose(1, 2), of_groups.reshape_as(state)


def _unit(x: Tensor) -> Tensor:
    """Scale the last dimension to length 1."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + LENGTH_EPS)


def _join(before: Tensor, new: Tensor, tokens: Tensor) -> Tensor:
    """Put the last tokens so far next to the first new token of each row, past its padding.

    Args:
        before: `[B, Q, K - 1]`.
        new: `[B, Q, T]`, zero at padding.
        tokens: bool `[B, T]`.

    Returns:
        `[B, Q, K - 1 + T]`.
    """
    last = before.shape[2]
    joined = F.pad(new, (last, 0))
    padding = tokens.shape[1] - tokens.sum(1)
    places = padding[:, None] + torch.arange(last, device=new.device)
    return joined.scatter(2, places[:, None].expand_as(before), before)
