"""How far a candidate's distributions are from the base's, token by token.

Both models read the base's own stored answers (teacher forcing), and at each answer token the
full-vocabulary divergence KL(base || candidate) is taken, in nats, over raw float32 logits. This
sees damage long before argmax answers change (Dutta et al., "Accuracy is Not All You Need",
arXiv 2407.09141). The end-of-turn token is kept apart: it is nearly certain in both models and
would flatter short answers. Both models are held in memory at once, so that nothing is rounded
on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.inputs import Prompt
from ..model.processing import Processor
from ..model.qwen_vl import QwenVL
from .features import FeatureCache
from .predictions import Prediction, Record, RecordStore
from .runner import OnProgress, plan_batches, plan_windows
from .statistics import Interval, mean_interval
from .tasks.task import Fields, Item, Task, is_broken

ANSWER_TOKENS = 512  # of an answer compared at most; bounds the logits held at once
_ROWS = 256  # positions whose divergence is taken at a time


def divergence(base: Tensor, candidate: Tensor) -> Tensor:
    """KL(base || candidate) of each position in nats.

    Args:
        base: logits `[positions, vocab]`.
        candidate: the same of the other model.

    Returns:
        float32 `[positions]`, not negative.

    Raises:
        ValueError: a logit is not finite.
    """
    parts = []
    for start in range(0, base.shape[0], _ROWS):
        p = F.log_softmax(base[start : start + _ROWS].float(), dim=-1)
        q = F.log_softmax(candidate[start : start + _ROWS].float(), dim=-1)
        # Rounding can leave about -1e-8 where both agree.
        parts.append((p.exp() * (p - q)).sum(-1).clamp_min(0.0))
    result = torch.cat(parts) if parts else base.new_zeros(0)
    if not bool(torch.isfinite(result).all()):
        raise ValueError("a model gives logits that are not finite; its weights are unusable")
    return result


def measure_task(
    task: Task,
    base: QwenVL,
    candidate: QwenVL,
    processor: Processor,
    answers: Mapping[str, Prediction],
    path: Path,
    fingerprint: Mapping[str, Any],
    *,
    batch_size: int,
    on_progress: OnProgress | None = None,
) -> dict[str, Record]:
    """Measure every item of a task that is not in the file yet.

    Args:
        task: the items.
        base: the original model.
        candidate: the model to judge; may be the same one.
        processor: of both.
        answers: the base's stored answers by item id.
        path: the records file, resumed if present.
        fingerprint: of the measurement.
        batch_size: prompts per batch.
        on_progress: told after every batch.

    Returns:
        All records by item id: `kl` and `top1` per answer token, `end` for the end of turn.

    Raises:
        ValueError: another fingerprint, or logits that are not finite.
    """
    cache = FeatureCache(processor, [base, candidate])
    with RecordStore(path, "fidelity", fingerprint) as store:
        for window in plan_windows(task.items, batch_size):
            if all(item.id in store.records for item in window):
                continue
            lengths = [len(cache.prompts([item])[0][0]) for item in window]
            for batch in plan_batches(window, lengths, batch_size):
                pending = [item for item in batch if item.id not in store.records]
                if not pending:
                    continue
                chosen = [answers[item.id] for item in pending]
                store.append(_measure_batch(base, candidate, cache, pending, chosen))
                if on_progress:
                    on_progress(task.name, len(store.records), len(task.items), "")
        return dict(store.records)


@torch.inference_mode()
def _measure_batch(
    base: QwenVL,
    candidate: QwenVL,
    cache: FeatureCache,
    items: Sequence[Item],
    answers: Sequence[Prediction],
) -> list[Record]:
    asked, _ = cache.prompts(items)
    full, (base_features, candidate_features) = cache.prompts(
        items, [answer.prediction for answer in answers]
    )
    counts, ends = [], []
    for row, (prompt, question, answer) in enumerate(zip(full, asked, answers, strict=True)):
        # The last token is the end of turn; the base did not choose it if it was cut off.
        count = len(prompt) - len(question) - int(not answer.stopped)
        ends.append(answer.stopped and count <= ANSWER_TOKENS)
        counts.append(min(count, ANSWER_TOKENS))
        full[row] = _cut(prompt, len(question) + counts[row])
    last = [count + 1 for count in counts]  # the row before the answer predicts its first token
    theirs = base(full, base_features, last)
    ours = candidate(full, candidate_features, last)
    records = []
    for item, p, q, end in zip(items, theirs, ours, ends, strict=True):
        kl = divergence(p[:-1], q[:-1]).tolist()
        top1 = (p[:-1].argmax(-1) == q[:-1].argmax(-1)).int().tolist()
        tail = {"kl": kl.pop(), "top1": top1.pop()} if end else None
        records.append({"id": item.id, "kl": kl, "top1": top1, "end": tail})
    return records


def _cut(prompt: Prompt, tokens: int) -> Prompt:
    return replace(
        prompt,
        input_ids=prompt.input_ids[:tokens],
        position_ids=prompt.position_ids[:, :tokens],
    )


def summarize_fidelity(records: Iterable[Record]) -> dict[str, Any] | None:
    """Pool records over their answer tokens; None if there is not one token.

    Returns:
        `tokens`, `kl_kind`, `kl_mean`, `kl_median`, `kl_p99`, `kl_max` (nats), `top1_agreement`
        (fraction), and under `end_of_turn` the same for that token alone.
    """
    stored = list(records)
    tokens = _pool([k for r in stored for k in r["kl"]], [t for r in stored for t in r["top1"]])
    if tokens is None:
        return None
    ends = [r["end"] for r in stored if r["end"]]
    return {**tokens, "end_of_turn": _pool([e["kl"] for e in ends], [e["top1"] for e in ends])}


def _pool(kl: Sequence[float], top1: Sequence[int]) -> dict[str, Any] | None:
    if not kl:
        return None
    return {
        "tokens": len(kl),
        "kl_kind": "full",
        "kl_mean": fmean(kl),
        "kl_median": float(np.median(kl)),
        "kl_p99": float(np.percentile(kl, 99)),
        "kl_max": max(kl),
        "top1_agreement": fmean(top1),
    }


def unit_divergences(items: Sequence[Fields], records: Mapping[str, Record]) -> dict[str, float]:
    """Mean divergence per unit: the rotations of a question are no independent samples.

    Items without answer tokens are left out, and units made of such only.
    """
    values: dict[str, list[float]] = {}
    for item in items:
        if not is_broken(item) and (kl := records[item["id"]]["kl"]):
            values.setdefault(item["unit"], []).append(fmean(kl))
    return {unit: fmean(means) for unit, means in values.items()}


def divergence_interval(values: Sequence[float], seed: int = 0) -> Interval | None:
    """Interval of the mean over units; None for fewer than two."""
    return mean_interval(values, seed=seed) if len(values) > 1 else None
