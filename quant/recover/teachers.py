"""Stored log-probabilities of teachers along the answers of samples.

A store is a folder with `teacher.json`, a journal with a line per sample, and a safetensors file
per batch. Its samples are found by content, so that a store serves every set of samples that it
covers; teachers need not be in memory together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ...calib.stored_logprobs import (
    PARTS,
    KLKind,
    LogProbs,
    choose_kind,
    pack_logprobs,
    unpack_logprobs,
)
from ...common.atomic import atomic_path, write_json
from ...common.differences import plain, refuse_difference
from ...common.journal import JournalFile, read_journal
from ...common.json_files import read_json
from ...common.progress import Update
from ...common.safetensors_writer import write_tensors
from .answers import Answers

HEADER, INDEX = "teacher.json", "index.jsonl"
REMEDY = "delete the folder and store the teacher again"
TOKENS = "tokens"
SCHEMA = 1


def is_store(folder: Path) -> bool:
    """Whether a folder is a store of a teacher."""
    return (folder / HEADER).is_file()


@torch.no_grad()
def store_teacher(
    folder: Path,
    answers: Answers,
    digests: Sequence[str],
    fingerprint: dict[str, Any],
    *,
    batch: int,
    update: Update,
) -> None:
    """Write the log-probabilities of a teacher; continues an interrupted store.

    Args:
        folder: created if missing.
        answers: of the teacher; only images of samples that are not stored yet are encoded.
        digests: content of each sample, see `content_digest`.
        fingerprint: JSON values that identify the teacher.
        batch: samples at once.
        update: called with finished samples.

    Raises:
        ValueError: the folder holds another teacher.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = answers.model.config.text.vocab_size
    kind = choose_kind(sum(answers.counts), vocabulary)
    header = {"schema": SCHEMA, "kind": kind, "vocabulary": vocabulary, "teacher": fingerprint}
    if is_store(folder):
        refuse_difference(folder, read_json(folder / HEADER, REMEDY), plain(header))
    write_json(folder / HEADER, header, sync=True)
    known = read_journal(folder / INDEX, REMEDY, ignore_damaged_end=True)
    done = {record["of"] for record in known.records}
    left = [number for number, digest in enumerate(digests) if digest not in done]
    answers.encode_images(left)
    with JournalFile(folder / INDEX, known.size) as journal:
        for start in range(0, len(left), batch):
            numbers = left[start : start + batch]
            update(len(digests) - len(left) + start, len(digests), "")
            tensors: dict[str, Tensor] = {}
            for number, logits in zip(numbers, answers.logits(numbers), strict=True):
                if not bool(torch.isfinite(logits).all()):
                    raise ValueError(
                        f"the teacher's scores of sample {number + 1} are not finite; use --dtype "
                        "bf16 or fp32, or fetch the teacher again"
                    )
                parts = pack_logprobs(logits.float().log_softmax(-1), kind)
                parts[TOKENS] = answers.tokens(number)
                for part, tensor in parts.items():
                    tensors[f"{digests[number]}/{part}"] = tensor.contiguous().cpu()
            joined = "".join(digests[number] for number in numbers)
            name = f"{hashlib.sha256(joined.encode()).hexdigest()[:32]}.safetensors"
            with atomic_path(folder / name, sync=True) as temporary:
                write_tensors(tensors, temporary)
            journal.append({"of": digests[number], "file": name} for number in numbers)


class Teacher:
    """A store that is read.

    Args:
        folder: the store.

    Raises:
        FileNotFoundError: it is none.
        ValueError: it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        if not is_store(folder):
            raise FileNotFoundError(
                f"{folder} is no store of a teacher (it has no {HEADER}); allowed: a folder that "
                "vlpress teach wrote"
            )
        self.folder = folder
        self.header = read_json(folder / HEADER, REMEDY)
        self.kind: KLKind = self.header["kind"]
        journal = read_journal(folder / INDEX, REMEDY, ignore_damaged_end=True)
        self._files = {str(record["of"]): str(record["file"]) for record in journal.records}

    def check(self, answers: Answers, digests: Sequence[str]) -> None:
        """Compare the stored answers with those of the student.

        Raises:
            ValueError: a sample is missing, or its answer has other tokens.
        """
        if missing := [number for number, key in enumerate(digests) if key not in self._files]:
            raise ValueError(
                f"{self.folder} holds nothing for {len(missing)} of {len(digests)} samples; store "
                "the teacher with the same samples: vlpress teach with the same --calib, "
                "--samples and --seed"
            )
        for number, key in enumerate(digests):
            stored = self._read(key, (TOKENS,))[TOKENS]
            if not torch.equal(stored, answers.tokens(number).cpu()):
                raise ValueError(
                    f"{self.folder} has other tokens for the answer of sample {number + 1}; "
                    "allowed: teachers with the tokenizer of the student"
                )

    def read(self, key: str, device: torch.device) -> LogProbs:
        """Read the log-probabilities of one answer.

        Raises:
            ValueError: the file is missing or damaged.
        """
        parts = self._read(key, PARTS[self.kind])
        rows = {name: tensor.to(device) for name, tensor in parts.items()}
        return unpack_logprobs(rows, self.kind)

    def _read(self, key: str, names: Sequence[str]) -> dict[str, Tensor]:
        path = self.folder / Path(self._files[key]).name
        try:
            with safe_open(str(path), framework="pt") as file:
                return {name: file.get_tensor(f"{key}/{name}").clone() for name in names}
        except Exception as error:  # safetensors raises its own type for damage
            raise ValueError(f"{path} is missing or damaged; {REMEDY}") from error
