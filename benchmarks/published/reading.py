"""Divergence of a quantized decoder from its baseline along windows of text.

Both models run in float32 and read the same tokens; every token but the last of a window predicts
the next one. The divergence is over the full vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlpress.eval.fidelity.measure import compute_divergence
from vlpress.eval.stats.statistics import mean_interval
from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL


def prompt_of(ids: Tensor) -> Prompt:
    """A window of text as a prompt without images.

    Args:
        ids: int64 `[tokens]`.
    """
    return Prompt(ids, torch.arange(len(ids)).expand(3, -1))


class Baseline:
    """Logits of the float model along windows of text."""

    def __init__(self, model: QwenVL, windows: Sequence[Tensor]) -> None:
        """Run the model.

        Args:
            model: converted to float32 in place.
            windows: int64 `[tokens]` each.
        """
        self.windows = windows
        self.logits = list(self._read(model))
        """float32 `[tokens - 1, vocab]` of each window."""
        self.nll = [_nll(logits, ids) for logits, ids in zip(self.logits, windows, strict=True)]

    @property
    def perplexity(self) -> float:
        """Perplexity of the float model."""
        return math.exp(fmean(self.nll))

    def measure(self, candidate: QwenVL) -> dict[str, Any]:
        """Run a candidate on the same windows.

        Args:
            candidate: converted to float32 in place (quantized layers keep their integers).

        Returns:
            `kl_mean` in nats per token with its `ci95` by bootstrap over windows, `kl_windows`, the
            mean of each window, `kl_p99` and `top1_agreement` over tokens, and `perplexity`.

        Raises:
            ValueError: a logit is not finite.
        """
        means, tokens, same, nll = [], [], [], []
        both = zip(self.logits, self._read(candidate), self.windows, strict=True)
        for base, logits, ids in both:
            kl = compute_divergence(base, logits).tolist()
            means.append(fmean(kl))
            tokens += kl
            same += (base.argmax(-1) == logits.argmax(-1)).tolist()
            nll.append(_nll(logits, ids))
        interval = mean_interval(means)
        return {
            "kl_mean": fmean(means),
            "ci95": [interval.low, interval.high],
            "kl_windows": means,
            "kl_p99": float(np.percentile(tokens, 99)),
            "top1_agreement": fmean(same),
            "perplexity": math.exp(fmean(nll)),
        }

    @torch.inference_mode()
    def _read(self, model: QwenVL) -> Iterator[Tensor]:
        model.float()
        for ids in self.windows:
            yield model([prompt_of(ids)], [[]])[0][:-1]


def _nll(logits: Tensor, ids: Tensor) -> float:
    """Mean negative log-probability of all tokens but the first, in nats."""
    return float(F.cross_entropy(logits, ids[1:]))
