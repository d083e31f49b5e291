"""Tune the rounding of a block's layers against the outputs of the float block.

The loss is `|f_block(x_q) - f_block(x)|^2`: x are the inputs in the float model, x_q those after
the quantized blocks before (SignRound, arXiv 2309.05516, section 3).

Signed gradient steps, as there, leave a solution of GPTQ for worse ones: see `curvature`. A weight
moves by its gradient over its curvature instead, and back to its integer by its distance from it.
It comes to rest where both are equal, and so crosses to the next integer only if its gradient is
more than half of its curvature, which is when the crossing alone would lower the loss. Factors on
scales are trained by Adam.

Tokens have the weights that they have in the Hessians of the calibration.

The best iterate on held-out samples is kept, and the solver's solution is the first one. After a
measurement that is worse than the best by more than `TOLERANCE` training continues from the best
with a third of the rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ...recipe.recover import Recover
from .curvature import LEAST, gauss_newton_diagonal
from .rounded_linear import RoundedLinear

HELD_OUT = 8
"""Of so many samples one is held out."""
TOLERANCE = 0.05
SLOWER = 1 / 3
MOMENTUM = 0.9
SQUARES = 0.99
"""Decay of Adam's mean squares."""
PROBES = 32
"""Most samples that the curvature is estimated from."""
CHECKS = 10
"""Measurements on the held-out samples, after the one at the start."""

Run = Callable[[int], Tensor]
"""Computes the output of the block as it is now for a sample, `[..., channels]`."""
TokenWeights = Callable[[int], Tensor | None]
"""Weight of each token of a sample, float `[tokens]`; None if all are equal."""


@dataclass(frozen=True)
class Tuned:
    """What tuning did to the held-out loss of a block, relative to the size of its outputs."""

    start: float
    best: float
    step: int
    """After which the best iterate was found; 0 is the start."""
    changed: float
    """Share of the integers that differ from the solver's."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        return dict(vars(self))


def divide_samples(samples: Sequence[int]) -> tuple[list[int], list[int]]:
    """Divide samples into those that are trained on and those that are held out, at least one."""
    held_out = list(samples)[HELD_OUT - 1 :: HELD_OUT] or list(samples)[-1:]
    return [number for number in samples if number not in set(held_out)], held_out


class BlockTuner:
    """Tunes the layers of one block.

    Args:
        layers: in the model, by name.
        samples: numbers of the samples, at least two.
        run: of the block with these layers.
        target: the output of the float block for a sample, `[..., tokens, channels]`.
        weights: of the tokens of a sample.
        options: learning rate, samples per step, steps, and schedule.
        seed: of the choice of samples.
    """

    def __init__(
        self,
        layers: Mapping[str, RoundedLinear],
        samples: Sequence[int],
        run: Run,
        target: Run,
        weights: TokenWeights,
        options: Recover,
        seed: int,
    ) -> None:
        self._layers, self._run, self._target, self._options = layers, run, target, options
        self._weights = weights
        self._training, self._held_out = divide_samples(samples)
        self._generator = torch.Generator().manual_seed(seed)
        self._parameters = [layer.rounding for layer in layers.values()]
        self._parameters += [layer.factors for layer in layers.values()]
        self._curvature: list[Tensor] = []
        self._forget()

    def _forget(self) -> None:
        """Start the moving averages again."""
        self._means = [torch.zeros_like(p) for p in self._parameters]
        self._squares = [torch.zeros_like(layer.factors) for layer in self._layers.values()]
        self._averaged = 0

    def tune(self) -> Tuned:
        """Train, and leave the best iterate in the layers."""
        steps = self._options.steps
        assert steps is not None and self._options.lr is not None
        best, best_step, rate = self._measure(), 0, self._options.lr
        start, kept = best, self._state()
        self._curvature = gauss_newton_diagonal(
            self._probe,
            lambda sample: float(self._size(sample, self._target(sample))),
            self._training[:PROBES],
            self._parameters[: len(self._layers)],
            self._generator,
        )
        checks = {round(steps * (k + 1) / CHECKS) for k in range(CHECKS)}
        for step in range(steps):
            self._freeze(step)
            self._step(rate * (1 - step / steps))
            # Only iterates with all levels rounded are candidates.
            if step + 1 in checks:
                self._round_all()
                loss = self._measure()
                if loss < best:
                    best, best_step, kept = loss, step + 1, self._state()
                elif not loss <= (1 + TOLERANCE) * best:
                    self._restore(kept)
                    self._forget()
                    rate *= SLOWER
        self._round_all()
        self._restore(kept)
        return Tuned(start, best, best_step, self._changed())

    def _probe(self, sample: int) -> Tensor:
        """Compute the weighted output for a sample with a graph of its own."""
        self._compute_weights()
        return self._weighted(sample, self._run(sample))

    def _weighted(self, sample: int, values: Tensor) -> Tensor:
        """Multiply the values of each token by the square root of its weight; float32."""
        weights, values = self._weights(sample), values.float()
        return values if weights is None else values * weights.to(values).sqrt()[:, None]

    def _size(self, sample: int, expected: Tensor) -> Tensor:
        """Squared size of a sample's expected output, weighted; above 0 without any weight too."""
        return self._weighted(sample, expected).square().sum().clamp_min(LEAST)

    def _freeze(self, step: int) -> None:
        """Freeze the share of the stage that a step belongs to."""
        stages = self._options.freeze
        assert self._options.steps is not None
        if stages is None:
            return
        stage = step * len(stages) // self._options.steps
        for layer in self._layers.values():
            layer.freeze(stages[stage])

    def _round_all(self) -> None:
        if self._options.freeze is not None:
            for layer in self._layers.values():
                layer.freeze(1.0)

    def _step(self, lr: float) -> None:
        """Take one step on a random batch."""
        count = min(self._options.batch or 1, len(self._training))
        order = torch.randperm(len(self._training), generator=self._generator).tolist()
        with torch.enable_grad():
            self._compute_weights()
            losses = [self._loss(self._training[index]) for index in order[:count]]
            gradients = torch.autograd.grad(torch.stack(losses).mean(), self._parameters)
        self._averaged += 1
        for mean, gradient in zip(self._means, gradients, strict=True):
            mean.lerp_(gradient, 1 - MOMENTUM)
        count = len(self._layers)
        for number, layer in enumerate(self._layers.values()):
            self._move(layer, self._curvature[number], self._mean(number), lr)
            square = self._squares[number]
            square.lerp_(gradients[count + number].square(), 1 - SQUARES)
            root = (square / (1 - SQUARES**self._averaged)).sqrt().clamp_min(LEAST)
            with torch.no_grad():
                layer.factors.sub_(self._mean(count + number) / root, alpha=lr)
            layer.limit()

    def _mean(self, number: int) -> Tensor:
        return self._means[number] / (1 - MOMENTUM**self._averaged)

    @torch.no_grad()
    def _move(self, layer: RoundedLinear, curvature: Tensor, mean: Tensor, lr: float) -> None:
        """Move the weights of a layer; with a schedule, those that are not frozen."""
        direction = mean / curvature
        if self._options.freeze is None:
            direction += layer.rounding - layer.rounding.round()
        else:
            direction *= ~layer.frozen
        layer.rounding.sub_(direction, alpha=lr)

    def _loss(self, sample: int) -> Tensor:
        """Squared error of a sample's output relative to the output's squared size, weighted."""
        expected = self._target(sample)
        error = self._run(sample).float() - expected.float()
        return self._weighted(sample, error).square().sum() / self._size(sample, expected)

    @torch.no_grad()
    def _measure(self) -> float:
        self._compute_weights()
        return fmean(float(self._loss(sample)) for sample in self._held_out)

    def _compute_weights(self) -> None:
        for layer in self._layers.values():
            layer.compute_weight()

    def _state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def _restore(self, state: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, state, strict=True):
            parameter.copy_(value)

    def _changed(self) -> float:
        changed = total = 0
        for layer in self._layers.values():
            differs = layer.quantized().integers != layer.solved.integers
            changed, total = changed + int(differs.sum()), total + differs.numel()
        return changed / total
