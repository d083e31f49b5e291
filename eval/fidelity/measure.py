"""Fidelity: divergence of a candidate's token distributions from the base's.

Both models read the base's stored answers (teacher forcing), and at each answer token the
divergence KL(base || candidate) is computed in nats over raw logits. It detects damage long before
argmax answers change (Dutta et al., "Accuracy is Not All You Need", arXiv 2407.09141). The base's
log-probabilities are stored on disk (`logprob_cache`), so that the two models need not be in memory
together and several candidates share one pass of the base.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...calib.stored_logprobs import choose_kind, lump
from ...common.distributed import SINGLE_PROCESS, Communicator, broadcast_result
from ...model.processing.processor import Processor
from ...quant.vocabulary.kept_tokens import REMOVED, KeptTokens
from ..answering.batches import Batch, OnProgress, process_items
from ..answering.predictions import Prediction, Record, open_shared, read_records
from ..answering.vision_features import FeatureCache
from ..tasks.task import Fields, Task, gold_letter
from .acceptance import OVERLAP, compute_overlap
from .divergences import FULL, LUMPED
from .logprob_cache import BaseLogProbs, LogProbReader, LogProbWriter
from .teacher_forcing import ANSWER_TOKENS, ForcedAnswer, read_answers
from .vocabulary import common_divergence, common_rows

FOLDER = "logprobs"
_ROWS = 256  # positions per softmax; bounds temporary memory


def compute_divergence(base: Tensor, candidate: Tensor) -> Tensor:
    """Compute KL(base || candidate) of each position in nats, over the full vocabulary.

    Args:
        base: logits or log-probabilities `[positions, vocab]`.
        candidate: those of the other model, `[positions, vocab]`.

    Returns:
        float32 `[positions]`, not negative.

    Raises:
        ValueError: a logit is not finite.
    """
    parts = []
    for start in range(0, base.shape[0], _ROWS):
        p = F.log_softmax(base[start : start + _ROWS].float(), dim=-1)
        q = F.log_softmax(candidate[start : start + _ROWS].float(), dim=-1)
        # Rounding can give about -1e-8 where both agree.
        parts.append((p.exp() * (p - q)).sum(-1).clamp_min(0.0))
    result = torch.cat(parts) if parts else base.new_zeros(0)
    _check_finite(result)
    return result


def _check_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            "a model gives logits that are not finite, so the divergence is not either; evaluate "
            "both models in bf16 or fp32, or fetch the checkpoint again"
        )


def compute_lumped_divergence(
    logprobs: Tensor, ids: Tensor, rest: Tensor, candidate: Tensor
) -> Tensor:
    """Compute the KL of each position with all but the base's top tokens merged into one.

    Args:
        logprobs: log-probabilities of the base's top tokens, `[positions, top]`.
        ids: ids of these tokens, int64 `[positions, top]`.
        rest: probability of all other tokens under the base, `[positions]`.
        candidate: logits of the other model, `[positions, vocab]`.

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
    _check_finite(kl)
    return kl.clamp_min(0.0).float()


def store_logprobs(
    task: Task,
    features: FeatureCache,
    answers: Mapping[str, Prediction],
    folder: Path,
    fingerprint: Mapping[str, Any],
    *,
    batch_size: int,
    on_progress: OnProgress | None = None,
    comm: Communicator = SINGLE_PROCESS,
) -> None:
    """Store the base's log-probabilities along its answers; resumes.

    Args:
        task: the items.
        features: the base with its processor and image features.
        answers: the base's stored answers by item id.
        folder: destination.
        fingerprint: JSON values that the numbers depend on.
        batch_size: prompts per batch.
        on_progress: called after every batch.
        comm: ranks that share the batches.

    Raises:
        ValueError: the folder has another fingerprint.
        NotFiniteError: a logit is NaN or infinite; the message names benchmark and item.
    """
    tokens = sum(_count_tokens(answers[item.id]) for item in task.items) + 2 * len(task.items)
    kind = choose_kind(tokens, features.model.config.text.vocab_size)
    letters = _OptionLetters(features.processor)

    def work(batch: Batch) -> list[Record]:
        items = batch.items
        forced = read_answers(features, items, [answers[item.id] for item in items])
        letter_logprobs = [
            letters.logprobs(item.fields, answer.first)
            for item, answer in zip(items, forced, strict=True)
        ]
        return writer.write([item.id for item in items], forced, letter_logprobs)

    def report() -> None:
        if on_progress is not None:
            on_progress(task.name, len(writer.records), len(task.items), "")

    with closing(LogProbWriter(folder, kind, fingerprint, task.digests, comm)) as writer:
        process_items(
            task, writer, features.lengths, work, report, batch_size=batch_size, comm=comm
        )


def _count_tokens(answer: Prediction) -> int:
    return ANSWER_TOKENS if answer.n_tokens is None else min(answer.n_tokens, ANSWER_TOKENS)


def measure_task(
    task: Task,
    features: FeatureCache,
    answers: Mapping[str, Prediction],
    reference: LogProbReader,
    path: Path,
    fingerprint: Mapping[str, Any],
    *,
    batch_size: int,
    common: KeptTokens | None = None,
    on_progress: OnProgress | None = None,
    comm: Communicator = SINGLE_PROCESS,
) -> dict[str, Record]:
    """Measure the divergence of every item of a task without a stored record.

    Args:
        task: the items.
        features: the candidate with its processor and image features; may be the base itself.
        answers: the base's stored answers by item id.
        reference: the base's log-probabilities.
        path: records file, resumed if present.
        fingerprint: JSON values that the measurement depends on.
        batch_size: prompts per batch.
        common: the candidate's tokens among the base's; None: both have the same ids.
        on_progress: called after every batch.
        comm: ranks that share the batches.

    Returns:
        All records by item id, see `compare_answer`.

    Raises:
        ValueError: the file has another fingerprint, or logits are not finite (then
            `NotFiniteError`, which names benchmark and item).
    """
    letters = _OptionLetters(features.processor)

    def work(batch: Batch) -> list[Record]:
        forced = read_answers(features, batch.items, [answers[item.id] for item in batch.items])
        records = []
        for item, answer in zip(batch.items, forced, strict=True):
            base = reference.read(item.id, answer.logits.device)
            letter_logprobs = letters.logprobs(item.fields, answer.first)
            compared = (
                compare_answer(base, answer)
                if common is None
                else compare_across(base, answer, common)
            )
            record = {"id": item.id, **compared}
            records.append(record | _compare_gold(item.fields, base.letters, letter_logprobs))
        return records

    def report() -> None:
        if on_progress is not None:
            on_progress(task.name, len(store.records), len(task.items), "")

    broadcast_result(comm, lambda: _remove_other_kind(path, reference.kind))
    shared = open_shared(comm, path, "fidelity", fingerprint, task.forced_digests)
    with closing(shared) as store:
        process_items(task, store, features.lengths, work, report, batch_size=batch_size, comm=comm)
        return dict(store.records)


def _remove_other_kind(path: Path, kind: str) -> None:
    """Remove divergences of another kind: the base's log-probabilities were computed again."""
    if path.is_file() and read_records(path, "fidelity")[0].get("kl_kind", kind) != kind:
        path.unlink()


def compare_answer(base: BaseLogProbs, candidate: ForcedAnswer) -> Record:
    """Compare the distributions of two models along one answer.

    Args:
        base: log-probabilities of the base.
        candidate: logits of the candidate for the same tokens.

    Returns:
        Per token of the answer without the end-of-turn token: `kl` (nats, full or lumped as the
        base's store), `kl_lumped` where `kl` is full, `top1` (1 if the likeliest token is the
        same), `dp`, the candidate's probability of the token minus the base's, and `overlap` of
        the two distributions, a lower bound where `kl` is lumped. `end` has the same values for
        the end-of-turn token, or None. `reasoning`, if there is one: how many of the first tokens
        belong to it.

    Raises:
        ValueError: the models read different tokens, or logits are not finite.
    """
    _check_tokens(base.tokens, candidate.tokens)
    if base.ids is None and base.logprobs.shape[-1] != candidate.logits.shape[-1]:
        raise ValueError(
            f"the base has {base.logprobs.shape[-1]} logits per token and the candidate "
            f"{candidate.logits.shape[-1]}; their divergence cannot be measured"
        )
    kl, lumped = _compute_divergences(base, candidate.logits)
    tokens: dict[str, list[Any]] = {
        "kl": kl,
        **_compare_tokens(base.top1, base, candidate),
        OVERLAP: compute_overlap(base, candidate.logits).tolist(),
    }
    if lumped is not None:
        tokens["kl_lumped"] = lumped
    return _record(tokens, base, candidate)


def compare_across(base: BaseLogProbs, candidate: ForcedAnswer, common: KeptTokens) -> Record:
    """Compare a base with a candidate whose vocabulary was pruned, see `vocabulary`.

    Args:
        base: log-probabilities of the base, with its own ids.
        candidate: logits of the candidate for the same answer.
        common: the candidate's tokens among the base's.

    Returns:
        As `compare_answer`, with `kl` over the common tokens and `removed_mass`, the base's
        probability of others, per token; `common` is the kind of the base's store. An answer with
        removed tokens has no values, and their number as `left_out`.

    Raises:
        ValueError: the models read different tokens, or logits are not finite.
    """
    kind: Record = {"common": FULL if base.ids is None else LUMPED}
    names = ("kl", "top1", "dp", "removed_mass")
    if removed := int((common.to_new(base.tokens) == REMOVED).sum()):
        return {**{name: [] for name in names}, **kind, "left_out": removed, "end": None}
    restricted, mass = common_rows(base, common)
    _check_tokens(restricted.tokens, candidate.tokens)
    kl = common_divergence(restricted, candidate.logits)
    _check_finite(kl)
    top1 = common.to_new(base.top1)
    tokens = {
        "kl": kl.tolist(),
        **_compare_tokens(top1, restricted, candidate),
        "removed_mass": mass.tolist(),
    }
    return {**_record(tokens, base, candidate), **kind}


def _check_tokens(base: Tensor, candidate: Tensor) -> None:
    if not torch.equal(base, candidate):
        raise ValueError(
            "the candidate's tokenizer makes other tokens of the base's answers; their divergence "
            "cannot be measured"
        )


def _compare_tokens(
    top1: Tensor, base: BaseLogProbs, candidate: ForcedAnswer
) -> dict[str, list[Any]]:
    """Compare the likeliest tokens, and the probabilities of the answer's tokens."""
    rows = candidate.logits.float().log_softmax(-1)
    token_logprobs = rows.gather(-1, base.tokens[:, None])[:, 0]
    return {
        "top1": (top1 == candidate.logits.argmax(-1)).int().tolist(),
        "dp": (token_logprobs.exp() - base.token_logprobs.exp()).tolist(),
    }


def _record(
    tokens: dict[str, list[Any]], base: BaseLogProbs, candidate: ForcedAnswer
) -> dict[str, Any]:
    """Return the record of an answer, with the values of the end-of-turn token apart."""
    end = {name: values.pop() for name, values in tokens.items()} if base.ended else None
    part = {"reasoning": candidate.reasoning} if candidate.reasoning else {}
    return {**tokens, **part, "end": end}


def _compute_divergences(
    base: BaseLogProbs, logits: Tensor
) -> tuple[list[float], list[float] | None]:
    """Return divergences of the stored kind, and lumped ones as well if that is full."""
    if base.ids is not None and base.rest is not None:
        lumped = compute_lumped_divergence(base.logprobs, base.ids, base.rest, logits)
        return lumped.tolist(), None
    full = compute_divergence(base.logprobs, logits).tolist()
    return full, compute_lumped_divergence(*lump(base.logprobs), logits).tolist()


def _compare_gold(
    fields: Fields, base: Mapping[str, float], candidate: Mapping[str, float]
) -> dict[str, list[float]]:
    """Return the gold letter's log-probability as the first token, of base and candidate.

    `gold` is among all tokens, `choice` among the option letters; empty without option letters.
    """
    gold = gold_letter(fields)
    if gold not in base or gold not in candidate:
        return {}
    pair = (base, candidate)
    choice = [letters[gold] - _log_sum_exp(letters.values()) for letters in pair]
    return {"gold": [letters[gold] for letters in pair], "choice": choice}


def _log_sum_exp(logprobs: Iterable[float]) -> float:
    """Return the log of a sum of probabilities, without underflow."""
    values = list(logprobs)
    largest = max(values)
    return largest + math.log(sum(math.exp(value - largest) for value in values))


class _OptionLetters:
    """Log-probabilities of option letters as the first token of an answer.

    Args:
        processor: processor of the model; only letters that are single tokens are supported.
    """

    def __init__(self, processor: Processor) -> None:
        self._tokenizer = processor.tokenizer
        self._tokens: dict[str, int | None] = {}

    def logprobs(self, fields: Fields, logits: Tensor | None) -> dict[str, float]:
        """Return the log-probability of each option letter; empty for questions without options.

        Args:
            fields: fields of the item.
            logits: logits that predict the first token of the answer, `[vocab]`; None: not known,
                and the result is empty.
        """
        letters = list(fields.get("choices") or {})
        tokens = [self._find_token(letter) for letter in letters]
        if len(letters) < 2 or None in tokens or logits is None:
            return {}
        logprobs = logits.float().log_softmax(-1)[tokens].tolist()
        return dict(zip(letters, logprobs, strict=True))

    def _find_token(self, letter: str) -> int | None:
        if letter not in self._tokens:
            ids = self._tokenizer.encode(letter, add_special_tokens=False)
            self._tokens[letter] = ids[0] if len(ids) == 1 else None
        return self._tokens[letter]
