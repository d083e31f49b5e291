"""Compare predicted losses with the divergence that single choices cause."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn

from ...calib.gradients import predicted_tokens
from ...model.expert_linear import ExpertLinear
from ...model.families import EMBEDDING, LinearSpec
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL
from ...quant.search.scores import Layer, Scores
from ...quant.search.space import Group
from ...quant.search.steps import make_step
from ...quant.targets import weight_of
from ..fidelity.measure import compute_divergence

BATCH = 8
"""Samples per forward pass."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Pair:
    """A choice of a group that is applied alone."""

    group: Group
    choice: int

    @property
    def layers(self) -> list[Layer]:
        """Its quantized layers with their schemes and masks."""
        choice = self.group.choices[self.choice]
        pairs = zip(self.group.layers, choice.schemes, strict=True)
        return [(spec.name, scheme, choice.mask) for spec, scheme in pairs if scheme is not None]


def draw_pairs(groups: Sequence[Group], count: int, seed: int) -> list[Pair]:
    """Draw choices that quantize a layer, from all groups and choices alike.

    Args:
        groups: of the search space.
        count: number of pairs; if there are fewer, all are returned.
        seed: of the draw.
    """
    pairs = [
        Pair(group, index)
        for group in groups
        for index, choice in enumerate(group.choices)
        if any(choice.schemes)
    ]
    chosen = random.Random(seed).sample(range(len(pairs)), min(count, len(pairs)))
    return [pairs[index] for index in sorted(chosen)]


class DivergenceOf:
    """Divergence of a changed model from itself on some samples, in nats per predicted token."""

    def __init__(self, model: QwenVL, prompts: Sequence[Prompt]) -> None:
        """Run the model as it is.

        Args:
            model: the float model.
            prompts: samples with answers; those without a token to predict are left out.
        """
        self._model = model
        counts = [(prompt, predicted_tokens(prompt, model.config)) for prompt in prompts]
        self._prompts = [prompt for prompt, count in counts if count]
        self._counts = [count for _, count in counts if count]
        with torch.inference_mode():
            self._features = [model.encode(prompt.visuals) for prompt in self._prompts]
            self._base = list(self._logits(encode=False))

    def measure(self, *, changes_tower: bool) -> float:
        """Run the model as it is now.

        Args:
            changes_tower: whether the features of the visuals have changed.
        """
        with torch.inference_mode():
            values = [
                compute_divergence(base, logits)
                for base, logits in zip(self._base, self._logits(encode=changes_tower), strict=True)
            ]
        return fmean(torch.cat(values).double().tolist())

    def _logits(self, *, encode: bool) -> Iterator[Tensor]:
        for start in range(0, len(self._prompts), BATCH):
            batch = slice(start, start + BATCH)
            features = None if encode else self._features[batch]
            # A position predicts the next token.
            lengths = [count + 1 for count in self._counts[batch]]
            yield from (
                logits[:-1] for logits in self._model(self._prompts[batch], features, lengths)
            )


def check_scores(
    model: QwenVL,
    prompts: Sequence[Prompt],
    pairs: Sequence[Pair],
    scores: Scores,
    on_progress: Progress,
) -> dict[str, Any]:
    """Measure the divergence of each pair and correlate it with the predicted loss.

    Args:
        model: the float model; left unchanged.
        prompts: samples that were not scored on.
        pairs: from `draw_pairs`; `scores` has the weights of their layers.
        scores: of the model.
        on_progress: called with the number of finished pairs, their total and the last one.

    Returns:
        `spearman` (None if fewer than two pairs differ), `ratio` (median of measured over
        predicted), `samples`, and `pairs` with `group`, `choice`, `predicted` and `measured`.
    """
    divergence = DivergenceOf(model, prompts)
    rows: list[dict[str, Any]] = []
    for number, pair in enumerate(pairs, 1):
        choice = pair.group.choices[pair.choice]
        with _replaced(model, pair, scores):
            measured = divergence.measure(changes_tower=pair.group.part == "tower")
        rows.append(
            {
                "group": pair.group.name,
                "choice": choice.label,
                "predicted": scores.loss(pair.group.layers, choice.schemes, choice.mask),
                "measured": measured,
            }
        )
        on_progress(number, len(pairs), pair.group.name)
    ratios = [row["measured"] / row["predicted"] for row in rows if row["predicted"]]
    return {
        "spearman": rank_correlation(rows),
        "ratio": median(ratios) if ratios else None,
        "samples": len(prompts),
        "pairs": rows,
    }


def rank_correlation(rows: Sequence[dict[str, Any]]) -> float | None:
    """Return Spearman's correlation of `predicted` and `measured`; None if it is undefined."""
    from scipy.stats import spearmanr  # type: ignore  # imports scipy.stats, half a second

    columns = [[row[key] for row in rows] for key in ("predicted", "measured")]
    if len(rows) < 2 or any(len(set(column)) < 2 for column in columns):
        return None
    return float(spearmanr(*columns).statistic)


@contextmanager
def _replaced(model: QwenVL, pair: Pair, scores: Scores) -> Iterator[None]:
    """Replace the weights of a pair's layers inside the `with` block."""
    choice = pair.group.choices[pair.choice]
    changed: list[tuple[LinearSpec, Tensor]] = []
    try:
        for spec, scheme in zip(pair.group.layers, choice.schemes, strict=True):
            if scheme is None:
                continue
            if spec.name == EMBEDDING:
                weight = model.model.embed_tokens.weight
                assert isinstance(weight, Tensor)
                new = make_step("embedding", scheme, "rtn").solve(weight.detach(), None).weight
            else:
                weight, new = weight_of(model, spec), scores.weights[spec.name, scheme, choice.mask]
            changed.append((spec, weight.detach().clone()))
            _set(model, spec, new.dequantize(weight.dtype))
        yield
    finally:
        for spec, weight in changed:
            _set(model, spec, weight)


def _set(model: nn.Module, spec: LinearSpec, weight: Tensor) -> None:
    """Set a weight; that of an expert in place, in the tensor of all experts."""
    module = model.get_submodule(spec.name)
    if isinstance(module, ExpertLinear):
        module.weight.detach().copy_(weight)
    else:  # not in place: an untied head shares the memory of the embedding
        module.weight = nn.Parameter(weight, requires_grad=False)
