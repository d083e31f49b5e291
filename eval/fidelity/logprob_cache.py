"""Cached baseline log-probabilities: candidates are compared without loading the baseline.

They are stored in full or lumped, see `calib.stored_logprobs`. All answers of a task have the same
kind: full if that takes at most `FULL_BYTES`. Divergences of the two kinds are not comparable,
because the lumped one is smaller; the lumped one can be computed from full rows too. If added
questions change the kind of a task, all its log-probabilities are computed again.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...calib.stored_logprobs import (
    PARTS,
    KLKind,
    LogProbs,
    pack_logprobs,
    unpack_logprobs,
)
from ...common.atomic import atomic_path
from ...common.distributed import SINGLE_PROCESS, Communicator, broadcast_result
from ..answering.predictions import Digests, Record, open_shared, read_records
from ..tasks.task import hash_values
from .teacher_forcing import ForcedAnswer

INDEX = "index.jsonl"
RECORD_KIND = "log-probabilities"
OWN_PARTS = ("tokens", "said")


@dataclass(frozen=True)
class BaseLogProbs(LogProbs):
    """Log-probabilities of the base along one answer."""

    tokens: Tensor
    """The answer's tokens, int64 `[tokens]`."""
    token_logprobs: Tensor
    """Log-probability of each of them, not rounded, `[tokens]`."""
    letters: Mapping[str, float]
    """Log-probability of each option letter as the first token, not rounded."""
    ended: bool
    """See `ForcedAnswer.ended`."""

    @property
    def top1(self) -> Tensor:
        """Likeliest token of each row, int64 `[tokens]`."""
        best = self.logprobs.argmax(-1)
        return best if self.ids is None else self.ids.gather(-1, best[:, None])[:, 0]


class LogProbWriter:
    """Writes a base's log-probabilities; resumes after an interruption.

    Args:
        folder: created if missing; an index and one safetensors file per batch.
        kind: kind of the task.
        fingerprint: JSON values that the numbers depend on.
        digests: of the items' prompts.
        comm: ranks that share the work: each writes the batches it has read, rank 0 the index.

    Raises:
        ValueError: the folder has another fingerprint.
    """

    def __init__(
        self,
        folder: Path,
        kind: KLKind,
        fingerprint: Mapping[str, Any],
        digests: Digests,
        comm: Communicator = SINGLE_PROCESS,
    ) -> None:
        self._folder, self._kind, self._digests = folder, kind, digests
        broadcast_result(comm, lambda: _prepare(folder, kind))
        self._store = open_shared(
            comm, folder / INDEX, RECORD_KIND, {**fingerprint, "kl_kind": kind}, digests
        )

    @property
    def records(self) -> Mapping[str, Record]:
        """Index records by item id."""
        return self._store.records

    def write(
        self,
        keys: Sequence[str],
        answers: Sequence[ForcedAnswer],
        letters: Sequence[Mapping[str, float]],
    ) -> list[Record]:
        """Write one batch to a file; return the index records for `append`.

        Args:
            keys: ids of the items.
            answers: logits of the base along its answers.
            letters: log-probability of each item's option letters as the first token.
        """
        # Of all contents, so that no other batch with the same items has the same file.
        name = f"{hash_values([[key, self._digests[key]] for key in keys])}.safetensors"
        tensors: dict[str, Tensor] = {}
        for key, answer in zip(keys, answers, strict=True):
            for part, tensor in _pack(answer, self._kind).items():
                tensors[f"{key}/{part}"] = tensor.contiguous().cpu()
        # Flushed before the index refers to it.
        with atomic_path(self._folder / name, sync=True) as temporary:
            save_file(tensors, temporary)
        return [
            {"id": key, "file": name, "letters": dict(of_item), "ended": answer.ended}
            for key, answer, of_item in zip(keys, answers, letters, strict=True)
        ]

    def append(self, records: Sequence[Record]) -> None:
        """Add the records of a written batch to the index and wait until they are on disk."""
        self._store.append(records)

    def close(self) -> None:
        """Close the index."""
        self._store.close()


def _prepare(folder: Path, kind: KLKind) -> None:
    """Create the folder; remove one with rows of the other kind."""
    if (folder / INDEX).is_file():
        fingerprint, _ = read_records(folder / INDEX, RECORD_KIND)
        if fingerprint["kl_kind"] != kind:
            shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _pack(answer: ForcedAnswer, kind: KLKind) -> dict[str, Tensor]:
    """Convert one answer to the stored tensors by their names in the file."""
    rows = answer.logits.float().log_softmax(-1)
    token_logprobs = rows.gather(-1, answer.tokens[:, None])[:, 0]
    return {**pack_logprobs(rows, kind), "tokens": answer.tokens, "said": token_logprobs}


class LogProbReader:
    """Reads the files of `LogProbWriter`.

    Args:
        folder: their folder.
        digests: of the items' prompts; None: take the last rows of each item.

    Raises:
        FileNotFoundError: the folder has no index.
        ValueError: the index is damaged.
    """

    def __init__(self, folder: Path, digests: Digests | None = None) -> None:
        self.fingerprint, self._records = read_records(folder / INDEX, RECORD_KIND, digests)
        self.kind: KLKind = self.fingerprint["kl_kind"]
        self._folder = folder

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def read(self, key: str, device: torch.device) -> BaseLogProbs:
        """Read the log-probabilities of one answer.

        Full rows are normalized again: rounding to fp16 changes their sum by about 1e-4.

        Args:
            key: id of the item.
            device: device of the returned tensors.

        Raises:
            ValueError: the answer is not stored, its file is missing or damaged, or a value is not
                finite.
        """
        if key not in self._records:
            raise ValueError(f"{self._folder} holds nothing for {key}; measure the base again")
        record: Record = self._records[key]
        path = self._folder / Path(str(record["file"])).name
        try:
            with safe_open(path, framework="pt") as file:
                parts = {
                    part: file.get_tensor(f"{key}/{part}").to(device)
                    for part in (*PARTS[self.kind], *OWN_PARTS)
                }
        except Exception as error:  # safetensors raises its own type for damage
            raise ValueError(f"{path} is missing or damaged; measure the base again") from error
        floats = [part for part in parts.values() if part.is_floating_point()]
        if not all(bool(torch.isfinite(part).all()) for part in floats):
            raise ValueError(
                f"{path} holds log-probabilities of {key} that are not finite: delete "
                f"{self._folder} and measure the base again, in bf16 or fp32 if it overflows fp16"
            )
        rows = unpack_logprobs(parts, self.kind)
        return BaseLogProbs(
            logprobs=rows.logprobs,
            ids=rows.ids,
            rest=rows.rest,
            tokens=parts["tokens"],
            token_logprobs=parts["said"],
            letters=record["letters"],
            ended=bool(record["ended"]),
        )
