"""Run quantization jobs with llm-compressor, in its own environment.

Modifiers follow its examples for vision-language models; docs/peers.md explains the value of each
option.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from peers import peer, samples
from peers.settings import Job, Setting
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

# Of Qwen3.5, the projections with one row per head, which vlpress keeps too.
KEPT = ["lm_head", "re:.*visual.*", r"re:.*linear_attn\.in_proj_[ab]$"]
BLOCKS = {
    "qwen2_5_vl": "Qwen2_5_VLDecoderLayer",
    "qwen3_vl": "Qwen3VLTextDecoderLayer",
    "qwen3_5": "Qwen3_5DecoderLayer",
}
LAYER = r"re:.*language_model\.layers\.\d+\."
SMOOTHING_STRENGTH = 0.8
# Its own mappings for this family are ambiguous: the vision tower's MLP has the same names.
MAPPINGS = [
    ([rf"{LAYER}self_attn\.{name}_proj$" for name in "qkv"], rf"{LAYER}input_layernorm$"),
    (
        [rf"{LAYER}mlp\.{name}_proj$" for name in ("gate", "up")],
        rf"{LAYER}post_attention_layernorm$",
    ),
]
INT8_ACTIVATIONS = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "token",
    "dynamic": True,
}


def main() -> None:
    """Run all jobs."""
    if not torch.accelerator.is_available():
        # Its AWQ pins memory for transfers to an accelerator, even without one.
        IntermediatesCache.pin_memory = lambda self, *_: None
    peer.main(__doc__, quantize)


def quantize(job: Job, out: Path) -> None:
    """Quantize one checkpoint."""
    model = peer.load(job.source)
    inputs = samples.read(job.samples)
    oneshot(
        model=model,
        # Qwen's own processor needs torchvision, and the samples are encoded already.
        processor=AutoTokenizer.from_pretrained(job.source),
        recipe=[modifier(name, job.grid) for name in job.method.split("+")],
        dataset=DataLoader(inputs, batch_size=None, shuffle=False),
        num_calibration_samples=len(inputs),
        shuffle_calibration_samples=False,
        sequential_targets=[BLOCKS[model.config.model_type]],
    )
    model.save_pretrained(out, save_compressed=True)


def modifier(name: str, grid: Setting) -> Any:
    """Modifier of one step of a method."""
    if name == "smoothquant":
        return SmoothQuantModifier(smoothing_strength=SMOOTHING_STRENGTH, mappings=MAPPINGS)
    if name == "awq":
        return AWQModifier(duo_scaling="both")
    method, _, variant = name.partition("-")
    options: dict[str, Any] = {"ignore": KEPT}
    if grid.scheme:
        options |= {"targets": ["Linear"], "scheme": grid.scheme}
    else:
        options["config_groups"] = {"group_0": group(grid)}
    if variant == "mse":
        options["weight_observer"] = "memoryless_mse"
    return {"rtn": QuantizationModifier, "gptq": GPTQModifier}[method](**options)


def group(grid: Setting) -> dict[str, Any]:
    """A setting as a configuration of compressed-tensors."""
    per_row = grid.group_size == -1
    return {
        "targets": ["Linear"],
        "weights": {
            "num_bits": grid.bits,
            "type": "int",
            "symmetric": grid.symmetric,
            "strategy": "channel" if per_row else "group",
            "group_size": None if per_row else grid.group_size,
        },
        "input_activations": INT8_ACTIVATIONS if grid.int8_activations else None,
    }


if __name__ == "__main__":
    main()
