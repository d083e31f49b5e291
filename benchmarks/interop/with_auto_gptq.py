"""auto-gptq loads checkpoints of vlpress, and writes checkpoints for vlpress to load.

It does not support Qwen-VL, so a class for it is registered here, as its documentation describes.
Its quantizer assumes a CUDA device; here its transfers go to the CPU instead.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import checks
import torch
from auto_gptq.modeling import _base, _const
from auto_gptq.modeling._base import BaseGPTQForCausalLM, BaseQuantizeConfig
from auto_gptq.nn_modules.qlinear import qlinear_cuda, qlinear_cuda_old
from transformers import (
    AutoModelForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.loading import resolve_model

# act_order with static groups writes a g_idx of non-contiguous groups.
VARIANTS = {
    "w4 g128": BaseQuantizeConfig(bits=4, group_size=128, desc_act=False),
    "w4 g128 act-order": BaseQuantizeConfig(bits=4, group_size=128, desc_act=True),
    "w8 per row": BaseQuantizeConfig(bits=8, group_size=-1, desc_act=False),
    "w4 g128 asymmetric": BaseQuantizeConfig(bits=4, group_size=128, desc_act=False, sym=False),
}


class Qwen25VL(BaseGPTQForCausalLM):
    """The decoder of a Qwen2.5-VL as an auto-gptq model."""

    layer_type = "Qwen2_5_VLDecoderLayer"
    layers_block_name = "model.layers"
    outside_layer_modules = ["visual", "model.embed_tokens", "model.norm"]  # noqa: RUF012
    inside_layer_modules = [  # noqa: RUF012
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
    ]

    def _prepare_examples_for_quantization(self, examples, batch_size=1):
        return examples  # the original would drop the images


def main() -> None:
    """Compare, then write the rows."""
    options = checks.parse(__doc__)
    _const.SUPPORTED_MODELS.append("qwen2_5_vl")
    AutoModelForCausalLM.register(Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration)
    table = checks.Table("auto-gptq", version("auto-gptq"))
    for folder in checks.made(options.made, "gptq"):
        table.check(f"gptq {folder.name} by vlpress", lambda folder=folder: compare(folder))
    for name, config in VARIANTS.items():
        out = options.work / name.replace(" ", "-")
        table.check(f"gptq {name} by auto-gptq", lambda o=out, c=config: write_and_compare(o, c))
    table.write(options.out)


def write_and_compare(out: Path, config: BaseQuantizeConfig) -> checks.Compared:
    """Write a checkpoint with auto-gptq, then compare both readers."""
    quantize(out, config)
    yield from compare(out)


def compare(folder: Path) -> checks.Compared:
    """Load a checkpoint with auto-gptq in float32, which holds fp16 and bf16 exactly."""
    model = Qwen25VL.from_quantized(str(folder), device="cpu", torch_dtype=torch.float32).model
    # A tied head that is not in the file overwrites the embedding with its random initialization.
    embedding = CheckpointReader(folder).tensor("model.embed_tokens.weight")
    model.model.embed_tokens.weight.data.copy_(embedding)
    layers = {
        **checks.find_layers(model, qlinear_cuda_old.QuantLinear),
        **checks.find_layers(model, qlinear_cuda.QuantLinear),
    }
    opened = checks.Opened(layers, checks.transformers_logits(model.eval()))
    yield from checks.compare_checkpoint(folder, opened)


def quantize(out: Path, config: BaseQuantizeConfig) -> None:
    """Quantize the built-in model's decoder with auto-gptq's GPTQ, in its usual fp16."""
    shutil.rmtree(out, ignore_errors=True)
    source = resolve_model("tiny")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, torch_dtype=torch.float16)
    prompts = checks.prompts(source, seed=checks.CALIBRATION_SEED, answers=True)
    examples = [checks.model_inputs(prompt, torch.float16) for prompt in prompts]
    tool = Qwen25VL(model.eval(), False, config)
    with cpu_as_cuda():
        tool.quantize(examples, cache_examples_on_gpu=False)
    tool.save_quantized(str(out))
    checks.add_side_files(out)


@contextmanager
def cpu_as_cuda() -> Iterator[None]:
    """Make the quantizer move blocks to the CPU instead of a CUDA device."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(_base, "CUDA_0", torch.device("cpu")))
        stack.enter_context(patch.object(torch.cuda, "synchronize", lambda *_: None))
        yield


if __name__ == "__main__":
    main()
