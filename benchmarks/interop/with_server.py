"""Compare a served model with the same model in this process, item by item.

    .interop/transformers-serving/bin/python benchmarks/interop/with_server.py

Starts `transformers serve` with the built-in model in float32 on loopback, evaluates both on a
sample of the built-in benchmarks, and writes results/endpoint.json. Answers may differ only where
two tokens are closer than the rounding of another order of summation. Exits with 1 if scores or
prompts differ, or answers differ by more.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import torch
from answering_engines.comparison import encode

import vlpress
from vlpress.eval.answering.predictions import Prediction
from vlpress.eval.config import BUILTIN_BENCHES, QuestionOptions
from vlpress.eval.resolve import open_tasks_in
from vlpress.eval.results import StoredRun, read_run
from vlpress.eval.tasks.generated.reasoning import NONE
from vlpress.eval.tasks.task import Item
from vlpress.model.loading import load_model, resolve_model
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.config import ModelSettings

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common.machine import provenance

HERE = Path(__file__).resolve().parent
STYLE = "vlmevalkit-default"
QUESTIONS = 10  # items of each benchmark; those of MMBench in up to four rotations
NEAR_TIE = 2e-4  # relative to the largest logit: 1e-4 on either side
START_SECONDS = 600


def main() -> None:
    """Evaluate both, compare, write the result."""
    options = parse()
    torch.set_num_threads(1)
    questions: dict[str, Any] = {
        "bench": BUILTIN_BENCHES,
        "limit": options.questions,
        "batch_size": 8,
        "prompt_style": STYLE,
    }
    fresh: dict[str, Any] = {"fresh": True, "progress": True}
    local, served = options.work / "local", options.work / "served"
    vlpress.evaluate("tiny", local, **questions, device="cpu", dtype="fp32", **fresh)
    model = str(resolve_model("tiny"))
    with serving(model, options.work / "server.log") as url:
        endpoint: dict[str, Any] = {
            "endpoint": url,
            "served_model": model,
            "endpoint_extra": '{"repetition_penalty": null}',
        }
        vlpress.evaluate(out=served, **endpoint, **questions, **fresh)
    margins = Margins(QuestionOptions(**questions))
    benchmarks = compare_runs(read_run(local), read_run(served), margins)
    passed = all(entry["passed"] for entry in benchmarks.values())
    server = {"name": "transformers serve", "version": version("transformers")}
    result = provenance() | {"server": server, "model": "tiny", "dtype": "float32"}
    result |= {"near_tie": NEAR_TIE, "benchmarks": benchmarks, "passed": passed}
    options.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(json.dumps(benchmarks, indent=2, ensure_ascii=False))
    sys.exit(0 if passed else 1)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--work", type=Path, default=HERE.parents[1] / ".interop" / "work-endpoint")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "endpoint.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    return options


@contextmanager
def serving(model: str, log: Path) -> Iterator[str]:
    """Run the server; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, HERE / "serve_transformers.py", model, "--port", port]
    command += ["--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]
    cache = log.with_name("hub")  # the server lists this folder's models
    cache.mkdir(exist_ok=True)
    alone = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(
            list(map(str, command)), env={**os.environ, **alone}, stdout=output, stderr=output
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urlopen(url):
                return
        except URLError:
            time.sleep(0.5)
    sys.exit(f"the server did not start; {log} says why")


class Margins:
    """Margin of the local model between its own and the server's answer; loaded at first use."""

    def __init__(self, questions: QuestionOptions) -> None:
        self._questions = questions
        self._model: QwenVL | None = None

    def __call__(self, item_id: str, local: str, served: str) -> float:
        """Difference of the two logits at the first token that differs, over the largest logit."""
        if self._model is None:
            folder = resolve_model("tiny")
            self._model = load_model(folder, device="cpu", dtype="fp32")
            self._processor = Processor.from_folder(folder)
            tasks = open_tasks_in(STYLE, NONE, None, self._questions, ModelSettings())
            self._items = {f"{t.name} {item.id}": item for t in tasks for item in t.items}
        return self._margin(self._model, self._items[item_id], local, served)

    @torch.inference_mode()
    def _margin(self, model: QwenVL, item: Item, local: str, served: str) -> float:
        prompt = encode(self._processor, item)
        local_prompt = encode(self._processor, item, local)
        served_prompt = encode(self._processor, item, served)
        length = min(len(local_prompt), len(served_prompt))
        differs = local_prompt.input_ids[:length] != served_prompt.input_ids[:length]
        position = int(differs.nonzero()[0])
        if position < len(prompt):
            raise AssertionError("prompts of one item differ")
        logits = model([local_prompt])[0][position - 1]
        gap = logits[local_prompt.input_ids[position]] - logits[served_prompt.input_ids[position]]
        return float(gap.abs() / logits.abs().max())


def compare_runs(local: StoredRun, served: StoredRun, margins: Any) -> dict[str, dict[str, Any]]:
    """Compare scores, and answers and prompt lengths item by item."""
    results = {}
    for name, task in local.tasks.items():
        other = served.tasks[name]
        rows = compare_items(name, task.predictions, other.predictions, margins)
        scores = task.score().percent, other.score().percent
        same_lengths = sum(
            prediction.prompt_tokens == other.predictions[key].prompt_tokens
            for key, prediction in task.predictions.items()
        )
        results[name] = {
            "items": len(task.items),
            "local": scores[0],
            "served": scores[1],
            "same_answers": len(task.items) - len(rows),
            "same_prompt_lengths": same_lengths,
            "differing": rows,
            "passed": scores[0] == scores[1]
            and same_lengths == len(task.items)
            and all(row["margin"] <= NEAR_TIE for row in rows),
        }
    return results


def compare_items(
    name: str,
    local: Mapping[str, Prediction],
    served: Mapping[str, Prediction],
    margins: Any,
) -> list[dict[str, Any]]:
    """Items whose answers differ, each with its margin."""
    return [
        {
            "item": key,
            "local": prediction.prediction,
            "served": served[key].prediction,
            "margin": margins(f"{name} {key}", prediction.prediction, served[key].prediction),
        }
        for key, prediction in local.items()
        if prediction.prediction != served[key].prediction
    ]


if __name__ == "__main__":
    main()
