"""Fingerprint of an evaluation: its setup and the identity of its model.

Two evaluations are comparable only if everything but the model is equal. The parts that describe
the model are listed in `MODEL_KEYS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common.checksum import hash_json
from ..common.differences import differences
from ..common.environment import device_name, versions
from ..model.byte_parts import bytes_by_part, checkpoint_bytes
from ..model.checkpoint import CheckpointReader
from ..model.processing.processor import Processor
from ..model.processing.tokenizer_identity import identify_tokenizer
from ..model.qwen_vl import QwenVL
from ..model.stored_files import file_digest
from ..model.weight_files import find_weights
from ..quant.checkpoint.adapter import has_adapter
from ..quant.recipe.adapter import ADAPTER
from ..quant.runtime.description import (
    adapter_bytes,
    count_kernels,
    describe_activations,
    describe_adapter,
    describe_cache,
    describe_head,
    describe_reduction,
)
from ..quant.vocabulary.record import PrunedVocabulary
from .answering.sampling import GREEDY, Decoding
from .tasks.task import Task

NO_ADAPTER = "not used"
"""Entry of a model without the adapter that its checkpoint has; absent if it has none."""
VISUAL_TOKENS = "visual_tokens"
"""Key of the rule that drops visual tokens; absent if all are kept."""
VOCABULARY, TEXT = "vocabulary", "text"
"""Keys of a pruned vocabulary, absent with any other, and of the tokenizer."""
MODEL_KEYS = (
    *("model", "quantization", "kernels", "activations", "head", "kv_cache"),
    *(VISUAL_TOKENS, VOCABULARY, ADAPTER),
)
PIXELS, MAX_PIXELS = "pixels", "max"
"""Keys of the largest area of an image, which comparisons of visual-token budgets vary."""
THREADS = "threads"
"""Number of CPU threads. Not compared: it is stored with each answer, and reports tell where it
differs. It may change a result in its last digits, as the order of a sum does."""
QUESTION_KEYS = ("md5", "rows", "limit", "limit_seed", "broken", "items")
"""Parts of a task's fingerprint that say which questions it has, not how they are asked. Each
stored answer has a digest of its own question, so that a run with other questions keeps the others.
"""
SCORING_KEYS = ("profile",)
"""Parts of a task's fingerprint that say how answers are scored. Scores are computed from stored
answers whenever those are read, so that a run with other rules keeps all of them.
"""


def run_fingerprint(
    model: QwenVL,
    processor: Processor,
    *,
    batch_size: int,
    seed: int,
    source: Path | None,
    decoding: Decoding = GREEDY,
) -> dict[str, Any]:
    """Return the fingerprint of a run, without its tasks.

    Args:
        model: the evaluated model.
        processor: processor of the model.
        batch_size: prompts per batch; even exact batching changes logits in their last digits.
        seed: seed of the sample that a limit draws, and base seed of sampled answers.
        source: checkpoint folder, hashed for the model's identity; None: hash the weights in
            memory.
        decoding: of the answers.
    """
    quantization = model.config.raw.get("quantization_config")
    reduction, fixed = describe_reduction(model), processor.settings.fixed
    vocabulary = None if source is None else PrunedVocabulary.of(source)
    adapter: dict[str, Any] | str | None = describe_adapter(model)
    if adapter is None and source is not None and has_adapter(source):
        adapter = NO_ADAPTER
    return {
        PIXELS: {
            "min": processor.min_pixels,
            MAX_PIXELS: processor.max_pixels,
            "mean": list(processor.settings.mean),
            "std": list(processor.settings.std),
            "rescale": processor.settings.rescale_factor,
            **({} if fixed is None else {"fixed": list(fixed.fields)}),
        },
        TEXT: identify_tokenizer(processor.tokenizer, processor.stop_ids),
        "generation": decoding.describe(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "seed": seed,
        "device": device_name(model.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "model": identify_checkpoint(source) if source else identify_model(model),
        "quantization": quantization and hash_json(quantization),
        "kernels": count_kernels(model),
        "activations": describe_activations(model),
        "head": describe_head(model),
        "kv_cache": describe_cache(model),
        **({} if reduction is None else {VISUAL_TOKENS: reduction}),
        **({} if vocabulary is None else {VOCABULARY: vocabulary.describe()}),
        **({} if adapter is None else {ADAPTER: adapter}),
    }


def setup_differences(
    base: Mapping[str, Any], candidate: Mapping[str, Any], *, across_pixels: bool = False
) -> list[str]:
    """Describe the differences between two fingerprints, without `MODEL_KEYS` and `THREADS`.

    A pruned vocabulary is a property of the model: its tokenizer counts as the original's.

    Args:
        base: fingerprint of a run.
        candidate: fingerprint of another run.
        across_pixels: also leave out the largest area of an image.
    """

    def setup(values: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in values.items() if key not in (*MODEL_KEYS, THREADS)}
        if VOCABULARY in values:
            kept[TEXT] = values[VOCABULARY]["original"]
        if across_pixels and PIXELS in kept:
            kept[PIXELS] = {k: v for k, v in kept[PIXELS].items() if k != MAX_PIXELS}
        return kept

    return differences(setup(base), setup(candidate))


def uses_adapter(setup: Mapping[str, Any]) -> bool:
    """Whether a run computes with the adapter of its checkpoint, if that has one."""
    return setup.get(ADAPTER) != NO_ADAPTER


def largest_area(setup: Mapping[str, Any]) -> int | None:
    """Return the largest area of an image in pixels of a run's fingerprint; None: unknown."""
    area: int | None = setup.get(PIXELS, {}).get(MAX_PIXELS)
    return area


def without_threads(setup: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a run's fingerprint that all its answers must share."""
    return {key: value for key, value in setup.items() if key != THREADS}


def task_settings(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a task's fingerprint that says how its questions are asked."""
    others = (*QUESTION_KEYS, *SCORING_KEYS)
    return {key: value for key, value in fingerprint.items() if key not in others}


def answer_setup(setup: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Return the fingerprint of a file with a record per question of a task.

    Args:
        setup: fingerprint of the run.
        task: the questions.
    """
    return {**without_threads(setup), "task": task_settings(task.fingerprint)}


def identify_checkpoint(folder: Path) -> dict[str, Any]:
    """Hash the config and the loaded weight files of a checkpoint folder."""
    return {
        "config": file_digest(folder / "config.json"),
        "files": {name: file_digest(folder / name) for name in sorted(find_weights(folder).files)},
    }


def identify_model(model: QwenVL) -> dict[str, Any]:
    """Hash the config and all tensors of a model in memory."""
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().contiguous().to("cpu").view(-1)
        weights.update(flat.view(torch.uint8).numpy().tobytes())
    return {"config": hash_json(model.config.raw), "files": {"memory": weights.hexdigest()}}


def count_weight_bytes(model: QwenVL, source: Path | None) -> int:
    """Return the bytes of the weights: of the checkpoint's files, or of the tensors in memory.

    An adapter is included if the model computes with it.
    """
    if source:
        adapters = adapter_bytes(model).values()
        return find_weights(source).bytes + sum(adapters)
    tensors = {t.data_ptr(): t for t in model.state_dict().values()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def count_part_bytes(model: QwenVL, source: Path | None) -> dict[str, int]:
    """Return the tensor bytes by part (`BYTE_PARTS`), of the checkpoint or of those in memory."""
    if source:
        return checkpoint_bytes(model.config, CheckpointReader(source), adapter_bytes(model))
    tensors = model.state_dict().items()
    return bytes_by_part(model.config, ((name, tensor.nbytes) for name, tensor in tensors))


def count_weights(model: QwenVL) -> int:
    """Count the logical weights of a model; shared ones count once.

    Modules with `in_features` and `out_features` count by these, because a quantized linear layer
    stores packed words.
    """
    total = 0
    seen: set[int] = set()
    for module in model.modules():
        if hasattr(module, "out_features") and not isinstance(module, nn.Linear):
            packed: Any = module
            bias = getattr(packed, "bias", None)
            total += packed.in_features * packed.out_features
            total += 0 if bias is None else bias.numel()
            continue
        for parameter in module.parameters(recurse=False):
            total += 0 if parameter.data_ptr() in seen else parameter.numel()
            seen.add(parameter.data_ptr())
    return total
