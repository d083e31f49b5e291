"""How often the batch size changes an answer, and how close the decision was.

    python benchmarks/batches.py [--limit 60]

The built-in model answers the built-in questions at batch sizes 1, 4 and 16. In fp32 all texts must
be equal. bf16 has 8 bits, so that the shapes of a larger batch change its logits: at least 99.5 %
of the texts must be equal, and where two differ, the two tokens must have been a near tie: their
difference at batch size 1 is at most the change of the most likely token's lead that the batch size
causes elsewhere. Exits with 1 if a condition fails. Writes results/batches.json and
results/batches.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common.machine import describe, provenance
from tabulate import tabulate

from vlpress.eval import open_task
from vlpress.eval.answering.predictions import Prediction
from vlpress.eval.answering.runner import ModelResponder, answer_task
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.fidelity.teacher_forcing import ForcedAnswer, read_answers
from vlpress.eval.tasks.prompts import default_prompt_style
from vlpress.eval.tasks.task import Item, Task
from vlpress.model.loading import load_model, resolve_model
from vlpress.model.processing.processor import Processor

HERE = Path(__file__).resolve().parent
BENCHMARKS = ("builtin-mmbench", "builtin-mmbench-cn", "builtin-ocrbench", "builtin-mmmu")
SIZES = (1, 4, 16)
LEAST_SAME = {"fp32": 1.0, "bf16": 0.995}

Answers = Mapping[str, Prediction]


def main() -> None:
    """Measure, write the two result files, and check the conditions."""
    options = parse()
    torch.set_num_threads(options.threads)
    folder = resolve_model(options.model)
    processor = Processor.from_folder(folder)
    task = all_questions(processor, options.limit)
    rows = [
        row for dtype in LEAST_SAME for row in measure(folder, dtype, processor, task, options.read)
    ]
    results = provenance() | {"model": options.model, "items": len(task.items), "rows": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "batches.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "batches.md").write_text(markdown(results))
    print(markdown(results))
    if failed := [f"{row['dtype']} at batch {row['batch']}" for row in rows if not row["holds"]]:
        sys.exit(f"more than a near tie moved: {', '.join(failed)}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--limit", type=int, help="questions of each benchmark (default all)")
    parser.add_argument("--read", type=int, default=512, help="answers read for the noise floor")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args()


def all_questions(processor: Processor, limit: int | None) -> Task:
    """All benchmarks as one task, so that prompts of different kinds share a batch."""
    style = default_prompt_style(processor.config.family)
    opened = [open_task(name, limit=limit, prompt_style=style) for name in BENCHMARKS]
    items = [replace(item, id=f"{task.name} {item.id}") for task in opened for item in task.items]
    return replace(opened[0], items=tuple(items))


def measure(
    folder: Path, dtype: str, processor: Processor, task: Task, read: int
) -> Iterator[dict[str, Any]]:
    """Measure one row for each batch size above 1."""
    model = load_model(folder, device="cpu", dtype=dtype)
    features, answers = FeatureCache(model, processor), {}
    for size in SIZES:
        with tempfile.TemporaryDirectory() as scratch:
            path, responder = Path(scratch) / "answers.jsonl", ModelResponder(features)
            answers[size] = answer_task(task, responder, path, {}, batch_size=size)
    single = answers[1]

    def force(items: Sequence[Item], answers: Answers) -> list[ForcedAnswer]:
        return read_answers(features, items, [answers[item.id] for item in items])

    sample = task.items[:: max(1, len(task.items) // read)]

    def leads_at(size: int) -> list[torch.Tensor]:
        reads = (
            force(sample[start : start + size], single) for start in range(0, len(sample), size)
        )
        return [lead_of(read) for batch in reads for read in batch]

    leads = {size: leads_at(size) for size in SIZES}
    for size in SIZES[1:]:
        pairs = zip(leads[1], leads[size], strict=True)
        floor = max(float((a - b).abs().max()) for a, b in pairs if len(a))
        different = [
            i for i in task.items if single[i.id].prediction != answers[size][i.id].prediction
        ]
        gaps = [
            parting(force([item], single)[0], force([item], answers[size])[0]) for item in different
        ]
        same = 1 - len(different) / len(task.items)
        yield {
            "dtype": dtype,
            "batch": size,
            "same": same,
            "unlike": len(different),
            "largest_gap": max(gaps, default=0.0),
            "floor": floor,
            "holds": same >= LEAST_SAME[dtype] and all(gap <= floor for gap in gaps),
        }


def lead_of(read: ForcedAnswer) -> torch.Tensor:
    """Lead of the most likely token at each position, nats `[tokens]`."""
    best = read.logits.float().topk(2, dim=-1).values
    return best[:, 0] - best[:, 1]


def parting(single: ForcedAnswer, batched: ForcedAnswer) -> float:
    """Difference, at batch size 1, of the two tokens at which two answers diverge; nats."""
    pairs = zip(single.tokens.tolist(), batched.tokens.tolist(), strict=False)
    for position, (left, right) in enumerate(pairs):
        if left != right:
            logits = single.logits[position].float()
            return float((logits[left] - logits[right]).abs())
    raise ValueError("two answers differ though the tokens of one begin the other")


def markdown(results: dict[str, Any]) -> str:
    """Results as Markdown."""
    head = ["dtype", "batch", "same text", "differ", "largest gap", "noise floor"]
    body = [
        [row["dtype"], row["batch"], f"{row['same']:.2%}", row["unlike"]]
        + [f"{row[key]:.3g}" for key in ("largest_gap", "floor")]
        for row in results["rows"]
    ]
    return (
        f"# Answers at other batch sizes than 1\n\n{describe(results)}\n\n"
        f"{results['model']}, {results['items']} built-in questions. Gap: where two answers "
        "part, the difference of the two tokens' logits at batch 1. Noise floor: the largest "
        "change that the batch size makes to the lead of the likeliest token. Both in nats.\n\n"
        f"{tabulate(body, head, tablefmt='github')}\n"
    )


if __name__ == "__main__":
    main()
