"""Train a quantized model in memory: end to end, towards teachers or the samples' answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ...calib.activation_store import ActivationStore, MemoryActivationStore
from ...calib.samples.sample import Sample, content_digest, fingerprint
from ...common.progress import Update
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL
from ..compressed_weight import CompressedWeight
from ..methods.low_rank import LowRank
from ..recipe.recover import Recover
from .answers import Answers
from .division import Division, divide
from .linears import changed_adapters, changed_weights, differentiable
from .losses import cross_entropy, mixed_divergence
from .params.table import KINDS
from .teachers import Teacher
from .trainer import Group, Progress, Trainer


@dataclass(frozen=True)
class Recovered:
    """The result of a training; the model itself has it too."""

    weights: Mapping[str, CompressedWeight]
    """Quantized layers that differ, by name."""
    floats: Mapping[str, Tensor]
    """Float tensors that differ, by canonical name."""
    adapters: Mapping[str, LowRank]
    """Low-rank parts that differ, by layer."""
    record: Mapping[str, Any]
    """JSON values for the checkpoint's record."""


def recover_(
    model: QwenVL,
    options: Recover,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    teachers: Sequence[tuple[Path, float]] = (),
    *,
    stored: torch.dtype | None = None,
    folder: Path | None = None,
    features: ActivationStore | None = None,
    update: Update | None = None,
) -> Recovered:
    """Train parameters of a quantized model, in place.

    Args:
        model: not prepared for kernels, in the dtype to train in.
        options: what is trained; not rounding.
        samples: those that are trained on and those that are held out, see `divide`.
        prompts: the samples as the model reads them, with their answers.
        teachers: stores that cover the samples, and the weight of each; none for answers as
            targets.
        stored: dtype in which the checkpoint stores float tensors; default the model's.
        folder: where the state of the training is kept, to resume it; None: nowhere.
        features: where features of images are kept; default in memory.
        update: called with finished steps.

    Raises:
        ValueError: the model has no such parameters, teachers do not cover the samples, or the
            training diverges.
    """
    division = divide(samples, _known(options.held_out))
    answers = Answers(model, prompts, features or MemoryActivationStore())
    digests = [content_digest(sample) for sample in samples]
    opened = [(Teacher(path), share) for path, share in teachers]
    for teacher, _ in opened:
        teacher.check(answers, digests)
    answers.encode_images()
    loss_of = _losses(answers, digests, opened)
    with differentiable(model) as layers:
        kinds = [KINDS[name](model, layers, stored or model.dtype) for name in options.params]
        trainer = Trainer(
            [Group(kind.changes, options.rate(kind.name)) for kind in kinds],
            division.training,
            lambda numbers: torch.stack(loss_of(numbers)).mean(),
            lambda: _held_out(loss_of, division, _known(options.batch)),
            epochs=_known(options.epochs),
            batch=_known(options.batch),
            seed=_known(options.seed),
            folder=folder,
        )
        progress = trainer.train(update or (lambda done, total, detail: None))
        floats: dict[str, Tensor] = {}
        for kind in kinds:
            floats |= kind.detach()
        weights = changed_weights(layers)
        adapters = {} if progress.best == 0 else changed_adapters(layers)
    record = _record(options, samples, division, progress, [teacher for teacher, _ in opened])
    return Recovered(weights, floats, adapters, record)


def _losses(
    answers: Answers, digests: Sequence[str], teachers: Sequence[tuple[Teacher, float]]
) -> Callable[[Sequence[int]], list[Tensor]]:
    """Return a function that computes the loss of each of some samples."""
    device = answers.model.device

    def losses(numbers: Sequence[int]) -> list[Tensor]:
        rows = zip(numbers, answers.logits(numbers), strict=True)
        if not teachers:
            return [cross_entropy(answers.tokens(number), logits) for number, logits in rows]
        return [
            mixed_divergence(
                [(teacher.read(digests[number], device), share) for teacher, share in teachers],
                logits,
            )
            for number, logits in rows
        ]

    return losses


@torch.no_grad()
def _held_out(
    losses: Callable[[Sequence[int]], list[Tensor]], division: Division, batch: int
) -> float:
    numbers = division.held_out
    batches = [numbers[start : start + batch] for start in range(0, len(numbers), batch)]
    return fmean(float(loss) for of_batch in batches for loss in losses(of_batch))


def _record(
    options: Recover,
    samples: Sequence[Sample],
    division: Division,
    progress: Progress,
    teachers: Sequence[Teacher],
) -> dict[str, Any]:
    return {
        **options.to_dict(),
        # The record has no paths: stores and models are told apart by `teachers_read`.
        **({"teachers": [_short(name) for name in options.teachers]} if options.teachers else {}),
        "training_samples": len(division.training),
        "held_out_samples": len(division.held_out),
        "fingerprint": fingerprint(samples),
        **({"teachers_read": [teacher.header["teacher"] for teacher in teachers]}),
        "held_out_loss": progress.losses,
        "training_loss": progress.training,
        "best_epoch": progress.best,
    }


def _short(name: str) -> str:
    """Return the name of a teacher without the folders above it."""
    return Path(name).name if Path(name).exists() else name


def _known(value: Any) -> Any:
    """Return a value of `Recover` that its defaults have filled."""
    assert value is not None
    return value
