"""Divergence of a model from its baseline on samples that calibration does not use.

Both models read a question with its correct answer (teacher forcing); at each answer token the
divergence KL(base || candidate) is computed over the full vocabulary. Both run in float32, so that
small differences exceed the rounding of bf16 activations. The end-of-turn token is excluded: it is
nearly certain in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlpress.calib.samples.draw import load_samples
from vlpress.calib.samples.sample import Sample
from vlpress.eval.fidelity.measure import compute_divergence
from vlpress.eval.stats.statistics import Interval, mean_interval
from vlpress.model.features import Features
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import open_model, resolve_folder
from vlpress.quant.resolve import encode_samples

SEEDS = {"validation": 1001, "held_out": 2002, "runoff": 3003, "final": 4004}
"""Seeds of the samples by set: `validation` for the choice of methods, `held_out` for the report,
`runoff` for methods that are close, and `final` for the comparison with the peers' choice.
Calibration uses small seeds."""
BATCH = 64


@dataclass(frozen=True)
class Divergence:
    """Divergence of a candidate on one set of samples."""

    kl: list[list[float]]
    """KL divergence per sample and answer token, nats."""
    top1: list[list[bool]]
    """Whether the most probable token is the same in both models."""

    @property
    def means(self) -> list[float]:
        """Mean KL of each sample."""
        return [fmean(values) for values in self.kl]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class Judge:
    """A base model's distributions over the answers to a set of samples."""

    def __init__(self, base: str, seed: int, n: int) -> None:
        """Generate the samples and run the base model on them.

        Args:
            base: name or folder.
            seed: seed of the samples.
            n: number of samples.
        """
        processor = Processor.from_folder(resolve_folder(base))
        samples = load_samples(None, n=n, seed=seed)
        self.prompts = encode_samples(samples, processor)
        unanswered = encode_samples([Sample(s.messages, "", s.id) for s in samples], processor)
        # The encoding of an empty answer is the end of turn, which also ends every other answer.
        self.answers = [len(f) - len(a) for f, a in zip(self.prompts, unanswered, strict=True)]
        model = open_model(base, device="cpu", dtype="fp32")
        self.tower = model.visual.state_dict()
        self.features = self._encode_images(model)
        self.logits = list(self._logits(model, self.features))

    def measure(self, candidate: QwenVL) -> Divergence:
        """Run a candidate on the same samples; equal vision towers share the image features.

        Args:
            candidate: converted to float32 in place (quantized layers keep their integers).

        Raises:
            ValueError: a logit is not finite.
        """
        model = candidate.float()
        features = (
            self.features
            if equal(self.tower, model.visual.state_dict())
            else self._encode_images(model)
        )
        kl, top1 = [], []
        for base, logits in zip(self.logits, self._logits(model, features), strict=True):
            kl.append(compute_divergence(base, logits).tolist())
            top1.append((base.argmax(-1) == logits.argmax(-1)).tolist())
        return Divergence(kl, top1)

    @torch.inference_mode()
    def _encode_images(self, model: QwenVL) -> list[list[Features]]:
        """Features of each prompt's images."""
        return [model.encode(prompt.visuals) for prompt in self.prompts]

    @torch.inference_mode()
    def _logits(self, model: QwenVL, features: Sequence[Sequence[Features]]) -> Iterator[Tensor]:
        """Logits `[answer tokens, vocab]` of each sample."""
        for start in range(0, len(self.prompts), BATCH):
            batch = slice(start, start + BATCH)
            # A position predicts the next token; the last two positions belong to the end of turn.
            lengths = [count + 2 for count in self.answers[batch]]
            logits_of_prompts = model(self.prompts[batch], features[batch], lengths)
            yield from (logits[:-2] for logits in logits_of_prompts)


def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors have the same names and values."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


class Judges:
    """Judges of one model by set and number of samples, created on demand."""

    def __init__(self, base: str) -> None:
        """`base` is a name or a folder."""
        self.base = base
        self._made: dict[tuple[str, int], Judge] = {}

    def measure(self, candidate: QwenVL, sizes: Mapping[str, int]) -> dict[str, Any]:
        """Measure the `Divergence` of a candidate by set, as plain data.

        Args:
            candidate: as in `Judge.measure`.
            sizes: number of samples of each set.
        """
        return {
            name: self._judge(name, size).measure(candidate).to_dict()
            for name, size in sizes.items()
        }

    def _judge(self, name: str, size: int) -> Judge:
        if (name, size) not in self._made:
            self._made[name, size] = Judge(self.base, SEEDS[name], size)
        return self._made[name, size]


def summarize(runs: Sequence[Divergence]) -> dict[str, Any]:
    """Summarize runs on the same samples (one per calibration seed).

    Returns:
        `kl_mean` over samples, where a sample's KL is its mean over tokens and runs; its `ci95` by
        bootstrap over samples; `kl_seeds`, the mean of each run; `kl_p99` and `top1_agreement`
        over tokens of all runs.
    """
    means = sample_means(runs)
    interval = mean_interval(means)
    tokens = [value for run in runs for values in run.kl for value in values]
    return {
        "samples": len(means),
        "tokens": len(tokens) // len(runs),
        "kl_mean": fmean(means),
        "ci95": [interval.low, interval.high],
        "kl_seeds": [fmean(run.means) for run in runs],
        "kl_p99": float(np.percentile(tokens, 99)),
        "top1_agreement": fmean(same for run in runs for values in run.top1 for same in values),
    }


def sample_means(runs: Sequence[Divergence]) -> list[float]:
    """Mean KL of each sample over runs."""
    return [fmean(values) for values in zip(*(run.means for run in runs), strict=True)]


def paired(left: Sequence[Divergence], right: Sequence[Divergence]) -> Interval:
    """95 % interval of the difference in mean KL over the same samples, vlpress minus peer."""
    both = zip(sample_means(left), sample_means(right), strict=True)
    return mean_interval([a - b for a, b in both])
