"""Effect of the number of CPU threads, and of the batch size, on the bits of a model's logits.

    python benchmarks/thread_counts.py [--model tiny] [--questions 24] [--threads 1 2 3 4]

Computes the logits of the first answer token for built-in questions, in bf16 and fp32, with each
number of threads and with batches of 1 and 8, and reports the largest absolute difference from one
thread, and between the two batch sizes. Writes results/thread_counts.json and
results/thread_counts.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from common.machine import describe, provenance
from tabulate import tabulate

from vlpress.eval import open_task
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.model.processing.processor import Processor
from vlpress.quant.checkpoint.loading import open_model, resolve_folder

RESULTS = Path(__file__).resolve().parent / "results"
BATCHES = (1, 8)
KEYS = ("dtype", "threads", "from_first", "between_batches")


def main() -> None:
    """Measure, then write the two result files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 3, 4])
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    header = provenance()  # before the number of threads is changed
    for dtype in ("bf16", "fp32"):
        first: list[torch.Tensor] = []
        for threads in options.threads:
            torch.set_num_threads(threads)
            logits = compute(options.model, dtype, options.questions)
            first = first or logits
            rows.append(
                {
                    "dtype": dtype,
                    "threads": threads,
                    "from_first": max(largest(a, b) for a, b in zip(logits, first, strict=True)),
                    "between_batches": largest(*logits),
                }
            )
            print(rows[-1], flush=True)
    results = header | {"model": options.model, "questions": options.questions, "rows": rows}
    (RESULTS / "thread_counts.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "thread_counts.md").write_text(markdown(results))


@torch.inference_mode()
def compute(name: str, dtype: str, questions: int) -> list[torch.Tensor]:
    """Return float32 logits `[questions, vocabulary]` for each batch size."""
    folder = resolve_folder(name)
    processor = Processor.from_folder(folder)
    features = FeatureCache(open_model(folder, device="cpu", dtype=dtype), processor)
    items = open_task("builtin-ocrbench", limit=questions).items
    results = []
    for size in BATCHES:
        parts = []
        for begin in range(0, len(items), size):
            prompts, images = features.prompts(items[begin : begin + size])
            parts += features.model(prompts, images, [1] * len(prompts))
        results.append(torch.cat(parts).float())
    return results


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest absolute difference."""
    return float((a - b).abs().max())


def markdown(results: dict[str, Any]) -> str:
    """Return the results as a page."""
    table = tabulate(
        [
            [r["dtype"], r["threads"], r["from_first"], r["between_batches"]]
            for r in results["rows"]
        ],
        ["dtype", "threads", "from the first number of threads", "batches of 1 from batches of 8"],
        tablefmt="github",
    )
    return (
        "# Threads and logits\n\n"
        f"Largest absolute difference of logits, {results['model']}, {results['questions']} "
        "questions, by\n`python benchmarks/thread_counts.py`.\n\n"
        f"{describe(results)}\n\n{table}\n"
    )


if __name__ == "__main__":
    main()
