"""Drafters by name, for the verb `generate`: a checkpoint, n-grams, or multi-token prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..model.mtp import PREFIX
from ..model.processing.inputs import Prompt
from ..model.processing.processor import Processor
from ..model.qwen_vl import QwenVL
from ..model.speculation.drafts import Drafter
from ..model.speculation.model_drafter import ModelDrafter
from ..model.speculation.mtp_drafter import MtpDrafter
from ..model.speculation.ngram_drafter import NgramDrafter
from .checkpoint.draft_module import open_predictor
from .config import MTP, NGRAM, ModelSettings
from .resolve import Source


def check_draft(name: str, source: Source, processor: Processor) -> Source | None:
    """Check that a draft suits a model, before weights are loaded.

    Args:
        name: `ngram`, `mtp`, or a model.
        source: the model that checks the drafts.
        processor: its processor.

    Returns:
        The source of a draft model; None for the others.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the model has no module for multi-token prediction, or the draft model has
            another tokenizer.
    """
    if name == NGRAM:
        return None
    if name == MTP:
        has_tensors = any(tensor.startswith(PREFIX) for tensor in source.carried.bytes)
        if not source.config.text.mtp_layers or not has_tensors:
            raise ValueError(
                f"--draft mtp: {source.name} ({source.config.family}) has no module for "
                "multi-token prediction; give a Qwen3.5 checkpoint that has one, or another draft"
            )
        return None
    settings = ModelSettings(
        device=source.settings.device,
        dtype=source.settings.dtype,
        min_pixels=source.settings.min_pixels,
        max_pixels=source.settings.max_pixels,
    )
    draft = Source.find(name, settings)
    own, other = (each.tokenizer.get_vocab() for each in (processor, draft.processor()))
    if own != other:
        different = len(set(own.items()) ^ set(other.items()))
        raise ValueError(
            f"--draft {name}: its tokenizer differs from that of {source.name} in {different} "
            "entries; give a model with the same tokenizer, such as a quantized form of it"
        )
    return draft


def open_drafter(
    name: str,
    draft: Source | None,
    source: Source,
    model: QwenVL,
    prompt: Prompt,
    messages: Sequence[Any],
) -> Drafter:
    """Open a drafter for one prompt.

    Args:
        name: as for `check_draft`.
        draft: its result.
        source: the model that checks the drafts.
        model: the same, loaded.
        prompt: the prompt.
        messages: the same, to be encoded for a draft model.

    Raises:
        ValueError: a checkpoint is damaged.
    """
    if draft is not None:
        own = draft.processor().encode(messages)
        return ModelDrafter(draft.load(), own, model.config.text.vocab_size)
    if name == MTP:
        return MtpDrafter(model, open_predictor(source.folder, model))
    return NgramDrafter(prompt.input_ids.tolist(), model.config.placeholder_ids)
