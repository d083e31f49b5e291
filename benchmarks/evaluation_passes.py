"""Vision encoding and image decoding of an evaluation, with and without sharing between its passes.

    python benchmarks/evaluation_passes.py [--limit N] [--repeats 3]

Evaluates the built-in model on the built-in benchmarks and stores its log-probabilities, then
evaluates a w4a16 candidate with the first evaluation as its reference: four passes over the items.
In the `shared` mode, as in `vlpress run`, one feature cache per model serves all of them, and
decoded images are cached. In the `separate` mode every pass has a cache of its own and decodes its
images again. Both modes alternate within a repeat; calls are counts of one repeat, seconds are
medians over the repeats. Answers and divergences must be equal. Writes
results/evaluation_passes.json and results/evaluation_passes.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from common.machine import describe, provenance
from tabulate import tabulate

from vlpress import quantize
from vlpress.common.checksum import KEY as CHECKSUM
from vlpress.eval import evaluate_model, evaluation, open_task
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.config import BUILTIN_BENCHES
from vlpress.eval.fidelity.measure import measure_task, store_logprobs
from vlpress.eval.tasks.files import image_store
from vlpress.eval.tasks.prompts import default_prompt_style
from vlpress.eval.tasks.task import Task
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import open_model, resolve_folder

HERE = Path(__file__).resolve().parent
MODEL = "tiny"
RECIPE = "w4a16"
MODES = ("shared", "separate")
FILES = ("predictions.jsonl", "fidelity.jsonl")
VOLATILE = ("seconds", CHECKSUM)
"""Parts of a record that differ between equal runs: its time, and hence its checksum."""


@dataclass
class Meter:
    """Calls of a function and their time."""

    calls: int = 0
    seconds: float = 0.0

    def measure(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its calls are counted and timed."""

        def measured(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.calls += 1
                self.seconds += time.perf_counter() - started

        return measured


def main() -> None:
    """Measure both modes, then write the two result files."""
    options = parse()
    torch.set_num_threads(options.threads)
    folder = resolve_folder(MODEL)
    processor = Processor.from_folder(folder)
    runs: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / RECIPE
        quantize(MODEL, out=checkpoint, recipe=RECIPE, device="cpu")
        models = [open_model(path, device="cpu", dtype="bf16") for path in (folder, checkpoint)]
        for repeat in range(options.repeats):
            for mode in MODES if repeat % 2 == 0 else MODES[::-1]:
                out = Path(scratch) / f"{mode}-{repeat}"
                runs[mode].append(measure(mode, models, processor, out, options))
    check_equal([run.pop("records") for mode in MODES for run in runs[mode]])
    results = provenance() | {
        "model": MODEL,
        "recipe": RECIPE,
        "batch_size": options.batch_size,
        "repeats": options.repeats,
        "items": runs[MODES[0]][0]["items"],
        "images": runs[MODES[0]][0]["images"],
        "modes": {mode: summarize(runs[mode]) for mode in MODES},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "evaluation_passes.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "evaluation_passes.md").write_text(markdown(results))
    print(markdown(results))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--limit", type=int, help="questions of each benchmark (default all)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args()


def measure(
    mode: str,
    models: Sequence[QwenVL],
    processor: Processor,
    out: Path,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Open the benchmarks and evaluate both models once."""
    decoding, encoding = Meter(), Meter()
    image_store.decoded_images.clear()
    with ExitStack() as stack:
        replace_decode = patch.object(
            image_store, "decode_image", decoding.measure(image_store.decode_image)
        )
        stack.enter_context(replace_decode)
        for model in models:
            stack.enter_context(patch.object(model, "encode", encoding.measure(model.encode)))
        if mode == "separate":
            stack.enter_context(without_sharing())
        started = time.perf_counter()
        tasks = open_tasks(processor, options.limit)
        shared: dict[str, Any] = {"batch_size": options.batch_size}
        evaluate_model(models[0], processor, tasks, out / "base", is_reference=True, **shared)
        evaluate_model(
            models[1], processor, tasks, out / "candidate", reference=out / "base", **shared
        )
        seconds = time.perf_counter() - started
    return {
        "items": sum(len(task.items) for task in tasks),
        "images": len({image for task in tasks for item in task.items for image in item.images}),
        "encode_calls": encoding.calls,
        "encode_seconds": encoding.seconds,
        "decode_calls": decoding.calls,
        "decode_seconds": decoding.seconds,
        "seconds": seconds,
        "records": read_records(out),
    }


def open_tasks(processor: Processor, limit: int | None) -> list[Task]:
    """Open the built-in benchmarks in the prompt layout of the model's family."""
    style = default_prompt_style(processor.config.family)
    return [open_task(name, limit=limit, prompt_style=style) for name in BUILTIN_BENCHES]


@contextmanager
def without_sharing() -> Iterator[None]:
    """Give every pass of a task new image features, and decode images on every use."""

    def with_new_features(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(task: Task, features: FeatureCache, *args: Any, **options: Any) -> Any:
            separate = FeatureCache(features.model, features.processor)
            return function(task, separate, *args, **options)

        return call

    with (
        patch.object(image_store.decoded_images, "max_bytes", 0),
        patch.object(evaluation, "store_logprobs", with_new_features(store_logprobs)),
        patch.object(evaluation, "measure_task", with_new_features(measure_task)),
    ):
        yield


def read_records(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Read all answers and divergences of both models, without times and checksums."""
    return {
        str(path.relative_to(out)): [
            {key: value for key, value in json.loads(line).items() if key not in VOLATILE}
            for line in path.read_text("utf-8").split("\n")[1:]
            if line
        ]
        for name in FILES
        for path in sorted(out.rglob(name))
    }


def check_equal(records: Sequence[dict[str, list[dict[str, Any]]]]) -> None:
    """Check that all runs stored the same records.

    Raises:
        AssertionError: an answer or a divergence differs.
    """
    assert all(len(lines) > 0 for lines in records[0].values())
    for other in records[1:]:
        for name, lines in records[0].items():
            assert other[name] == lines, f"{name} differs between two runs"


def summarize(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the counts of one run, and medians of the times of all."""
    return {
        key: median(run[key] for run in runs) if key.endswith("seconds") else runs[0][key]
        for key in runs[0]
        if key not in ("items", "images")
    } | {"all_seconds": [run["seconds"] for run in runs]}


def markdown(results: dict[str, Any]) -> str:
    """Format the results."""
    rows = [
        [
            mode,
            f"{row['encode_calls']:,}",
            f"{row['encode_seconds']:.1f}",
            f"{row['decode_calls']:,}",
            f"{row['decode_seconds']:.1f}",
            f"{row['seconds']:.1f}",
        ]
        for mode, row in results["modes"].items()
    ]
    head = ["caches", "images encoded", "seconds", "images decoded", "seconds", "whole evaluation"]
    return "\n".join(
        [
            "# Passes of an evaluation",
            "",
            describe(results),
            "",
            f"`{results['model']}` and its {results['recipe']} candidate on {results['items']:,} "
            f"built-in items with {results['images']:,} images, batches of "
            f"{results['batch_size']}: answers and log-probabilities of the original, answers and "
            f"divergences of the candidate. Medians of {results['repeats']} repeats; answers and "
            "divergences are equal in all runs.",
            "",
            tabulate(rows, head, tablefmt="github", disable_numparse=True),
            "",
        ]
    )


if __name__ == "__main__":
    main()
