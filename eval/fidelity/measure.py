"""How far a candidate's distributions are from the base's, token by token.

Both models read the base's own stored answers (teacher forcing), and at each answer token the
divergence KL(base || candidate) is taken in nats over raw logits. This sees damage long before
argmax answers change (Dutta et al., "Accuracy is Not All You Need", arXiv 2407.09141). The base
reads first and leaves its log-probabilities on disk (`logprobs`), so that the two models need not
be in memory together and many candidates share one reading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.distributed import SINGLE_PROCESS, Communicator, Message, distribute
from ...model.processing.processor import Processor
from ...model.qwen_vl import QwenVL
from ..answering.predictions import Prediction, Record, open_shared
from ..answering.runner import OnProgress, located, plan_batches, plan_windows, shared_lengths
from ..answering.vision_features import FeatureCache
from ..tasks.task import Fields, Item, Task
from .logprob_cache import Expected, LogProbReader, LogProbWriter, choose_kind, lump
from .teacher_forcing import ANSWER_TOKENS, ForcedAnswer, read_answers

FOLDER = "logprobs"
_ROWS = 256  # positions whose divergence is taken at a time


def divergence(base: Tensor, candidate: Tensor) -> Tensor:
    """KL(base || candidate) of each position in nats, over the full vocabulary.

    Args:
        base: logits or log-probabilities `[positions, vocab]`.
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
    _check_divergence(result)
    return result


def _check_divergence(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            "a model gives logits that are not finite, so the divergence is not either; evaluate "
            "both models in bf16 or fp32, or fetch the checkpoint again"
        )


def lumped_divergence(logprobs: Tensor, ids: Tensor, rest: Tensor, candidate: Tensor) -> Tensor:
    """KL of each position with all but the base's top tokens taken as one.

    Args:
        logprobs: the base's, of its top tokens, `[positions, top]`.
        ids: which tokens those are.
        rest: the base's probability of all others, `[positions]`.
        candidate: logits `[positions, vocab]`.

    Returns:
        float32 `[positions]`, not negative and not above the full divergence.

    Raises:
        ValueError: a logit is not finite.
    """
    q = F.log_softmax(candidate.float(), dim=-1).gather(-1, ids)
    p = logprobs.double()
    p_rest = rest.double()
    q_rest = (1 - q.double().exp().sum(-1)).clamp_min(1e-12)
    kl = (p.exp() * (p - q)).sum(-1)
    kl += torch.where(p_rest > 0, p_rest * (p_rest.clamp_min(1e-12) / q_rest).log(), 0.0)
    _check_divergence(kl)
    return kl.clamp_min(0.0).float()


def keep_logprobs(
    task: Task,
    model: QwenVL,
    processor: Processor,
    answers: Mapping[str, Prediction],
    folder: Path,
    fingerprint: Mapping[str, Any],
    *,
    batch_size: int,
    on_progress: OnProgress | None = None,
    comm: Communicator = SINGLE_PROCESS,
) -> None:
    """Have the base read its answers and keep what it expected; resumes.

    Args:
        task: the items.
        model: the base.
        processor: of the base.
        answers: the base's stored answers by item id.
        folder: where to keep it.
        fingerprint: everything that the numbers depend on.
        batch_size: prompts per batch.
        on_progress: told after every batch.
        comm: who shares the batches.

    Raises:
        ValueError: the folder was made with another fingerprint.
        NotFiniteError: a logit is NaN or infinite; the message names benchmark and item.
    """
    tokens = sum(_length(answers[item.id]) for item in task.items) + 2 * len(task.items)
    kind = choose_kind(tokens, model.config.text.vocab_size)
    cache, letters = FeatureCache(processor, [model]), _Letters(processor)

    def work(batch: Sequence[Item]) -> Message:
        read = read_answers(model, cache, batch, [answers[item.id] for item in batch])
        spelled = [
            letters.logprobs(item.fields, answer.first)
            for item, answer in zip(batch, read, strict=True)
        ]
        return store.write([item.id for item in batch], read, spelled)

    with located(task), closing(LogProbWriter(folder, kind, fingerprint, comm)) as store:
        batches = _batches(task, cache, batch_size, lambda item: item.id in store, comm)
        for _, written in distribute(comm, batches, work):
            store.add(written)
            if on_progress:
                on_progress(task.name, len(store), len(task.items), "")


def _length(answer: Prediction) -> int:
    return ANSWER_TOKENS if answer.n_tokens is None else min(answer.n_tokens, ANSWER_TOKENS)


def measure_task(
    task: Task,
    candidate: QwenVL,
    processor: Processor,
    answers: Mapping[str, Prediction],
    reference: LogProbReader,
    path: Path,
    fingerprint: Mapping[str, Any],
    *,
    batch_size: int,
    on_progress: OnProgress | None = None,
    comm: Communicator = SINGLE_PROCESS,
) -> dict[str, Record]:
    """Measure every item of a task that is not in the file yet.

    Args:
        task: the items.
        candidate: the model to judge; may be the base itself.
        processor: of both.
        answers: the base's stored answers by item id.
        reference: what the base expected.
        path: the records file, resumed if present.
        fingerprint: of the measurement.
        batch_size: prompts per batch.
        on_progress: told after every batch.
        comm: who shares the batches.

    Returns:
        All records by item id, see `compare_answer`.

    Raises:
        ValueError: another fingerprint, or logits that are not finite (then `NotFiniteError`, which
            names benchmark and item).
    """
    cache = FeatureCache(processor, [candidate])
    letters = _Letters(processor)

    def work(batch: Sequence[Item]) -> Message:
        read = read_answers(candidate, cache, batch, [answers[item.id] for item in batch])
        records = []
        for item, ours in zip(batch, read, strict=True):
            base = reference.read(item.id, ours.logits.device)
            spelled = letters.logprobs(item.fields, ours.first)
            record = {"id": item.id, **compare_answer(base, ours)}
            records.append(record | _gold(item.fields, base.letters, spelled))
        return Message(records)

    with located(task), closing(open_shared(comm, path, "fidelity", fingerprint)) as store:
        batches = _batches(task, cache, batch_size, lambda item: item.id in store.records, comm)
        for _, found in distribute(comm, batches, work):
            store.append(found.value)
            if on_progress:
                on_progress(task.name, len(store.records), len(task.items), "")
        return dict(store.records)


Skip = Callable[[Item], bool]


def _batches(
    task: Task, cache: FeatureCache, batch_size: int, done: Skip, comm: Communicator
) -> Iterator[list[Item]]:
    """Batches of what is not done; planned from the whole task, as answers are."""
    for window in plan_windows(task.items, batch_size):
        if all(done(item) for item in window):
            continue
        lengths = shared_lengths(
            comm, window, lambda items: [len(cache.prompts([item])[0][0]) for item in items]
        )
        for batch in plan_batches(window, lengths, batch_size):
            if pending := [item for item in batch if not done(item)]:
                yield pending


def compare_answer(base: Expected, candidate: ForcedAnswer) -> Record:
    """What is kept of one answer.

    Args:
        base: what the base expected.
        candidate: what the candidate gives for the same tokens.

    Returns:
        Per token of the answer, the end of turn apart: `kl` (nats, full or lumped as the base's
        store), `kl_lumped` where `kl` is full, `top1` (whether both find the same token likeliest)
        and `dp`, the candidate's probability of the token minus the base's. `end` has the same
        for the end of turn.

    Raises:
        ValueError: the models do not read the same tokens, or logits are not finite.
    """
    if not torch.equal(base.tokens, candidate.tokens):
        raise ValueError(
            "the candidate's tokenizer makes other tokens of the base's answers; their divergence "
            "cannot be measured"
        )
    kl, lumped = _divergences(base, candidate.logits)
    top1 = (base.top1 == candidate.logits.argmax(-1)).int().tolist()
    ours = candidate.logits.float().log_softmax(-1).gather(-1, base.tokens[:, None])[:, 0]
    dp = (ours.exp() - base.said.exp()).tolist()
    tokens: dict[str, list[Any]] = {"kl": kl, "top1": top1, "dp": dp}
    if lumped is not None:
        tokens["kl_lumped"] = lumped
    end = {name: values.pop() for name, values in tokens.items()} if base.ended else None
    return {**tokens, "end": end}


def _divergences(base: Expected, logits: Tensor) -> tuple[list[float], list[float] | None]:
    """By the kind of the store, and lumped as well where it is full."""
    if base.ids is not None and base.rest is not None:
        return lumped_divergence(base.logprobs, base.ids, base.rest, logits).tolist(), None
    full = divergence(base.logprobs, logits).tolist()
    return full, lumped_divergence(*lump(base.logprobs), logits).tolist()


def _gold(
    fields: Fields, base: Mapping[str, float], candidate: Mapping[str, float]
) -> dict[str, list[float]]:
    """The gold letter's log-probability in the first place, base and candidate.

    `gold` among all tokens, `choice` among the option letters; empty where there are none.
    """
    gold = _gold_letter(fields)
    if gold not in base or gold not in candidate:
        return {}
    pair = (base, candidate)
    among = [v[gold] - _log_sum_exp(v.values()) for v in pair]
    return {"gold": [v[gold] for v in pair], "choice": among}


def _log_sum_exp(values: Iterable[float]) -> float:
    """Of log-probabilities, however small."""
    found = list(values)
    largest = max(found)
    return largest + math.log(sum(math.exp(value - largest) for value in found))


class _Letters:
    """Option letters in the first place of an answer, where a tokenizer has a token for each."""

    def __init__(self, processor: Processor) -> None:
        self._tokenizer = processor.tokenizer
        self._known: dict[str, int | None] = {}

    def logprobs(self, fields: Fields, logits: Tensor) -> dict[str, float]:
        """Log-probability of each option letter; empty for questions without.

        Args:
            fields: of the item.
            logits: before the first token of the answer, `[vocab]`.
        """
        letters = list(fields.get("choices") or {})
        tokens = [self._token(letter) for letter in letters]
        if len(letters) < 2 or None in tokens:
            return {}
        found = logits.float().log_softmax(-1)[tokens].tolist()
        return dict(zip(letters, found, strict=True))

    def _token(self, letter: str) -> int | None:
        if letter not in self._known:
            ids = self._tokenizer.encode(letter, add_special_tokens=False)
            self._known[letter] = ids[0] if len(ids) == 1 else None
        return self._known[letter]


def _gold_letter(fields: Fields) -> str:
    answers: Sequence[Any] = fields.get("answers") or [fields.get("answer")]
    return str(answers[0]) if len(answers) == 1 else ""
