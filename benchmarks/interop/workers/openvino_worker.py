"""Ask OpenVINO the questions of each job; runs in its environment, see `with_openvino.py`.

python openvino_worker.py JOBS.json
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_chat
import onnx_inputs
import questions
from onnx_inputs import Array
from tokenizers import Tokenizer

TOP = 20


def main() -> None:
    """Run the jobs on the CPU."""
    questions.run_jobs(run, ("openvino",))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Load an export and answer."""
    graphs, tokenizer = onnx_chat.open_export(Path(job["model"]), "openvino")
    layers = Counter(layer["operator"] for layer in graphs.about["layers"].values())
    rows = questions.read(job["questions"])
    limit = job["max_new_tokens"]
    return {
        "layers": dict(layers),
        "answers": {key: answer(graphs, tokenizer, row, limit) for key, row in rows.items()},
    }


def answer(
    graphs: onnx_chat.Graphs, tokenizer: Tokenizer, row: list[questions.Part], limit: int
) -> dict[str, Any]:
    """Text, prompt length, and log-probabilities of the first token by token id."""
    images = [questions.open_image(value) for kind, value in row if kind == "image"]
    text = "".join(value for kind, value in row if kind == "text")
    features, grids = onnx_chat.encode_images(images, graphs)
    ids = onnx_chat.prompt_ids(tokenizer, text, grids, graphs.about)
    positions = onnx_inputs.position_ids(ids, grids, graphs.about)
    watched = FirstLogits(graphs)
    found = list(onnx_chat.answer_ids(ids, positions, features, limit, watched))
    first = watched.logits - np.logaddexp.reduce(watched.logits)
    tops = np.argsort(-first)[:TOP]
    return {
        "text": tokenizer.decode(found),
        "prompt_tokens": len(ids),
        "first": {int(token): float(first[token]) for token in tops},
    }


class FirstLogits(onnx_chat.Graphs):
    """Graphs of an export that keep the first logits."""

    def __init__(self, graphs: onnx_chat.Graphs) -> None:
        self.graphs, self.folder, self.about = graphs, graphs.folder, graphs.about
        self.logits: Array = np.zeros(0)

    def run(self, name: str, inputs: dict[str, Array]) -> dict[str, Array]:
        """See `Graphs.run`."""
        outputs = self.graphs.run(name, inputs)
        if not self.logits.size and "logits" in outputs:
            self.logits = outputs["logits"][0, -1].astype(np.float64)
        return outputs


if __name__ == "__main__":
    main()
