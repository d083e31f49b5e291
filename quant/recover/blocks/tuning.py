"""Tune the rounding of a block's layers against the outputs of the float block.

The loss is `|f_block(x_q) - f_block(x)|^2`: x are the inputs in the float model, x_q those after
the quantized blocks before. Signed gradient steps with a rate that falls to zero linearly; the best
iterate on held-out samples is kept, and the solver's solution is the first one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ...recipe.recover import Recover
from .rounded_linear import RoundedLinear

HELD_OUT = 8
"""Of so many samples one is held out."""
CHECKS = 10
"""Measurements on the held-out samples, after the one at the start."""

Run = Callable[[int], Tensor]
"""Computes the output of the block as it is now for a sample, `[..., channels]`."""
Update = Callable[[int, int, str], None]


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


class BlockTuner:
    """Tunes the layers of one block.

    Args:
        layers: in the model, by name.
        samples: numbers of the samples, at least two.
        run: of the block with these layers.
        target: the output of the float block for a sample.
        options: learning rate, samples per step, steps, and schedule.
        seed: of the choice of samples.
    """

    def __init__(
        self,
        layers: Mapping[str, RoundedLinear],
        samples: Sequence[int],
        run: Run,
        target: Run,
        options: Recover,
        seed: int,
    ) -> None:
        self._layers, self._run, self._target, self._options = layers, run, target, options
        self._held_out = list(samples)[HELD_OUT - 1 :: HELD_OUT] or list(samples)[-1:]
        self._training = [i for i in samples if i not in set(self._held_out)]
        self._generator = torch.Generator().manual_seed(seed)
        self._parameters = [p for layer in layers.values() for p in (layer.rounding, layer.factors)]

    def tune(self) -> Tuned:
        """Train, and leave the best iterate in the layers.

        Raises:
            ValueError: the loss is not finite.
        """
        steps = self._options.steps
        assert steps is not None and self._options.lr is not None
        best, best_step = start, _ = self._measure(), 0
        kept = self._state()
        checks = {round(steps * (k + 1) / CHECKS) for k in range(CHECKS)}
        for step in range(steps):
            self._freeze(step)
            self._step(self._options.lr * (1 - step / steps))
            # Only iterates with all levels rounded are candidates.
            if step + 1 in checks:
                self._round_all()
                loss = self._measure()
                if loss < best:
                    best, best_step, kept = loss, step + 1, self._state()
        self._round_all()
        self._restore(kept)
        return Tuned(start, best, best_step, self._changed())

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
        """Take one step of signed gradients on a random batch."""
        count = min(self._options.batch or 1, len(self._training))
        order = torch.randperm(len(self._training), generator=self._generator).tolist()
        with torch.enable_grad():
            self._compute_weights()
            losses = [self._loss(self._training[index]) for index in order[:count]]
            gradients = torch.autograd.grad(torch.stack(losses).mean(), self._parameters)
        with torch.no_grad():
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.sub_(gradient.sign(), alpha=lr)
        for layer in self._layers.values():
            layer.limit()

    def _loss(self, sample: int) -> Tensor:
        """Squared error of a sample's output relative to the output's squared size."""
        expected = self._target(sample).float()
        error = self._run(sample).float() - expected
        return error.square().sum() / expected.square().sum()

    @torch.no_grad()
    def _measure(self) -> float:
        self._compute_weights()
        loss = fmean(float(self._loss(sample)) for sample in self._held_out)
        if not math.isfinite(loss):
            raise ValueError(
                f"recover: the loss is {loss}; tune with a smaller lr, or calibrate in fp32"
            )
        return loss

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
