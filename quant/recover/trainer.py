"""Train changes of parameters; keep the best epoch by held-out loss; resume after an interruption.

The changes are zero at the start, and the start is a candidate: the result is never worse on the
held-out samples. Adam (Kingma and Ba, arXiv 1412.6980) with a rate that rises in the first tenth of
the steps and falls to zero linearly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...common.atomic import atomic_folder, write_json
from ...common.json_files import read_json
from ...common.progress import Update
from ...common.safetensors_writer import write_tensors

SAVE_EVERY = 50
"""Steps between two states on disk; every epoch ends with one."""
STATE, TENSORS, NUMBERS = "training", "tensors.safetensors", "numbers.json"
WARM_UP = 0.1
"""Share of the steps in which the rate rises to its full size."""
BETAS, EPSILON = (0.9, 0.99), 1e-12


@dataclass(frozen=True)
class Group:
    """Parameters with one learning rate."""

    parameters: Mapping[str, nn.Parameter]
    lr: float


@dataclass
class Progress:
    """How far a training is."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    """Held-out loss at the start and after each epoch."""
    best: int = 0
    """Epoch of the least of them; 0 is the start."""
    training: list[float] = field(default_factory=list)
    """Mean training loss of each finished epoch."""
    running: float = 0.0
    """Sum of the losses of the steps of this epoch."""


class Trainer:
    """Trains groups of parameters on numbered samples.

    Args:
        groups: parameters, zero at the start.
        samples: numbers of the training samples.
        loss: of a batch of samples, differentiable.
        held_out: loss on the held-out samples, without gradient.
        epochs: passes over the samples.
        batch: samples per step; the last batch of an epoch may be smaller.
        seed: of the order of the samples.
        folder: where the state is kept; None: nowhere.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        samples: Sequence[int],
        loss: Callable[[Sequence[int]], Tensor],
        held_out: Callable[[], float],
        *,
        epochs: int,
        batch: int,
        seed: int,
        folder: Path | None = None,
    ) -> None:
        self._parameters = {n: p for group in groups for n, p in group.parameters.items()}
        self._rates = {n: group.lr for group in groups for n in group.parameters}
        self._samples, self._loss, self._held_out = list(samples), loss, held_out
        self._epochs, self._batch, self._seed = epochs, batch, seed
        self._folder = folder
        self._moments = {
            name: (torch.zeros_like(p.detach()), torch.zeros_like(p.detach()))
            for name, p in self._parameters.items()
        }
        self._best = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.progress = Progress()

    @property
    def steps(self) -> int:
        """Number of all steps."""
        return self._epochs * self._steps_per_epoch

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(len(self._samples) / self._batch)

    def train(self, update: Update) -> Progress:
        """Train, or resume; the parameters are then those of the best epoch.

        Raises:
            ValueError: a loss is not finite.
        """
        self._restore()
        progress = self.progress
        if not progress.losses:
            progress.losses.append(self._checked(self._held_out(), "at the start"))
        while progress.step < self.steps:
            epoch, place = divmod(progress.step, self._steps_per_epoch)
            order = self._order(epoch)
            while place < self._steps_per_epoch:
                numbers = order[place * self._batch : (place + 1) * self._batch]
                update(progress.step, self.steps, self._detail())
                progress.running += self._step(numbers)
                place, progress.step = place + 1, progress.step + 1
                if place == self._steps_per_epoch:
                    self._end_epoch()
                if place == self._steps_per_epoch or progress.step % SAVE_EVERY == 0:
                    self._save()
        update(self.steps, self.steps, self._detail())
        self._take(self._best)
        return progress

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        permuted = torch.randperm(len(self._samples), generator=generator).tolist()
        return [self._samples[index] for index in permuted]

    def _step(self, numbers: Sequence[int]) -> float:
        with torch.enable_grad():
            loss = self._loss(numbers)
            gradients = torch.autograd.grad(loss, list(self._parameters.values()))
        value = self._checked(float(loss.detach()), f"in step {self.progress.step + 1}")
        step = self.progress.step + 1
        share = min(step / max(1, WARM_UP * self.steps), 1 - self.progress.step / self.steps)
        for (name, parameter), gradient in zip(self._parameters.items(), gradients, strict=True):
            mean, square = self._moments[name]
            mean.lerp_(gradient, 1 - BETAS[0])
            square.lerp_(gradient.square(), 1 - BETAS[1])
            root = (square / (1 - BETAS[1] ** step)).sqrt().add_(EPSILON)
            with torch.no_grad():
                change = mean / (1 - BETAS[0] ** step) / root
                parameter.sub_(change, alpha=self._rates[name] * share)
        return value

    def _end_epoch(self) -> None:
        progress = self.progress
        progress.training.append(progress.running / self._steps_per_epoch)
        progress.running = 0.0
        loss = self._checked(self._held_out(), f"after epoch {len(progress.losses)}")
        if loss < progress.losses[progress.best]:
            progress.best = len(progress.losses)
            self._best = {name: p.detach().clone() for name, p in self._parameters.items()}
        progress.losses.append(loss)

    def _checked(self, loss: float, where: str) -> float:
        if not math.isfinite(loss):
            raise ValueError(
                f"recover: the loss is {loss} {where}; train with a smaller lr, or with --dtype "
                "fp32"
            )
        return loss

    def _detail(self) -> str:
        first, best = self.progress.losses[0], self.progress.losses[self.progress.best]
        return f"held-out loss {best:.4g}, at the start {first:.4g}"

    def _take(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(values[name])

    def _save(self) -> None:
        if self._folder is None:
            return
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            mean, square = self._moments[name]
            named = {"now": parameter.detach(), "best": self._best[name]}
            named |= {"mean": mean, "square": square}
            tensors |= {f"{part}/{name}": tensor for part, tensor in named.items()}
        with atomic_folder(self._folder / STATE, existing="replace", exclusive=True) as folder:
            write_tensors(tensors, folder / TENSORS)
            write_json(folder / NUMBERS, dict(vars(self.progress)))

    def _restore(self) -> None:
        if self._folder is None or not (self._folder / STATE).is_dir():
            return
        folder = self._folder / STATE
        remedy = "begin again with --fresh"
        self.progress = Progress(**read_json(folder / NUMBERS, remedy))
        try:
            tensors = load_file(folder / TENSORS)
        except Exception as error:  # safetensors raises its own type for damage
            raise ValueError(f"{folder / TENSORS} is damaged; {remedy}") from error
        self._take({name: tensors[f"now/{name}"] for name in self._parameters})
        for name, (mean, square) in self._moments.items():
            mean.copy_(tensors[f"mean/{name}"])
            square.copy_(tensors[f"square/{name}"])
            self._best[name].copy_(tensors[f"best/{name}"])
