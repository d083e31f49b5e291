"""Statistics of what flows into a linear layer.

Every observer takes activations token by token, as often as there are samples, and each token may
carry a weight. Results do not depend on how tokens are split into calls, up to rounding. What
several observers saw can be added (`reduction.py`).
Letters: T tokens, K input features.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from .packed_symmetric import PackedSymmetric

Gram = Callable[[Tensor, Tensor, float, float], None]
"""Called with float32 ``[K, K]``, bf16 ``[T, K]``, alpha and beta: adds ``alpha * x' x`` to beta
times the matrix, of which the lower half has to be right."""


TOGETHER = 2048
"""Tokens of several samples that are multiplied at once: fewer passes over a large matrix."""


class Observer(Protocol):
    """Anything that can watch an input."""

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """Take in activations.

        Args:
            inputs: ``[..., K]``, any float dtype; leading dimensions are tokens.
            weights: float ``[T]``, not negative; None counts every token once.
        """
        ...


class Sum(Protocol):
    """What an observer knows, as something that can be added, sent and put aside."""

    def add(self, other: Self) -> None:
        """Know what another one saw as well, which is of no use afterwards."""
        ...

    def rest(self) -> None:
        """Take less memory until it is asked for something."""
        ...

    def state(self) -> list[Tensor]:
        """All that it knows while it rests, in contiguous tensors whose shapes are always these."""
        ...

    def restore(self, state: Sequence[Tensor]) -> None:
        """Know what another one's `state` says instead."""
        ...


class AbsMax:
    """Largest magnitude per channel; a token of weight 0 is left out, others count alike."""

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        self.values = torch.zeros(in_features, device=device)
        """float32 ``[K]``."""

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """See `Observer.update`."""
        tokens, _ = _tokens(inputs, weights, len(self.values))
        if len(tokens):
            seen = tokens.abs().amax(dim=0).float()
            self.values = torch.maximum(self.values, seen.to(self.values.device))

    def add(self, other: Self) -> None:
        """See `Sum.add`."""
        self.values = torch.maximum(self.values, other.values)

    def rest(self) -> None:
        """See `Sum.rest`."""

    def state(self) -> list[Tensor]:
        """See `Sum.state`."""
        return [self.values]

    def restore(self, state: Sequence[Tensor]) -> None:
        """See `Sum.restore`."""
        (self.values,) = state


class _Mean:
    """A mean over weighted tokens, which can be joined with that over others."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.weight = 0.0
        """Sum of the token weights so far."""

    def add(self, other: Self) -> None:
        """See `Sum.add`."""
        mine, others = _shares(self.weight, other.weight)
        self.values.mul_(mine).add_(other.values.mul_(others))
        self.weight += other.weight

    def rest(self) -> None:
        """See `Sum.rest`; nothing can be spared."""

    def state(self) -> list[Tensor]:
        """See `Sum.state`."""
        return [_numbers(self.weight), self.values]

    def restore(self, state: Sequence[Tensor]) -> None:
        """See `Sum.restore`."""
        numbers, self.values = state
        (self.weight,) = numbers.tolist()


class MeanAbs(_Mean):
    """Mean magnitude per channel, ``sum_t w_t |x_t| / sum_t w_t`` in float32."""

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        """Begin with no tokens; `values` is float32 ``[K]``."""
        super().__init__(torch.zeros(in_features, device=device))

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """See `Observer.update`."""
        tokens, weights = _tokens(inputs, weights, len(self.values))
        if not len(tokens):
            return
        sizes = tokens.to(self.values.device).abs().float()
        if weights is not None:
            sizes = sizes * weights.to(sizes)[:, None]
        total = self.weight + (float(len(tokens)) if weights is None else float(weights.sum()))
        self.values.mul_(self.weight / total).add_(sizes.sum(dim=0) / total)
        self.weight = total


class MinMax:
    """Smallest and largest value of the whole tensor, for static activation scales."""

    def __init__(self) -> None:
        self.low = float("inf")
        self.high = float("-inf")

    @property
    def largest(self) -> float:
        """Largest magnitude; 0 if no token came."""
        return max(-self.low, self.high, 0.0)

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """See `Observer.update`."""
        tokens, _ = _tokens(inputs, weights, inputs.shape[-1])
        if len(tokens):
            low, high = torch.aminmax(tokens)
            self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def add(self, other: Self) -> None:
        """See `Sum.add`."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


class Hessian:
    """``sum_t w_t x_t' x_t / sum_t w_t`` in float32: the Hessian of a layer's squared output error.

    The running sum is kept normalized, so that its entries stay in range however many tokens
    come. (Half of the textbook Hessian ``2 X X'``; GPTQ is blind to the factor.)
    """

    def __init__(
        self,
        in_features: int,
        device: torch.device | str = "cpu",
        gram: Gram | None = None,
        spare: list[Tensor] | None = None,
    ) -> None:
        """Begin with no tokens.

        Args:
            in_features: K.
            device: where the sum is kept.
            gram: a faster product for inputs in bf16, exact but for token weights, whose roots
                are multiplied in and rounded to bf16; default torch's in float32.
            spare: see `PackedSymmetric`.
        """
        self._sum = PackedSymmetric(in_features, device, spare)
        self._gram = gram
        self._waiting: list[Tensor] = []
        self._summed = 0.0  # of the weights, without what waits
        self.weight = 0.0
        """Sum of the token weights so far."""
        self.tokens = 0
        """Tokens of positive weight so far."""
        self.extent = MinMax()
        """Range of the same inputs."""

    @property
    def values(self) -> Tensor:
        """float32 ``[K, K]``."""
        self._multiply()
        return self._sum.mirrored()

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """See `Observer.update`."""
        self.extent.update(inputs, weights)
        tokens, weights = _tokens(inputs, weights, self._sum.size)
        if not len(tokens):
            return
        if self._gram is not None and tokens.dtype == torch.bfloat16:
            if weights is not None:
                tokens = (tokens.float() * weights.to(tokens.device)[:, None].sqrt()).bfloat16()
            self._waiting.append(tokens)
        else:
            self._multiply()
            total, values = self.weight + _sum(tokens, weights), self._sum.mirrored()
            rows = tokens.to(values.device, torch.float32)
            rows = rows * _share(weights, total, rows.device)
            values.addmm_(rows.t(), rows, beta=self.weight / total)
            self._summed = total
        self.weight += _sum(tokens, weights)
        self.tokens += len(tokens)
        if sum(map(len, self._waiting)) >= TOGETHER:
            self._multiply()

    def _multiply(self) -> None:
        """Add what waits to the sum."""
        if self._waiting:
            assert self._gram is not None
            rows = torch.cat(self._waiting)
            self._gram(self._sum.lower(), rows, 1 / self.weight, self._summed / self.weight)
            self._waiting, self._summed = [], self.weight

    def add(self, other: Self) -> None:
        """See `Sum.add`."""
        self._multiply()
        other._multiply()
        self._sum = self._sum.plus(other._sum, *_shares(self.weight, other.weight))
        self.weight += other.weight
        self._summed = self.weight
        self.tokens += other.tokens
        self.extent.add(other.extent)

    def rest(self) -> None:
        """See `Sum.rest`."""
        self._multiply()
        self._sum.fold()

    def state(self) -> list[Tensor]:
        """See `Sum.state`."""
        extent = self.extent
        numbers = _numbers(self.weight, self.tokens, extent.low, extent.high)
        return [numbers, *self._sum.pieces()]

    def restore(self, state: Sequence[Tensor]) -> None:
        """See `Sum.restore`; the pieces must be its own."""
        self.weight, tokens, self.extent.low, self.extent.high = state[0].tolist()
        self.tokens, self._summed = int(tokens), self.weight


class CrossMoment(_Mean):
    """``sum_t w_t (y_t - x_t)' x_t / sum_t w_t`` in float32, of inputs x and what they should be.

    Normalized as `Hessian` is: of the same tokens, the two fit together.
    """

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        """Begin with no tokens; `values` is float32 ``[K, K]``, row i of channel i."""
        super().__init__(torch.zeros(in_features, in_features, device=device))

    def update(self, inputs: Tensor, wanted: Tensor, weights: Tensor | None = None) -> None:
        """Take in activations.

        Args:
            inputs: ``[..., K]``, any float dtype; leading dimensions are tokens.
            wanted: what the inputs should be, same shape.
            weights: float ``[T]``, not negative; None counts every token once.

        Raises:
            ValueError: shapes do not fit, or a weight is negative or not finite.
        """
        if wanted.shape != inputs.shape:
            raise ValueError(f"inputs are {tuple(inputs.shape)}, wanted ones {tuple(wanted.shape)}")
        targets, _ = _tokens(wanted, weights, len(self.values))
        tokens, weights = _tokens(inputs, weights, len(self.values))
        if not len(tokens):
            return
        total = self.weight + _sum(tokens, weights)
        rows = tokens.to(self.values.device, torch.float32)
        share = _share(weights, total, rows.device)
        deviations = (targets.to(rows) - rows) * share
        self.values.addmm_(deviations.t(), rows * share, beta=self.weight / total)
        self.weight = total


def _sum(tokens: Tensor, weights: Tensor | None) -> float:
    return float(len(tokens)) if weights is None else float(weights.sum())


def _shares(mine: float, others: float) -> tuple[float, float]:
    """Of two sums of weights in both."""
    total = mine + others
    return (mine / total, others / total) if total else (1.0, 0.0)


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _share(weights: Tensor | None, total: float, device: torch.device) -> Tensor:
    """Root of each token's share of the total weight, float32 ``[T, 1]`` or ``[1]``."""
    share = torch.full((1,), total, device=device).rsqrt()
    if weights is None:
        return share
    return share * weights.to(device, torch.float32)[:, None].sqrt()


def _tokens(
    inputs: Tensor, weights: Tensor | None, in_features: int
) -> tuple[Tensor, Tensor | None]:
    """Flatten to ``[T, K]`` and drop tokens of weight 0."""
    if inputs.shape[-1] != in_features:
        raise ValueError(f"the observer is for {in_features} features, got {inputs.shape[-1]}")
    tokens = inputs.detach().reshape(-1, in_features)
    if weights is None:
        return tokens, None
    if tuple(weights.shape) != (len(tokens),):
        raise ValueError(f"{tuple(weights.shape)} weights for {len(tokens)} tokens; one per token")
    if not bool((weights >= 0).all()) or not bool(torch.isfinite(weights).all()):
        raise ValueError("token weights must be finite and not negative")
    kept = weights > 0
    return tokens[kept.to(tokens.device)], weights[kept]
