"""Agreement of the compiled kernels with the answers of the reference kernel.

    python benchmarks/kernel_answers.py [--recipes w4a16 ...] [--limit 60]

The built-in model is quantized once per recipe and answers the built-in questions in bf16 with
every kernel that this machine supports. At least 99.5 % of the texts must equal the reference's.
For recipes without int8 activations, the divergence of the two on the reference's answers must be
below the noise of bf16, which is the divergence of the reference in bf16 from the reference in
fp32. (A kernel that rounds less than the reference may diverge more from it, if it is as close to
fp32.) Exits with 1 otherwise. Writes results/kernel_answers.json and
results/kernel_answers.md, or files of another --name.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from batches import all_questions
from common.machine import describe, provenance
from tabulate import tabulate

from vlpress.calib.samples.draw import load_samples
from vlpress.eval.answering.predictions import Prediction
from vlpress.eval.answering.runner import ModelResponder, answer_task
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.fidelity.measure import compute_divergence
from vlpress.eval.fidelity.teacher_forcing import ForcedAnswer, read_answers
from vlpress.eval.tasks.task import Task
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import open_model, resolve_folder
from vlpress.quant.driver.pipeline import quantize_, save_quantized
from vlpress.quant.kernels import library
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.resolve import encode_samples

HERE = Path(__file__).resolve().parent
MODEL = "tiny"
RECIPES = ("w4a16", "w8a16", "w4a8", "w8a8")
LEAST_SAME = 0.995
BATCH = 16


def main() -> None:
    """Measure, write the two result files, and check the conditions."""
    options = parse()
    processor = Processor.from_folder(resolve_folder(MODEL))
    task = all_questions(processor, options.limit)
    rows = [row for name in options.recipes for row in measure(name, processor, task, options.read)]
    results = provenance() | {"model": MODEL, "items": len(task.items), "rows": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / f"{options.name}.md").write_text(markdown(results))
    print(markdown(results))
    if failed := [f"{row['recipe']} {row['kernel']}" for row in rows if not row["holds"]]:
        sys.exit(f"not the reference's answers: {', '.join(failed)}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="presets")
    parser.add_argument("--limit", type=int, help="questions of each benchmark (default all)")
    parser.add_argument("--read", type=int, default=512, help="answers read for the divergence")
    parser.add_argument("--name", default="kernel_answers", help="of the result files")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args()


def measure(name: str, processor: Processor, task: Task, read: int) -> Iterator[dict[str, Any]]:
    """Measure one row for each kernel except the reference."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / name
        recipe = write(name, processor, checkpoint)
        integer = any(step.scheme.activations != "none" for step in recipe.steps)
        reference = load(checkpoint, "reference", "bf16")
        answers = answer(reference, processor, task, Path(scratch))
        sample = task.items[:: max(1, len(task.items) // read)]

        def force(model: QwenVL) -> list[ForcedAnswer]:
            features = FeatureCache(model, processor)
            forced: list[ForcedAnswer] = []
            for start in range(0, len(sample), BATCH):
                batch = sample[start : start + BATCH]
                forced += read_answers(features, batch, [answers[item.id] for item in batch])
            return forced

        base = force(reference)
        exact = force(load(checkpoint, "reference", "fp32"))
        noise = mean_divergence(exact, base)
        for kernel in library.NAMES:
            if isinstance(library.find_kernels(kernel), str):
                continue
            model = load(checkpoint, kernel, "bf16")
            candidate_answers = answer(model, processor, task, Path(scratch))
            different = sum(
                candidate_answers[key].prediction != reference_answer.prediction
                for key, reference_answer in answers.items()
            )
            candidate = force(model)
            kl, from_exact = (mean_divergence(left, candidate) for left in (base, exact))
            same = 1 - different / len(answers)
            yield {
                "recipe": name,
                "kernel": kernel,
                "same": same,
                "unlike": different,
                "kl_mean": kl,
                "kl_from_fp32": from_exact,
                "noise": noise,
                "holds": same >= LEAST_SAME and (integer or min(kl, from_exact) < noise),
            }


def write(name: str, processor: Processor, out: Path) -> Recipe:
    """Quantize the model with a preset."""
    recipe: Recipe = Recipe.resolve(name)
    model = open_model(MODEL, device="cpu")
    samples = load_samples(None, n=recipe.calibration.samples, seed=0)
    report = quantize_(model, recipe, encode_samples(samples, processor))
    save_quantized(model, report, resolve_folder(MODEL), out)
    return recipe


def load(checkpoint: Path, kernel: str, dtype: str) -> QwenVL:
    """Open a checkpoint with a kernel."""
    os.environ[library.VARIABLE] = kernel
    return open_model(checkpoint, device="cpu", dtype=dtype)


def answer(
    model: QwenVL, processor: Processor, task: Task, scratch: Path
) -> Mapping[str, Prediction]:
    """Answer all questions with a model."""
    path = scratch / "answers.jsonl"
    path.unlink(missing_ok=True)
    responder = ModelResponder(FeatureCache(model, processor))
    predictions: Mapping[str, Prediction] = answer_task(task, responder, path, {}, batch_size=BATCH)
    return predictions


def mean_divergence(base: list[ForcedAnswer], candidate: list[ForcedAnswer]) -> float:
    """Mean KL divergence over the tokens of all answers, nats."""
    pairs = zip(base, candidate, strict=True)
    return fmean(
        value
        for left, right in pairs
        for value in compute_divergence(left.logits.float(), right.logits.float()).tolist()
    )


def markdown(results: Mapping[str, Any]) -> str:
    """Results as Markdown."""
    head = [
        "recipe",
        "kernel",
        "same text",
        "differ",
        "KL from the reference",
        "from fp32",
        "noise of bf16",
    ]
    body = [
        [row["recipe"], row["kernel"], f"{row['same']:.2%}", row["unlike"]]
        + [f"{row[key]:.2e}" for key in ("kl_mean", "kl_from_fp32", "noise")]
        for row in results["rows"]
    ]
    return (
        f"# Answers with compiled kernels\n\n{describe(dict(results))}\n\n"
        f"{results['model']}, {results['items']} built-in questions, bf16, batch {BATCH}. KL: mean "
        "over the tokens of the reference's answers, nats, from the reference in bf16 and in fp32. "
        "Noise: that of the reference in bf16 from the reference in fp32.\n\n"
        f"{tabulate(body, head, tablefmt='github')}\n"
    )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
