"""transformers with compressed-tensors loads checkpoints of vlpress, and writes them for vlpress.

Weights are the same numbers on both sides. int8 activations are rounded differently: the library
maps a token's largest value to 127.5 levels, kernels and vlpress to 127. Hence logits are compared
by the norm of their difference, in addition to the answers, and an answer may differ where vlpress
prefers its own token by no more than rounding changes (a tie, `answering_engines/comparison.py`).
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import checks
import torch
from answering_engines.comparison import (
    FLOAT_BOUND,
    SPREADS,
    Difference,
    first_logprobs,
    noise_spread,
    token_margin,
)
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationConfig,
    apply_quantization_config,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.utils import calculate_qparams, is_module_quantized
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, CompressedTensorsConfig

from vlpress import load_quantized
from vlpress.model import mtp
from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.generation import generate
from vlpress.model.loading import resolve_model
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.targets import compressed_linears, replace_module

QUESTIONS = 50
LONGEST_ANSWER = 16
LOGITS_TOLERANCE = 2e-2
ANSWERS_WANTED = 0.98
KEPT = ["lm_head", "re:.*visual.*"]
WRITTEN = ("W4A16", "W4A16_ASYM", "W8A16", "W4A8", "W8A8")


def main() -> None:
    """Compare, then write the rows."""
    options = checks.parse(__doc__)
    library = f"{version('transformers')} (compressed-tensors {version('compressed-tensors')})"
    table = checks.Table("transformers", library)
    if options.model:
        compare_model(table, options.made / options.model, options.model)
        name, made = f"{options.model} in every format", options.made / options.model
        table.check(name, lambda: compare_carried(options.model, made))
    else:
        compare_others(table, options.made, options.work)
    table.write(options.out)


def compare_others(table: checks.Table, made: Path, work: Path) -> None:
    """Add the rows of the other models, and of checkpoints written by the library."""
    for folder in checks.made(made, "compressed-tensors"):
        name = f"compressed-tensors {folder.name} by vlpress"
        table.check(name, lambda folder=folder: compare(folder))
    compare_model(table, made / "tiny3", "tiny3")
    for preset in WRITTEN:
        name, out = f"compressed-tensors {preset} by the library", work / preset
        table.check(name, lambda out=out, preset=preset: write_and_compare(out, preset))


def compare_model(table: checks.Table, made: Path, model: str) -> None:
    """Add the rows of one model's checkpoints."""
    for folder in checks.made(made, "compressed-tensors"):
        name = f"compressed-tensors {folder.name} of {model} by vlpress"
        table.check(name, lambda folder=folder: compare(folder))


def compare_carried(model: str, made: Path) -> checks.Compared:
    """Compare the tensors that transformers ignores, those of the draft module, byte for byte."""
    source = CheckpointReader(resolve_model(model))
    expected = {n: source.tensor(n) for n in source.names() if n.startswith(mtp.PREFIX)}
    folders = sorted(made.glob("*/*/config.json"))
    for config in folders:
        reader = CheckpointReader(config.parent)
        same = {n for n in expected if n in reader and is_equal(reader.tensor(n), expected[n])}
        name = " ".join(config.parent.relative_to(made).parts)
        yield (
            f"tensors of the draft module in {name}",
            f"{len(same)} of {len(expected)} equal byte for byte",
            same == expected.keys() != set(),
        )


def is_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same dtype and the same bytes."""
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def write_and_compare(out: Path, preset: str) -> checks.Compared:
    """Write a checkpoint with the library, then compare both readers."""
    quantize(out, preset)
    yield from compare(out)


def quantize(out: Path, preset: str) -> None:
    """Quantize the built-in model's decoder with one of the library's presets, by rounding."""
    shutil.rmtree(out, ignore_errors=True)
    source = resolve_model("tiny")
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.bfloat16)
    groups = {"group_0": preset_name_to_scheme(preset, ["Linear"])}
    apply_quantization_config(model, QuantizationConfig(config_groups=groups, ignore=KEPT))
    for module in model.modules():
        if is_module_quantized(module):
            choose_scales(module)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)
    # Its own list has classic names, which do not match the modules of its model.
    compressor.quantization_config.ignore = KEPT
    compressor.update_config(str(out))
    checks.add_side_files(out)


def choose_scales(module: Any) -> None:
    """Set a layer's scales and zero points from the range of its weight."""
    scheme = module.quantization_scheme.weights
    width = scheme.group_size or module.in_features
    grouped = module.weight.detach().unflatten(1, (-1, width))
    scales, zero_points = calculate_qparams(grouped.amin(-1), grouped.amax(-1), scheme)
    module.weight_scale.data.copy_(scales)
    if hasattr(module, "weight_zero_point"):
        module.weight_zero_point.data.copy_(zero_points)


def compare(folder: Path) -> checks.Compared:
    """Compare logits and greedy answers to questions about images, in float32."""
    model = load_quantized(folder, device="cpu", dtype="fp32")
    options: dict[str, Any] = {}
    if needs_dequantization(folder):
        options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
        if any(group.get("input_activations") for group in groups_of(folder)):
            dequantize_(model)
    library_model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, **options
    ).eval()
    separate_tokens(library_model)
    prompts = checks.prompts(folder, seed=checks.COMPARISON_SEED, number=QUESTIONS)
    with torch.inference_mode():
        yield compare_logits(model, library_model, prompts[: checks.PROMPTS])
        yield compare_answers(model, library_model, prompts, Processor.from_folder(folder).stop_ids)


def needs_dequantization(folder: Path) -> bool:
    """Whether the library reads a checkpoint only if it dequantizes it while loading.

    Version 0.20 expects unpacked zero points and does not find its own; FP4 weights become bf16,
    whatever the dtype of the model is.
    """
    return any(
        not weights["symmetric"] or (weights["type"], weights["num_bits"]) == ("float", 4)
        for weights in (group["weights"] for group in groups_of(folder))
    )


def groups_of(folder: Path) -> list[dict[str, Any]]:
    """Read the schemes of a checkpoint in the form of compressed-tensors."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return list(config["quantization_config"]["config_groups"].values())


def dequantize_(model: QwenVL) -> None:
    """Replace the quantized layers of a model, in place, by float layers with their weights.

    What the library has dequantized does not quantize activations.
    """
    for decoder_layer in model.model.layers:
        decoder_layer.fused_layer = None
    for name, layer in compressed_linears(model).items():
        weight = layer.quantized().dequantize(torch.float32)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if layer.bias is not None:
            linear.bias = nn.Parameter(layer.bias.float(), requires_grad=False)
        replace_module(model, name, linear)


def separate_tokens(model: Any) -> None:
    """Use one scale per token in a quantized vision tower, as kernels do.

    The library has one scale per entry of an input's first two dimensions. The tower has no batch
    dimension, so that all its tokens would share one.
    """
    for name, module in model.named_modules():
        if ".visual." in name and is_module_quantized(module):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0][None],))
            module.register_forward_hook(lambda _, inputs, output: output[0])


def compare_logits(
    model: QwenVL, library_model: Any, prompts: list[Prompt]
) -> tuple[str, str, bool]:
    """Norm of the difference relative to the norm of the logits, for the worst prompt."""
    library_logits = checks.transformers_logits(library_model)
    expected = [library_logits(prompt) for prompt in prompts]
    errors = [
        (model([prompt])[0] - logits).norm() / logits.norm()
        for prompt, logits in zip(prompts, expected, strict=True)
    ]
    worst = float(torch.stack(errors).nan_to_num(torch.inf).max())
    return (
        "logits of the model in float32, by norm",
        f"{len(prompts)} prompts: largest relative difference {worst:.1e}",
        worst <= LOGITS_TOLERANCE,
    )


def compare_answers(
    model: QwenVL, library_model: Any, prompts: list[Prompt], stop_ids: frozenset[int]
) -> tuple[str, str, bool]:
    """Compare greedy answers, token by token."""
    margins = []
    for prompt in prompts:
        (answer,) = generate(model, [prompt], max_new_tokens=LONGEST_ANSWER, stop_ids=stop_ids)
        given = library_answer(library_model, prompt, stop_ids)
        if given != list(answer.token_ids):
            margins.append(token_margin(model, prompt, answer.token_ids, given, stop_ids))
    same, result, ties = len(prompts) - len(margins), "", 0
    if margins:
        bound = answers_bound(model, prompts[: checks.PROMPTS]).largest
        ties = sum(abs(margin) <= bound for margin in margins)
        listed = ", ".join(f"{margin:.2g}" for margin in margins)
        result = f"; the others differ first by margins of {listed} nats, {bound:.2g} is a tie"
    return (
        "greedy answers",
        f"{same} of {len(prompts)} are the same{result}",
        same + ties >= ANSWERS_WANTED * len(prompts),
    )


def answers_bound(model: QwenVL, prompts: list[Prompt]) -> Difference:
    """By how much log-probabilities may differ, in nats; more if activations are rounded."""
    rounds = any(layer.scheme.activations != "none" for layer in compressed_linears(model).values())
    if not rounds:
        return FLOAT_BOUND
    return noise_spread(model, prompts, first_logprobs(model, prompts)).times(SPREADS)


def library_answer(model: Any, prompt: Prompt, stop_ids: frozenset[int]) -> list[int]:
    """Tokens of the library's answer, without the stop token."""
    inputs = checks.model_inputs(prompt)
    del inputs["position_ids"]  # the library computes the same positions itself
    is_image = inputs["input_ids"] == model.config.image_token_id
    tokens = model.generate(
        **inputs,
        mm_token_type_ids=is_image.int(),
        max_new_tokens=LONGEST_ANSWER,
        do_sample=False,
        eos_token_id=sorted(stop_ids),
    )
    answer: list[int] = tokens[0, len(prompt) :].tolist()
    return answer[:-1] if answer[-1] in stop_ids else answer


if __name__ == "__main__":
    main()
