"""Differences of Qwen-VL of 2023 from the second implementation in the tests, on random models.

    python benchmarks/parity_qwen_v1.py [--seeds 3]

No library runs the original code any more. The second implementation computes the published
formulas in float64, one head at a time, without batches and without a cache; ours runs in float32.
Columns as in parity.py. Writes results/parity-qwen-v1.json and results/parity-qwen-v1.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common.machine import describe, provenance
from tabulate import tabulate

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "model")]

from qwen_v1_models import CONFIG, pixels, v1_prompt, write_v1_checkpoint  # noqa: E402
from qwen_v1_reference import features, logits  # noqa: E402

from vlpress.model.generation import generate  # noqa: E402
from vlpress.model.loading import load_model  # noqa: E402

TOKENS = 32
CASES: dict[str, tuple[int, int, int]] = {
    "text": (0, 40, 2048),
    "one image": (1, 20, 2048),
    "three images": (3, 20, 2048),
    "an answer beyond the training's length": (1, 20, 48),
    "a prompt of 2.3 times the training's length": (2, 50, 39),
    "a prompt of 4.7 times the training's length": (2, 50, 19),
}
"""Images, tokens of text and length of the training by name."""


def main() -> None:
    """Compare, and write the result files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    rows = [compare(name, options.seeds) for name in CASES]
    results = provenance() | {"seeds": options.seeds, "rows": rows}
    stored = HERE / "results" / "parity-qwen-v1.json"
    stored.write_text(json.dumps(results, indent=1) + "\n")
    stored.with_suffix(".md").write_text(markdown(results))
    print(markdown(results))


def compare(name: str, seeds: int) -> dict[str, Any]:
    """Return the worst of all seeds for one kind of input."""
    row: dict[str, Any] = {"input": name}
    for seed in range(seeds):
        for key, value in measure(name, seed).items():
            worst = max if key not in ("greedy_equal", "smallest_spread") else min
            row[key] = value if key not in row else worst(row[key], value)
    return row


def measure(name: str, seed: int) -> dict[str, Any]:
    """Compare one prompt."""
    images, words, trained = CASES[name]
    config = CONFIG | {"seq_length": trained}
    with tempfile.TemporaryDirectory() as folder:
        tensors = write_v1_checkpoint(Path(folder), config, seed)
        model = load_model(folder, device="cpu")
    prompt = v1_prompt(images, words, model.config)
    inputs = [pixels(index).double() for index in range(images)]
    ids = prompt.input_ids.tolist()
    expected = logits(ids, inputs, tensors, config)
    measured: dict[str, Any] = {
        "tokens": len(ids),
        "logits": relative(model([prompt])[0], expected),
        "smallest_spread": float((expected.max(-1).values - expected.min(-1).values).min()),
        "features": 0.0,
    }
    doubles = {key: tensor.double() for key, tensor in tensors.items()}
    for given, encoded in zip(inputs, model.encode(prompt.visuals), strict=True):
        theirs = features(given, doubles, config["visual"])
        measured["features"] = max(measured["features"], relative(encoded["hidden"], theirs))
    [result] = generate(model, [prompt], max_new_tokens=TOKENS, stop_ids=(), return_logits=True)
    later = logits([*ids, *result.token_ids], inputs, tensors, config, len(ids))[len(ids) - 1 : -1]
    tokens = torch.tensor(result.token_ids)
    assert result.logits is not None
    measured["greedy_equal"] = int((later.argmax(-1) == tokens).long().cumprod(0).sum())
    measured["decode"] = relative(result.logits, later)
    return measured


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference relative to the largest value."""
    return float((ours.double() - theirs).abs().max() / theirs.abs().max())


def markdown(results: dict[str, Any]) -> str:
    """Format the results."""
    table = [
        [
            row["input"],
            row["tokens"],
            f"{row['features']:.1e}" if row["features"] else "",
            f"{row['logits']:.1e}",
            f"{row['decode']:.1e}",
            f"{row['greedy_equal']} of {TOKENS}",
        ]
        for row in results["rows"]
    ]
    heads = ["input", "tokens", "features", "logits", "cached decoding", "greedy tokens"]
    return (
        "# Qwen-VL of 2023 and the second implementation\n\n"
        f"{describe(results)}\n\n"
        f"Random models, ours in float32 and the other in float64, the worst of {results['seeds']} "
        "seeds: largest difference relative to\nthe largest value, and the number of greedy tokens "
        "before the first that is not the other's first choice.\n\n"
        + tabulate(table, heads, tablefmt="github")
        + "\n"
    )


if __name__ == "__main__":
    main()
