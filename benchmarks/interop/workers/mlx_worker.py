"""Ask mlx-vlm the questions of each job; runs in its environment, see `with_mlx.py`.

python mlx_worker.py JOBS.json
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import questions
from mlx_vlm import load, stream_generate

TOP = 20


def main() -> None:
    """Run the jobs on the CPU."""
    mx.set_default_device(mx.cpu)
    questions.run_jobs(run, ("mlx", "mlx-vlm", "transformers"))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Load a checkpoint and answer."""
    model, processor = load(job["model"])
    model.set_dtype(getattr(mx, job["dtype"]))
    rows = questions.read(job["questions"])
    limit = job["max_new_tokens"]
    return {
        "layers": dict(Counter(layer_kinds(model))),
        "answers": {key: answer(model, processor, row, limit) for key, row in rows.items()},
    }


def answer(model: Any, processor: Any, row: list[questions.Part], limit: int) -> dict[str, Any]:
    """Text, prompt length, and log-probabilities of the first token by token id."""
    images = [questions.open_image(value) for kind, value in row if kind == "image"]
    content = [
        {"type": "text", "text": value} if kind == "text" else {"type": "image"}
        for kind, value in row
    ]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    steps = list(
        stream_generate(model, processor, prompt, image=images, max_tokens=limit, temperature=0.0)
    )
    first = steps[0].logprobs.astype(mx.float32).reshape(-1)
    tops = mx.argsort(-first)[:TOP].tolist()
    return {
        "text": "".join(step.text for step in steps),
        "prompt_tokens": steps[0].prompt_tokens,
        "first": {token: first[token].item() for token in tops},
    }


def layer_kinds(model: Any) -> list[str]:
    """Name the class of every linear layer."""
    kinds = (nn.Linear, nn.QuantizedLinear)
    return [
        type(module).__name__ for _, module in model.named_modules() if isinstance(module, kinds)
    ]


if __name__ == "__main__":
    main()
