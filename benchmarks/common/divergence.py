"""How far a model is from the original on drawings that no calibration saw.

Both read a question with its right answer; at each answer token the divergence
KL(base || candidate) is taken over the full vocabulary. Both run in float32, so that what is small
is not drowned in the rounding of bf16 activations. The end-of-turn token is left out: it is nearly
certain in both.
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
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import open_model, resolve_folder
from vlpress.quant.resolve import encode_samples

SEEDS = {"validation": 1001, "held_out": 2002, "runoff": 3003, "final": 4004}
"""Of the drawings on which methods are chosen, of those on which they are reported, of those on
which the first are compared again where they lie close, and of those on which what was chosen is
compared with the peers' choice. Calibration takes small seeds."""
BATCH = 64


@dataclass(frozen=True)
class Divergence:
    """What was measured."""

    kl: list[list[float]]
    """Per sample and answer token, nats."""
    top1: list[list[bool]]
    """Whether both models find the same token most probable."""

    @property
    def means(self) -> list[float]:
        """Mean KL of each sample."""
        return [fmean(values) for values in self.kl]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class Judge:
    """A base model's distributions over the answers to a set of drawings."""

    def __init__(self, base: str, seed: int, n: int) -> None:
        """Draw the questions and have the base model read them.

        Args:
            base: name or folder.
            seed: of the drawings.
            n: how many.
        """
        processor = Processor.from_folder(resolve_folder(base))
        samples = load_samples(None, n=n, seed=seed)
        self.prompts = encode_samples(samples, processor)
        asked = encode_samples([Sample(s.messages, "", s.id) for s in samples], processor)
        # An empty answer is the end of turn alone; of a full one the same tokens come last.
        self.answers = [len(f) - len(a) for f, a in zip(self.prompts, asked, strict=True)]
        model = open_model(base, device="cpu", dtype="fp32")
        self.tower = model.visual.state_dict()
        self.features = self._see(model)
        self.logits = list(self._read(model, self.features))

    def measure(self, candidate: QwenVL) -> Divergence:
        """Let a candidate read the same; a vision tower that is the base's need not look again.

        Args:
            candidate: is turned to float32 (quantized layers keep their integers).

        Raises:
            ValueError: a logit is not finite.
        """
        model = candidate.float()
        features = (
            self.features if equal(self.tower, model.visual.state_dict()) else self._see(model)
        )
        kl, top1 = [], []
        for base, logits in zip(self.logits, self._read(model, features), strict=True):
            kl.append(compute_divergence(base, logits).tolist())
            top1.append((base.argmax(-1) == logits.argmax(-1)).tolist())
        return Divergence(kl, top1)

    @torch.inference_mode()
    def _see(self, model: QwenVL) -> list[list[Tensor]]:
        """Features of each prompt's pictures."""
        return [model.encode(prompt.visuals) for prompt in self.prompts]

    @torch.inference_mode()
    def _read(self, model: QwenVL, features: Sequence[Sequence[Tensor]]) -> Iterator[Tensor]:
        """Logits ``[answer tokens, vocab]`` of each sample."""
        for start in range(0, len(self.prompts), BATCH):
            part = slice(start, start + BATCH)
            # The position before a token predicts it; the last two stand before and at the end.
            wanted = [count + 2 for count in self.answers[part]]
            read = model(self.prompts[part], features[part], wanted)
            yield from (logits[:-2] for logits in read)


def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors have the same names and values."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


class Judges:
    """The judges of one model by set and number of drawings, each made when it is needed."""

    def __init__(self, base: str) -> None:
        """`base` is a name or a folder."""
        self.base = base
        self._made: dict[tuple[str, int], Judge] = {}

    def measure(self, candidate: QwenVL, sizes: Mapping[str, int]) -> dict[str, Any]:
        """`Divergence`s as plain data, by set.

        Args:
            candidate: as `Judge.measure` takes it.
            sizes: number of drawings of each set.
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
    """One row from runs on the same drawings (one per calibration seed).

    Returns:
        `kl_mean` over samples, each sample's KL being its mean over tokens and runs; `ci95` of it
        by bootstrap over samples; `kl_seeds`, the mean of each run; `kl_p99` and `top1_agreement`
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


def paired(ours: Sequence[Divergence], theirs: Sequence[Divergence]) -> Interval:
    """95 % interval of the difference of mean KL, ours minus theirs, over the same drawings."""
    both = zip(sample_means(ours), sample_means(theirs), strict=True)
    return mean_interval([a - b for a, b in both])
