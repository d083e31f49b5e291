"""Speed of answering questions, compared with a plain loop over transformers' `generate`.

    python benchmarks/eval_speed.py [--items 240] [--repeats 3]

Both answer the same items of builtin-mmbench with the same model, dtype and number of threads,
greedily, up to the same number of tokens, including the time to decode the images. The loop
processes one item at a time, as evaluation harnesses do. The answers are compared in the same run.
Writes results/eval_speed.json and results/eval_speed.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common.machine import describe, provenance
from tabulate import tabulate

from vlpress.eval import open_task
from vlpress.eval.answering.runner import ModelResponder, answer_task
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.fidelity.noise_floor import noise_sample
from vlpress.eval.tasks.task import Item, Task
from vlpress.model.loading import load_model, resolve_model
from vlpress.model.processing.processor import Processor

HERE = Path(__file__).resolve().parent
BENCHMARK = "builtin-mmbench"
Answers = dict[str, str]


def main() -> None:
    """Measure, then write the two result files."""
    options = parse()
    torch.set_num_threads(options.threads)
    folder = resolve_model(options.model)
    task = noise_sample(open_task(BENCHMARK), options.items // 4)
    loop = transformers_loop(folder, options.dtype)
    batched = runner(folder, options.dtype, options.batch_size)
    rows = []
    for _ in range(options.repeats):
        # In turns, so that both run under the same load of the machine.
        rows.append([timed(loop, task), timed(batched, task)])
    (_, loop_answers), (_, runner_answers) = rows[0]
    seconds = [median(row[side][0] for row in rows) for side in (0, 1)]
    results = provenance() | {
        "model": options.model,
        "dtype": options.dtype,
        "batch_size": options.batch_size,
        "items": len(task.items),
        "repeats": options.repeats,
        "loop_seconds": [row[0][0] for row in rows],
        "runner_seconds": [row[1][0] for row in rows],
        "times_as_fast": seconds[0] / seconds[1],
        "same_answers": sum(loop_answers[key] == runner_answers[key] for key in loop_answers)
        / len(loop_answers),
        "scores": {
            "loop": task.score(loop_answers).percent,
            "runner": task.score(runner_answers).percent,
        },
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "eval_speed.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "eval_speed.md").write_text(markdown(results, seconds))
    print(markdown(results, seconds))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--items", type=int, default=240)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args()


def timed(answer: Callable[[Task], Answers], task: Task) -> tuple[float, Answers]:
    """Seconds and answers of one pass."""
    started = time.perf_counter()
    answers = answer(task)
    return time.perf_counter() - started, answers


def runner(folder: Path, dtype: str, batch_size: int) -> Callable[[Task], Answers]:
    """Answer as `vlpress eval` does; each pass starts with empty image caches."""
    model = load_model(folder, device="cpu", dtype=dtype)
    processor = Processor.from_folder(folder)

    def answer(task: Task) -> Answers:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "predictions.jsonl"
            responder = ModelResponder(FeatureCache(model, processor))
            predictions = answer_task(task, responder, path, {}, batch_size=batch_size)
        return {key: prediction.prediction for key, prediction in predictions.items()}

    return answer


def transformers_loop(folder: Path, dtype: str) -> Callable[[Task], Answers]:
    """Answer one item after the other: tokenizer and image processor, generate, decode."""
    import transformers

    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    family = transformers.Qwen2_5_VLForConditionalGeneration
    model = family.from_pretrained(folder, torch_dtype=kind).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # Pillow's resampling, as in vlpress; the other backend needs torchvision.
    shrink = transformers.Qwen2VLImageProcessorPil.from_pretrained(folder)
    marker, unit = tokenizer.decode([model.config.image_token_id]), shrink.merge_size**2

    @torch.inference_mode()
    def one(item: Item) -> str:
        shown = shrink([image.open() for image in item.images], return_tensors="pt")
        text = tokenizer.apply_chat_template(
            plain(item.messages), tokenize=False, add_generation_prompt=True
        )
        first, *rest = text.split(marker)
        counts = [int(grid.prod()) // unit for grid in shown["image_grid_thw"]]
        for count, part in zip(counts, rest, strict=True):
            first += marker * count + part
        inputs = tokenizer(first, return_tensors="pt")
        tokens = model.generate(
            **inputs,
            pixel_values=shown["pixel_values"].to(kind),
            image_grid_thw=shown["image_grid_thw"],
            mm_token_type_ids=(inputs["input_ids"] == model.config.image_token_id).long(),
            max_new_tokens=item.max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
        )
        told = tokens[0, inputs["input_ids"].shape[1] :]
        return str(tokenizer.decode(told, skip_special_tokens=True))

    return lambda task: {item.id: one(item) for item in task.items}


def plain(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages in the form of a chat template, without the image data."""
    return [
        {
            **message,
            "content": [
                {"type": "image"} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def markdown(results: dict[str, Any], seconds: Sequence[float]) -> str:
    """Results as Markdown."""
    rows = [
        [name, f"{value:.1f}", f"{results['items'] / value:.1f}", f"{results['scores'][key]:.1f}"]
        for name, key, value in (
            ("loop over transformers' generate", "loop", seconds[0]),
            (f"vlpress, batches of {results['batch_size']}", "runner", seconds[1]),
        )
    ]
    lines = [
        "# Speed of an evaluation",
        "",
        describe(results),
        "",
        f"{results['items']} items of {BENCHMARK}, `{results['model']}` in {results['dtype']}, "
        f"median of {results['repeats']}. vlpress is {results['times_as_fast']:.1f} times as fast; "
        f"{results['same_answers']:.1%} of the answers are the same text.",
        "",
        tabulate(rows, ["", "seconds", "items per second", "score"], tablefmt="github",
                 disable_numparse=True),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
