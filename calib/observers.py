"""Activation statistics of linear layers.

Every observer is updated with the inputs of a layer, sample by sample, and each token may have a
weight. Results do not depend on how tokens are split into calls, up to rounding. Observers of
different samples can be merged (`reduction`).
Shapes: T tokens, K input features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from .packed_symmetric import PackedSymmetric

Syrk = Callable[[Tensor, Tensor, float, float], None]
"""Symmetric rank-k update, as in BLAS: called with float32 `h` `[K, K]`, bf16 `x` `[T, K]`, alpha
and beta, it sets the lower triangle of `h` to `alpha * x' x + beta * h`."""

BATCH_TOKENS = 2048
"""Tokens that are collected before a syrk. Each call reads and writes the whole matrix, 1.4 GB for
K = 18944, so that small samples would be bound by memory bandwidth."""


class Observer(Protocol):
    """An object that can be updated with the inputs of a layer."""

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """Update the statistics with activations.

        Args:
            inputs: `[..., K]`, any float dtype; leading dimensions are tokens.
            weights: float `[T]`, not negative; with None every token has weight 1.
        """
        ...


class Statistics(Protocol):
    """Statistics that can be merged, sent to another rank, and packed while they are idle."""

    def merge(self, other: Self) -> None:
        """Merge another observer's statistics into this one; `other` is consumed."""
        ...

    def pack(self) -> None:
        """Pack the statistics into their compact form until the next use."""
        ...

    def state(self) -> list[Tensor]:
        """Return the packed statistics as contiguous tensors of fixed shapes."""
        ...

    def restore(self, state: Sequence[Tensor]) -> None:
        """Replace the statistics with `state`."""
        ...


class AbsMax:
    """Largest magnitude per channel, over all tokens of positive weight."""

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        self.values = torch.zeros(in_features, device=device)
        """float32 `[K]`."""

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """See `Observer.update`."""
        tokens, _ = _flatten(inputs, weights, len(self.values))
        if len(tokens):
            largest = tokens.abs().amax(dim=0).float()
            self.values = torch.maximum(self.values, largest.to(self.values.device))

    def merge(self, other: Self) -> None:
        """See `Statistics.merge`."""
        self.values = torch.maximum(self.values, other.values)

    def pack(self) -> None:
        """See `Statistics.pack`."""

    def state(self) -> list[Tensor]:
        """See `Statistics.state`."""
        return [self.values]

    def restore(self, state: Sequence[Tensor]) -> None:
        """See `Statistics.restore`."""
        (self.values,) = state


class _Mean:
    """A mean over weighted tokens; two of them merge in proportion to their total weights."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.weight = 0.0
        """Sum of the token weights so far."""

    def merge(self, other: Self) -> None:
        """See `Statistics.merge`."""
        share, other_share = _shares(self.weight, other.weight)
        self.values.mul_(share).add_(other.values.mul_(other_share))
        self.weight += other.weight

    def pack(self) -> None:
        """See `Statistics.pack`; there is no smaller form."""

    def state(self) -> list[Tensor]:
        """See `Statistics.state`."""
        return [_scalars(self.weight), self.values]

    def restore(self, state: Sequence[Tensor]) -> None:
        """See `Statistics.restore`."""
        scalars, self.values = state
        (self.weight,) = scalars.tolist()


class _ChannelMean(_Mean, ABC):
    """A weighted mean per channel, `sum_t w_t f(x_t) / sum_t w_t` in float32."""

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        """Start without tokens; `values` is float32 `[K]`."""
        super().__init__(torch.zeros(in_features, device=device))

    @staticmethod
    @abstractmethod
    def measure(tokens: Tensor) -> Tensor:
        """Return f of every value, float32 `[T, K]`."""

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """See `Observer.update`."""
        tokens, weights = _flatten(inputs, weights, len(self.values))
        if not len(tokens):
            return
        measured = self.measure(tokens.to(self.values.device))
        if weights is not None:
            measured = measured * weights.to(measured)[:, None]
        total = self.weight + _total_weight(tokens, weights)
        self.values.mul_(self.weight / total).add_(measured.sum(dim=0) / total)
        self.weight = total


class MeanAbs(_ChannelMean):
    """Mean magnitude per channel."""

    @staticmethod
    def measure(tokens: Tensor) -> Tensor:
        """See `_ChannelMean.measure`."""
        return tokens.abs().float()


class MeanSquare(_ChannelMean):
    """Mean square per channel: the diagonal of a Hessian."""

    @staticmethod
    def measure(tokens: Tensor) -> Tensor:
        """See `_ChannelMean.measure`."""
        return tokens.float().square()


class MinMax:
    """Smallest and largest value of the whole tensor, for static activation scales."""

    def __init__(self) -> None:
        self.low = float("inf")
        self.high = float("-inf")

    @property
    def largest(self) -> float:
        """Largest magnitude; 0 without tokens."""
        return max(-self.low, self.high, 0.0)

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """See `Observer.update`."""
        tokens, _ = _flatten(inputs, weights, inputs.shape[-1])
        if len(tokens):
            low, high = torch.aminmax(tokens)
            self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def merge(self, other: Self) -> None:
        """See `Statistics.merge`."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


class Hessian:
    """`sum_t w_t x_t' x_t / sum_t w_t` in float32: the Hessian of a layer's squared output error.

    For a linear layer `y = x W'`, the squared output error of a weight error `dW` is
    `tr(dW H dW')`, the same `H` for every output row. (The textbook Hessian is `2 X X'`; GPTQ does
    not depend on the factor.)

    The running sum is kept normalized by the total weight, so that its entries stay in the range of
    squared inputs however many tokens there are. An update with tokens `X` of weights `w` is

        H <- (W_old / W_new) H + X' diag(w / W_new) X,    W_new = W_old + sum(w),

    one symmetric rank-k update with the rows of `X` scaled by the roots of their weights.
    """

    def __init__(
        self,
        in_features: int,
        device: torch.device | str = "cpu",
        syrk: Syrk | None = None,
        free_buffers: list[Tensor] | None = None,
    ) -> None:
        """Start without tokens.

        Args:
            in_features: K.
            device: device of the sum.
            syrk: faster bf16 syrk; exact without token weights. With weights, x * sqrt(w) is
                rounded to bf16 first, for both factors, so the sum stays positive semidefinite.
                Default: torch's product in float32.
            free_buffers: see `PackedSymmetric`.
        """
        self._sum = PackedSymmetric(in_features, device, free_buffers)
        self._syrk = syrk
        self._pending: list[Tensor] = []  # bf16 rows that are not in the sum yet
        self._summed_weight = 0.0  # total weight of the tokens in the sum
        self.weight = 0.0
        """Total weight of all tokens so far, pending ones included."""
        self.tokens = 0
        """Number of tokens of positive weight so far."""
        self.input_range = MinMax()
        """Range of the inputs, before the layer rounds them."""

    @property
    def values(self) -> Tensor:
        """float32 `[K, K]`."""
        self._flush()
        return self._sum.full()

    def update(
        self, inputs: Tensor, weights: Tensor | None = None, *, unrounded: Tensor | None = None
    ) -> None:
        """See `Observer.update`.

        Args:
            inputs: as the layer multiplies them.
            weights: of the tokens.
            unrounded: the inputs whose range is measured, same shape; None = the same.
        """
        self.input_range.update(inputs if unrounded is None else unrounded, weights)
        tokens, weights = _flatten(inputs, weights, self._sum.size)
        if not len(tokens):
            return
        if self._syrk is not None and tokens.dtype == torch.bfloat16:
            if weights is not None:
                tokens = (tokens.float() * weights.to(tokens.device)[:, None].sqrt()).bfloat16()
            self._pending.append(tokens)
        else:
            self._flush()
            total, values = self.weight + _total_weight(tokens, weights), self._sum.full()
            rows = tokens.to(values.device, torch.float32)
            rows = rows * _share(weights, total, rows.device).sqrt()
            values.addmm_(rows.t(), rows, beta=self.weight / total)
            self._summed_weight = total
        self.weight += _total_weight(tokens, weights)
        self.tokens += len(tokens)
        if sum(map(len, self._pending)) >= BATCH_TOKENS:
            self._flush()

    def _flush(self) -> None:
        """Add the pending rows to the sum."""
        if self._pending:
            assert self._syrk is not None
            rows = torch.cat(self._pending)
            beta = self._summed_weight / self.weight
            self._syrk(self._sum.lower(), rows, 1 / self.weight, beta)
            self._pending, self._summed_weight = [], self.weight

    def merge(self, other: Self) -> None:
        """See `Statistics.merge`."""
        self._flush()
        other._flush()
        self._sum = self._sum.weighted_sum(other._sum, *_shares(self.weight, other.weight))
        self.weight += other.weight
        self._summed_weight = self.weight
        self.tokens += other.tokens
        self.input_range.merge(other.input_range)

    def pack(self) -> None:
        """See `Statistics.pack`."""
        self._flush()
        self._sum.pack()

    def state(self) -> list[Tensor]:
        """See `Statistics.state`."""
        bounds = self.input_range.low, self.input_range.high
        return [_scalars(self.weight, self.tokens, *bounds), *self._sum.row_blocks()]

    def restore(self, state: Sequence[Tensor]) -> None:
        """See `Statistics.restore`; the matrix was written in place, into its own row blocks."""
        self.weight, tokens, self.input_range.low, self.input_range.high = state[0].tolist()
        self.tokens, self._summed_weight = int(tokens), self.weight


class CrossMoment(_Mean):
    """`sum_t w_t d_t' x_t / sum_t w_t` in float32, of inputs x, float inputs y and `d = y - x`.

    GPTAQ uses it to correct for the deviation of a layer's inputs x from those of the float model,
    y. It is normalized like `Hessian`, so that over the same tokens both have the same scale.

    The layer needs its weight times this matrix. Where that has far fewer rows, the weight is
    multiplied with the deviations instead: `sum_t w_t (W d_t)' x_t / sum_t w_t` takes `2 N K`
    multiply-adds per token instead of `K^2`, and its memory is `[N, K]`.

    A layer may round its inputs, and multiplies `r(x)`. The moment is then `sum_t w_t d_t' r(x_t)`
    with the same d, of the inputs before rounding. Rounding errors are left out of d on purpose:
    `x - r(x)` depends on `r(x)`, and its regression shrinks the weights of inputs whose rounding
    error is large (the attenuation of errors in variables), which no later layer undoes.
    """

    def __init__(
        self,
        in_features: int,
        device: torch.device | str = "cpu",
        weights: Sequence[Tensor] | None = None,
    ) -> None:
        """Start without tokens.

        Args:
            in_features: K.
            device: device of the sum.
            weights: `[N, K]` of each layer that reads the input, in float; None multiplies none.
        """
        self._weight = None if weights is None else torch.cat([w.float() for w in weights])
        self.projected = weights is not None
        """Whether row i of `values` belongs to output i of the layers, else to channel i of d."""
        rows = in_features if self._weight is None else len(self._weight)
        super().__init__(torch.zeros(rows, in_features, device=device))
        """float32 `[K, K]`, or `[sum of N, K]` if projected."""
        self._in_features = in_features

    def update(
        self,
        inputs: Tensor,
        float_inputs: Tensor,
        weights: Tensor | None = None,
        *,
        rounded: Tensor | None = None,
    ) -> None:
        """Update the statistics with activations.

        Args:
            inputs: `[..., K]`, any float dtype; leading dimensions are tokens.
            float_inputs: inputs of the same layer in the float model, same shape.
            weights: float `[T]`, not negative; with None every token has weight 1.
            rounded: the inputs as the layer multiplies them, same shape; None = the same.

        Raises:
            ValueError: shapes do not match, or a weight is negative or not finite.
        """
        if float_inputs.shape != inputs.shape:
            raise ValueError(
                f"inputs have shape {tuple(inputs.shape)}, float inputs {tuple(float_inputs.shape)}"
            )
        targets, _ = _flatten(float_inputs, weights, self._in_features)
        factors, _ = _flatten(inputs if rounded is None else rounded, weights, self._in_features)
        tokens, weights = _flatten(inputs, weights, self._in_features)
        if not len(tokens):
            return
        total = self.weight + _total_weight(tokens, weights)
        if float_inputs is inputs:
            self.values.mul_(self.weight / total)
        else:
            rows = tokens.to(self.values.device, torch.float32)
            deviations = targets.to(rows) - rows
            deviations *= _share(weights, total, rows.device)
            if self._weight is not None:
                deviations = deviations @ self._weight.t()
            self.values.addmm_(deviations.t(), factors.to(rows), beta=self.weight / total)
        self.weight = total

    def of_outputs(self, weight: Tensor, first_row: int) -> Tensor:
        """Compute the cross moment of a layer's outputs, `sum_t w_t (W d_t)' x_t / sum_t w_t`.

        Args:
            weight: W, `[N, K]`, any float dtype.
            first_row: number of outputs of the layers before this one that share the input.

        Returns:
            float32 `[N, K]`.
        """
        if self.projected:
            return self.values[first_row : first_row + len(weight)]
        return weight.float() @ self.values


def _total_weight(tokens: Tensor, weights: Tensor | None) -> float:
    return float(len(tokens)) if weights is None else float(weights.sum())


def _shares(weight: float, other_weight: float) -> tuple[float, float]:
    """Return the shares of two weights in their sum; (1, 0) if both are 0."""
    total = weight + other_weight
    return (weight / total, other_weight / total) if total else (1.0, 0.0)


def _scalars(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _share(weights: Tensor | None, total: float, device: torch.device) -> Tensor:
    """Return each token's share of `total`, float32 `[T, 1]` or `[1]`."""
    share = torch.full((1,), 1 / total, device=device)
    return share if weights is None else share * weights.to(share)[:, None]


def _flatten(
    inputs: Tensor, weights: Tensor | None, in_features: int
) -> tuple[Tensor, Tensor | None]:
    """Flatten activations to `[T, K]` and drop tokens of weight 0."""
    if inputs.shape[-1] != in_features:
        raise ValueError(f"the observer is for {in_features} features, got {inputs.shape[-1]}")
    tokens = inputs.detach().reshape(-1, in_features)
    if weights is None:
        return tokens, None
    if tuple(weights.shape) != (len(tokens),):
        raise ValueError(f"{tuple(weights.shape)} weights for {len(tokens)} tokens; one per token")
    if not bool((weights >= 0).all()) or not bool(torch.isfinite(weights).all()):
        raise ValueError("token weights must be finite and not negative")
    is_used = weights > 0
    if bool(is_used.all()):  # no copies
        return tokens, weights
    return tokens[is_used.to(tokens.device)], weights[is_used]
