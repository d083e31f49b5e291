from __future__ import annotations

from pathlib import Path

import pytest

from vlpress.eval.answering.prompt_lengths import prompt_length
from vlpress.eval.planning.workload import (
    CHOICE_TOKENS,
    REASONING_TOKENS,
    Workload,
    estimate_passes,
    measure_workload,
)
from vlpress.eval.tasks import open_task
from vlpress.model.families import family_of
from vlpress.model.processing.processor import Processor
from vlpress.quant.plan.time_estimate import Probe

MACS = Probe(mac=1, mac32=0, hessian=0, column=0, solve_mac=0, search=0)
READS = Probe(mac=0, mac32=0, hessian=0, column=0, solve_mac=0, search=0, read=1)


def test_workload_counts_prompts_and_different_images(processor: Processor, packaged: Path) -> None:
    circular = measure_workload(open_task("builtin-mmbench"), processor)
    plain = open_task("builtin-ocrbench")
    words = measure_workload(plain, processor)
    assert (circular.name, words.prompts) == ("builtin-mmbench", len(plain.items))
    assert circular.answer_tokens == CHOICE_TOKENS
    thinking = open_task("builtin-mmbench", reasoning="think-opened")
    assert measure_workload(thinking, processor).answer_tokens == REASONING_TOKENS + CHOICE_TOKENS
    # A sample of all items: the exact mean, and no image twice.
    lengths = [prompt_length(item, processor) for item in plain.items]
    assert words.tokens == pytest.approx(sum(lengths) / len(lengths))
    images = {image.digest for item in plain.items for image in item.images}
    assert 0 < words.image_tokens <= len(images) * max(lengths)


def test_passes_by_hand(processor: Processor) -> None:
    config = processor.config
    weights = dict.fromkeys(("vision", "merger", "decoder", "head"), 0)
    for spec in family_of(config).linears(config):
        weights[spec.stage] += spec.weights
    text, head = config.text, config.text.hidden_size * config.text.vocab_size
    work = Workload("a", prompts=10, tokens=20, image_tokens=30, answer_tokens=5)
    attention = 20 * len(text.cached_layers) * text.num_attention_heads * text.head_dim
    reading = 10 * 20 * (weights["decoder"] + attention)
    vision = 30 * (4 * weights["vision"] + weights["merger"])
    passes = estimate_passes(work, config, MACS, batch_size=4)
    steps = 5 * 3 * 4 * (weights["decoder"] + head)  # three batches of up to four
    assert passes.answering == pytest.approx(vision + reading + steps)
    assert passes.reading == pytest.approx(reading + 10 * 5 * head)
    # Bound by memory, a batch takes as long as one prompt.
    passes = estimate_passes(work, config, READS, batch_size=4)
    assert passes.answering == 5 * 3 * (weights["decoder"] + head) and passes.reading == 0


def test_a_benchmark_without_sound_questions_takes_no_time(processor: Processor) -> None:
    work = Workload("a", prompts=0, tokens=0, image_tokens=0, answer_tokens=0)
    passes = estimate_passes(work, processor.config, MACS, batch_size=4)
    assert (passes.answering, passes.reading) == (0, 0)
