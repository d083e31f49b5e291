"""The gated delta rule: linear attention whose state is a matrix per head.

"Gated Delta Networks: Improving Mamba2 with Delta Rule" (arXiv 2412.06464, section 3). Token t
decays the state, writes the part of its value that the state does not predict from its key, and
reads with its query:

    S_t = e^{g_t} S_{t-1} + k_t u_t',   u_t = beta_t (v_t - e^{g_t} S_{t-1}' k_t),   o_t = S_t' q_t

`recurrent_delta_rule` is this, token by token. `chunked_delta_rule` computes the same with matrix
products over chunks of tokens ("Parallelizing Linear Transformers with the Delta Rule over Sequence
Length", arXiv 2406.06484, section 3.2): with the cumulative decay G within a chunk, the u of its
tokens solve (I + A) U = beta (V - e^G K S), where A is strictly lower triangular with the entries
beta_i e^{G_i - G_j} k_i' k_j. The solution is linear in the state S before the chunk, so the
systems of all chunks are solved at once, and only products remain between chunks.

Letters in shapes: B batch, K key heads, R value heads per key head, T tokens, D and E widths of key
and value heads, N chunks, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

DeltaRule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""A function like `recurrent_delta_rule`."""

CHUNK = 64
"""Tokens of a chunk. Longer chunks do more work per token, shorter ones more steps."""


def recurrent_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Apply the rule token by token.

    Args:
        q: float32 `[B, K, T, D]`.
        k: float32 `[B, K, T, D]`.
        v: float32 `[B, K, R, T, E]`.
        g: float32 `[B, K, R, T]`, logarithm of the decay, at most 0.
        beta: float32 `[B, K, R, T]`, 0 to 1.
        state: float32 `[B, K, R, D, E]`; not changed.

    Returns:
        The outputs `[B, K, R, T, E]` and the state after the last token.
    """
    outputs = []
    for t in range(q.shape[2]):
        query, key = q[:, :, None, None, t], k[:, :, None, None, t]
        state = state * g[..., t].exp()[..., None, None]
        update = beta[..., t, None, None] * (v[..., t, None, :] - key @ state)
        state = state + key.transpose(-1, -2) * update
        outputs.append(query @ state)
    return torch.cat(outputs, dim=-2), state


def chunked_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Apply the rule chunk by chunk; arguments and results as of `recurrent_delta_rule`.

    Args:
        q: see there.
        k: see there.
        v: see there.
        g: see there.
        beta: see there.
        state: see there.
        chunk: tokens of a chunk; results do not depend on it but for rounding.
    """
    tokens = q.shape[2]
    missing = -tokens % chunk  # added tokens neither decay the state nor write to it
    q, k = (_in_chunks(F.pad(x, (0, 0, 0, missing)), chunk)[:, :, None] for x in (q, k))
    v = _in_chunks(F.pad(v, (0, 0, 0, missing)), chunk)
    g, beta = (_in_chunks(F.pad(x, (0, missing))[..., None], chunk) for x in (g, beta))
    total = g.cumsum(-2).exp()  # [B, K, R, N, C, 1]
    decay = _decay_between(g)
    # The solver reads below the diagonal only, and takes the diagonal for ones.
    system = beta * (decay * (k @ k.transpose(-1, -2)))
    # Products with the inverse are faster than solving for all columns of v and k.
    unit = torch.eye(chunk, dtype=q.dtype, device=q.device).expand_as(system)
    inverse = torch.linalg.solve_triangular(system, unit, upper=False, unitriangular=True)
    inverse = inverse * beta.transpose(-1, -2)
    values, reads = inverse @ v, inverse @ (total * k)
    within = decay * (q @ k.transpose(-1, -2))
    q = q * total
    last = total[..., -1:, :]
    k = (k * decay[..., -1, :, None]).transpose(-1, -2)
    outputs = []
    for n in range(q.shape[3]):
        update = values[:, :, :, n] - reads[:, :, :, n] @ state
        outputs.append(q[:, :, :, n] @ state + within[:, :, :, n] @ update)
        state = last[:, :, :, n] * state + k[:, :, :, n] @ update
    return torch.cat(outputs, dim=-2)[..., :tokens, :], state


def _decay_between(g: Tensor) -> Tensor:
    """Compute the decay from each token to each later one, `[..., C, 1]` to `[..., C, C]`.

    Logarithms are summed from one token to the other. Differences of their sums from the start of
    the chunk would be wrong by the rounding of these sums, which can be large.
    """
    until = torch.ones(g.shape[-2], g.shape[-2], dtype=g.dtype, device=g.device).tril()
    # A product with ones is faster than a cumulative sum over this dimension.
    sums = until @ (g * until.tril(-1))
    return sums.exp().tril()


def _in_chunks(x: Tensor, chunk: int) -> Tensor:
    """`[..., T, D]` to `[..., N, C, D]`."""
    return x.reshape(*x.shape[:-2], -1, chunk, x.shape[-1])
