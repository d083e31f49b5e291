"""Speed of prefill and decoding of a model in `generate`."""

from __future__ import annotations

import time
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from ..model.generation import generate
from ..model.processing.inputs import Prompt
from ..model.qwen_vl import QwenVL
from ..quant.runtime.description import count_kernels, describe_activations, describe_head
from .timing import read_bandwidth


def measure(
    model: QwenVL, *, prompt_tokens: int = 1024, new_tokens: int = 32, rounds: int = 3
) -> dict[str, Any]:
    """Time random text prompts with one answer each.

    Args:
        model: in eval mode.
        prompt_tokens: length of the prompt.
        new_tokens: length of the answer, at least 2.
        rounds: measured prompts, after one that warms up.

    Returns:
        Medians of `prefill_seconds` (up to the first token), `token_seconds` (each later token)
        and `head_seconds` (the logits of one token), the rates in tokens per second, the read
        `bandwidth` (bytes per second, None on a GPU), and dtype, threads and kernels.

    Raises:
        ValueError: `new_tokens` is below 2, so that no token is decoded.
    """
    if new_tokens < 2:
        raise ValueError(f"new_tokens {new_tokens}: must be at least 2, the first is prefill")
    random = torch.Generator().manual_seed(0)
    prefills, steps = [], []
    for turn in range(rounds + 1):
        prefill_seconds, token_seconds = _answer(model, prompt_tokens, new_tokens, random)
        if turn:
            prefills.append(prefill_seconds)
            steps += token_seconds
    prefill, step = median(prefills), median(steps)
    on_cpu = model.device.type == "cpu"
    return {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "prefill_seconds": prefill,
        "prefill_rate": prompt_tokens / prefill,
        "token_seconds": step,
        "token_rate": 1 / step,
        "head_seconds": _head(model, new_tokens),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "kernels": count_kernels(model),
        "activations": describe_activations(model),
        "head": describe_head(model),
        "kv_cache": model.cache_type,
        "bandwidth": read_bandwidth() if on_cpu else None,
    }


def _answer(
    model: QwenVL, prompt_tokens: int, new_tokens: int, random: torch.Generator
) -> tuple[float, list[float]]:
    """Seconds to the first token, and between consecutive tokens."""
    ids = torch.randint(0, 256, (prompt_tokens,), generator=random)  # no special tokens
    prompt = Prompt(ids, torch.arange(prompt_tokens).expand(3, -1))
    times = [time.perf_counter()]
    generate(
        model,
        [prompt],
        max_new_tokens=new_tokens,
        stop_ids=(),
        on_token=lambda *_: times.append(time.perf_counter()),
    )
    seconds = [after - before for before, after in pairwise(times)]
    return seconds[0], seconds[1:]


@torch.inference_mode()
def _head(model: QwenVL, times: int) -> float:
    """Median seconds for the logits of one token."""
    size = model.config.text.hidden_size
    hidden = torch.ones(1, size, dtype=model.dtype, device=model.device)
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        model.logits(hidden).argmax(-1).tolist()  # the copy to the host synchronizes with a GPU
        seconds.append(time.perf_counter() - begin)
    return median(seconds)
