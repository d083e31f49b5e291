"""Recovery of a quantized model in memory, with its float original as the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vlpress.calib.activation_store import MemoryActivationStore
from vlpress.calib.samples.draw import load_samples
from vlpress.calib.samples.sample import content_digest
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import open_model, resolve_folder
from vlpress.quant.recipe.recover import Recover
from vlpress.quant.recover.answers import Answers
from vlpress.quant.recover.recovery import recover_
from vlpress.quant.recover.teachers import store_teacher
from vlpress.quant.resolve import encode_samples

BATCH = 32
"""Samples that the teacher reads at once."""


def recover_from_base(
    student: QwenVL, base: str, options: Recover, folder: Path
) -> Mapping[str, Any]:
    """Train a student towards its original on drawings, in place; returns the record.

    Args:
        student: in float32.
        base: name of the original.
        options: what is trained.
        folder: of the store of the teacher, which rows of the same samples share.
    """
    assert options.samples is not None and options.seed is not None
    samples = load_samples(None, n=options.samples, seed=options.seed)
    prompts = encode_samples(samples, Processor.from_folder(resolve_folder(base)))
    answers = Answers(
        open_model(base, device="cpu", dtype="fp32"), prompts, MemoryActivationStore()
    )
    digests = [content_digest(sample) for sample in samples]
    store_teacher(folder, answers, digests, {"model": base}, batch=BATCH, update=_quiet)
    teachers = [(folder, 1.0)]
    result = recover_(student, options, samples, prompts, teachers, stored=torch.bfloat16)
    return result.record


def _quiet(done: int, total: int, detail: str) -> None:
    """Show no progress."""
