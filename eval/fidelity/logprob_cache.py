"""What a base model expected, on disk: candidates are measured against it without the model.

Of each answer token either all log-probabilities are kept, as fp16 ("full"), or those of the 1024
likeliest tokens and one number for all others together ("lumped"). A task is of one kind as a
whole: full if that stays below `FULL_BYTES`. Divergences of the two kinds do not compare, the
lumped one is smaller; next to a full one the lumped one can be computed as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...common.atomic import atomic_path
from ...common.distributed import SINGLE_PROCESS, Communicator, Message
from ..answering.predictions import Record, open_shared, read_records
from .teacher_forcing import ForcedAnswer

FULL_BYTES = 2 << 30
LOWEST = torch.finfo(torch.float16).min
"""Log-probabilities are kept as fp16: smaller ones, of probability 0 by then, are kept as this."""
TOP = 1024
INDEX = "index.jsonl"
KIND = "log-probabilities"

Kind = Literal["full", "lumped"]


def choose_kind(tokens: int, vocabulary: int) -> Kind:
    """Full if all log-probabilities of so many tokens fit in `FULL_BYTES`."""
    return "full" if tokens * vocabulary * 2 <= FULL_BYTES else "lumped"


@dataclass(frozen=True)
class Expected:
    """What the base expected along one answer; `log_softmax` rows in float32."""

    logprobs: Tensor
    """``[tokens, vocab]`` if full, ``[tokens, TOP]`` of `ids` if lumped."""
    ids: Tensor | None
    """int64 ``[tokens, TOP]``; None if full."""
    rest: Tensor | None
    """Probability of all other tokens together, ``[tokens]``; None if full."""
    tokens: Tensor
    """The answer's tokens, int64 ``[tokens]``."""
    said: Tensor
    """Log-probability of each of them, not rounded, ``[tokens]``."""
    letters: Mapping[str, float]
    """Log-probability of each option letter in the first place, not rounded."""
    ended: bool

    @property
    def top1(self) -> Tensor:
        """The likeliest token of each row, ``[tokens]``."""
        best = self.logprobs.argmax(-1)
        return best if self.ids is None else self.ids.gather(-1, best[:, None])[:, 0]


class LogProbWriter:
    """Keeps what a base expected; a stopped run goes on where it was.

    Args:
        folder: made if absent; an index and one file per batch.
        kind: of the whole task.
        fingerprint: everything that the numbers depend on.
        comm: who shares the work: each process writes what it has read, the first one the index.

    Raises:
        ValueError: the folder was made with another fingerprint or kind.
    """

    def __init__(
        self,
        folder: Path,
        kind: Kind,
        fingerprint: Mapping[str, Any],
        comm: Communicator = SINGLE_PROCESS,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._kind = folder, kind
        made_from = {**fingerprint, "kl_kind": kind}
        self._store = open_shared(comm, folder / INDEX, KIND, made_from)

    def __contains__(self, key: str) -> bool:
        return key in self._store.records

    def __len__(self) -> int:
        return len(self._store.records)

    def write(
        self,
        keys: Sequence[str],
        answers: Sequence[ForcedAnswer],
        letters: Sequence[Mapping[str, float]],
    ) -> Message:
        """Put one batch into a file; `add` is to be given what this returns.

        Args:
            keys: ids of the items.
            answers: as the base read them.
            letters: log-probability of each item's option letters in the first place.
        """
        name = f"{hashlib.sha256(keys[0].encode()).hexdigest()[:16]}.safetensors"
        tensors: dict[str, Tensor] = {}
        for key, answer in zip(keys, answers, strict=True):
            for part, tensor in _packed(answer, self._kind).items():
                tensors[f"{key}/{part}"] = tensor.contiguous().cpu()
        # Flushed before the index refers to it.
        with atomic_path(self._folder / name, sync=True) as temporary:
            save_file(tensors, temporary)
        return Message(
            [
                {"id": key, "file": name, "letters": dict(of_item), "ended": answer.ended}
                for key, answer, of_item in zip(keys, answers, letters, strict=True)
            ]
        )

    def add(self, written: Message) -> None:
        """Take a batch that was written into the index and wait until that is on the disk."""
        self._store.append(written.value)

    def close(self) -> None:
        """Close the index."""
        self._store.close()


def _packed(answer: ForcedAnswer, kind: Kind) -> dict[str, Tensor]:
    rows = answer.logits.float().log_softmax(-1)
    said = rows.gather(-1, answer.tokens[:, None])[:, 0]
    parts = {"tokens": answer.tokens, "said": said}
    if kind == "full":
        return {"logprobs": rows.clamp_min(LOWEST).half(), **parts}
    values, ids, rest = lump(rows)
    return {
        "logprobs": values.clamp_min(LOWEST).half(),
        "ids": ids.to(torch.int32),
        "rest": rest,
        **parts,
    }


_PARTS: Mapping[Kind, tuple[str, ...]] = {
    "full": ("logprobs", "tokens", "said"),
    "lumped": ("logprobs", "tokens", "said", "ids", "rest"),
}


class LogProbReader:
    """Reads what `LogProbWriter` wrote.

    Raises:
        FileNotFoundError: nothing was written.
        ValueError: the index is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.fingerprint, self._records = read_records(folder / INDEX, KIND)
        self.kind: Kind = self.fingerprint["kl_kind"]
        self._folder = folder

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def read(self, key: str, device: torch.device) -> Expected:
        """What the base expected along one answer.

        Full rows are normalized again: rounding to fp16 moves their sum by some 1e-4.

        Raises:
            ValueError: it was not stored, its file is missing or damaged, or a value in it is not
                finite.
        """
        if key not in self._records:
            raise ValueError(f"{self._folder} holds nothing for {key}; measure the base again")
        record: Record = self._records[key]
        path = self._folder / Path(str(record["file"])).name
        try:
            with safe_open(path, framework="pt") as file:
                parts = {
                    part: file.get_tensor(f"{key}/{part}").to(device) for part in _PARTS[self.kind]
                }
        except Exception as error:  # safetensors raises its own type for damage
            raise ValueError(f"{path} is missing or damaged; measure the base again") from error
        floats = [part for part in parts.values() if part.is_floating_point()]
        if not all(bool(torch.isfinite(part).all()) for part in floats):
            raise ValueError(
                f"{path} holds log-probabilities of {key} that are not finite: delete "
                f"{self._folder} and measure the base again, in bf16 or fp32 if it overflows fp16"
            )
        rows = parts["logprobs"].float()
        full = self.kind == "full"
        return Expected(
            logprobs=rows.log_softmax(-1) if full else rows,
            ids=None if full else parts["ids"].long(),
            rest=None if full else parts["rest"],
            tokens=parts["tokens"],
            said=parts["said"],
            letters=record["letters"],
            ended=bool(record["ended"]),
        )


def lump(logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The top log-probabilities of full rows, their ids, and the rest's probability."""
    top = logprobs.topk(min(TOP, logprobs.shape[-1]), dim=-1)
    rest = (1 - top.values.double().exp().sum(-1)).clamp_min(0).float()
    return top.values, top.indices, rest
