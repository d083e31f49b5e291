"""How fast a model reads a prompt and writes an answer, as a user of `generate` sees it."""

from __future__ import annotations

import time
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from ..eval.fingerprint import activations_of, head_of, kernels_of
from ..model.generation import generate
from ..model.processing.inputs import Prompt
from ..model.qwen_vl import QwenVL
from .timing import read_bandwidth


def measure(
    model: QwenVL, *, prompt_tokens: int = 1024, new_tokens: int = 32, rounds: int = 3
) -> dict[str, Any]:
    """Time prompts of text with one answer each.

    Args:
        model: in eval mode.
        prompt_tokens: length of the prompt.
        new_tokens: length of the answer, at least 2.
        rounds: how often; the first one warms up and does not count.

    Returns:
        Medians of `prefill_seconds` (up to the first token), `token_seconds` (each one after) and
        `head_seconds` (its scores alone), the rates, and what ran: dtype, threads, kernels.

    Raises:
        ValueError: an answer of one token, in which nothing is decoded.
    """
    if new_tokens < 2:
        raise ValueError(f"new_tokens {new_tokens}: must be at least 2")
    random = torch.Generator().manual_seed(0)
    prefills, steps = [], []
    for turn in range(rounds + 1):
        first, rest = _answer(model, prompt_tokens, new_tokens, random)
        if turn:
            prefills.append(first)
            steps += rest
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
        "kernels": kernels_of(model),
        "activations": activations_of(model),
        "head": head_of(model),
        "kv_cache": model.cache_type,
        "bandwidth": read_bandwidth() if on_cpu else None,
    }


def _answer(
    model: QwenVL, prompt_tokens: int, new_tokens: int, random: torch.Generator
) -> tuple[float, list[float]]:
    """Seconds to the first token, and from each to the next."""
    ids = torch.randint(0, 256, (prompt_tokens,), generator=random)  # no special ones
    prompt = Prompt(ids, torch.arange(prompt_tokens).expand(3, -1))
    times = [time.perf_counter()]
    generate(
        model,
        [prompt],
        max_new_tokens=new_tokens,
        stop_ids=(),
        on_token=lambda *_: times.append(time.perf_counter()),
    )
    between = [after - before for before, after in pairwise(times)]
    return between[0], between[1:]


@torch.inference_mode()
def _head(model: QwenVL, times: int) -> float:
    """Seconds that the scores of one token take, median."""
    size = model.config.text.hidden_size
    hidden = torch.ones(1, size, dtype=model.dtype, device=model.device)
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        model.logits(hidden).argmax(-1).tolist()  # waits for a GPU too
        found.append(time.perf_counter() - begin)
    return median(found)
