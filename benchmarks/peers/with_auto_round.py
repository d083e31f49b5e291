"""Run quantization jobs with AutoRound, in its own environment.

docs/peers.md explains the value of each option.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from auto_round import AutoRound
from peers import peer, samples
from peers.settings import Job
from transformers import AutoTokenizer

FORMAT = "auto_gptq"
FILLER = "<|endoftext|>"
SAMPLES_PER_STEP = 8
METHODS: dict[str, dict[str, Any]] = {
    "rtn": {"iters": 0, "disable_opt_rtn": True},
    "opt-rtn": {"iters": 0, "disable_opt_rtn": False},
    "autoround": {"iters": 200},
    "autoround-best": {"iters": 1000},
}


def main() -> None:
    """Run all jobs."""
    peer.main(__doc__, quantize)


def quantize(job: Job, out: Path) -> None:
    """Quantize one checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(job.source)
    filler = tokenizer.convert_tokens_to_ids(FILLER)
    inputs = samples.batches(samples.read(job.samples), SAMPLES_PER_STEP, filler)
    tuner = AutoRound(
        peer.load(job.source),
        tokenizer,
        # Required, though the samples are encoded already; Qwen's processor needs torchvision.
        processor=tokenizer,
        bits=job.grid.bits,
        group_size=job.grid.group_size,
        sym=job.grid.symmetric,
        dataset=inputs,
        # One of its samples is a whole batch of ours: in a batch that AutoRound assembles, all
        # samples would get the positions of the first.
        nsamples=len(inputs),
        batch_size=1,
        seed=job.seed,
        device_map="cpu",
        enable_torch_compile=False,
        low_cpu_mem_usage=False,
        **METHODS[job.method],
    )
    tuner.quantize()
    tuner.save_quantized(str(out), format=FORMAT)


if __name__ == "__main__":
    main()
