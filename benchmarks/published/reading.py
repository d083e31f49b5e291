"""Divergence of a quantized decoder from its baseline along windows of text.

Both models run in float32 and read the same tokens; every token but the last of a window predicts
the next one. The divergence is over the full vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
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

    def __init__(self, model: Callable[[], QwenVL], windows: Sequence[Tensor], path: Path) -> None:
        """Run the model, or use the logits that a run has stored.

        Args:
            model: loads the float model.
            windows: int64 `[tokens]` each.
            path: file for the logits, which must belong to this model and these windows.
        """
        self.windows = windows
        if not path.is_file():
            names = (f"{index:04d}" for index in range(len(windows)))
            partial = path.with_name(f".{path.name}.partial")
            save_file(dict(zip(names, _read(model(), windows), strict=True)), partial)
            partial.rename(path)
        # Mapped into memory, not copied: a gigabyte for ten windows of a vocabulary of 49152.
        self.logits = [tensor for _, tensor in sorted(load_file(path).items())]
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
        both = zip(self.logits, _read(candidate, self.windows), self.windows, strict=True)
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
def _read(model: QwenVL, windows: Sequence[Tensor]) -> Iterator[Tensor]:
    """Logits of a model, converted to float32 in place, for all tokens but the first."""
    model.float()
    for ids in windows:
        yield model([prompt_of(ids)], [[]])[0][:-1].contiguous()


def _nll(logits: Tensor, ids: Tensor) -> float:
    """Mean negative log-probability of all tokens but the first, in nats."""
    return float(F.cross_entropy(logits, ids[1:]))
