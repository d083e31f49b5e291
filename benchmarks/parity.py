"""Differences from transformers on random models of all families, tied and untied.

    python benchmarks/parity.py [--seeds 3]

Every parameter is random, in float32, and both read the same patches and positions. For each kind
of input: the largest difference of the logits (and of the features of visuals) relative to the
largest value, whether 32 greedy tokens are the first choices of transformers, and the largest
difference of cached decoding from transformers' prefill. Writes results/parity.json and
results/parity.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common.machine import describe, provenance
from tabulate import tabulate

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))  # its models and inputs are those of the tests

import llava_models  # noqa: E402
from reference_model import (  # noqa: E402
    CASES,
    build_reference,
    continued,
    encode,
    reference_logits,
    silence,
    visual_inputs,
)
from tiny_models import (  # noqa: E402
    FAMILIES,
    make_random_model,
    make_tiny_config,
    write_checkpoint_folder,
)

from vlpress.model.generation import generate  # noqa: E402
from vlpress.model.loading import load_model  # noqa: E402
from vlpress.model.processing.inputs import Prompt  # noqa: E402
from vlpress.model.processing.processor import Processor  # noqa: E402
from vlpress.model.qwen_vl import QwenVL  # noqa: E402

TOKENS = 32


def main() -> None:
    """Compare, and write the result files."""
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    rows = [
        row
        for family in (*FAMILIES, *llava_models.FAMILIES.values())
        for tied in (False, True)
        for row in compare(family, tied, options.seeds)
    ]
    versions = {"transformers": transformers.__version__}
    results = provenance() | {"reference": versions, "seeds": options.seeds, "rows": rows}
    stored = HERE / "results" / "parity.json"
    stored.write_text(json.dumps(results, indent=1) + "\n")
    stored.with_suffix(".md").write_text(markdown(results))
    print(markdown(results))


def compare(family: str, tied: bool, seeds: int) -> list[dict[str, Any]]:
    """Return one row per kind of input, the worst of all seeds."""
    rows: dict[str, dict[str, Any]] = {}
    is_llava = family in llava_models.FAMILIES.values()
    for seed in range(seeds):
        pair = (llava_pair if is_llava else qwen_pair)(family, tied, seed)
        for name in CASES:
            if is_llava and any(part["type"] == "video" for part in CASES[name]):
                continue
            measured = measure(pair, name)
            row = rows.setdefault(name, {"family": family, "tied": tied, "input": name})
            for key, value in measured.items():
                worst = max if key not in ("greedy_equal", "smallest_spread") else min
                row[key] = value if key not in row else worst(row[key], value)
    return list(rows.values())


@dataclass(frozen=True)
class Pair:
    """A model of ours, and transformers' model of the same weights as functions of a prompt."""

    model: QwenVL
    processor: Processor
    logits: Callable[[Prompt], torch.Tensor]
    features: Callable[[Prompt], float]
    """Difference of the features of all visuals; 0 if there are none."""


def qwen_pair(family: str, tied: bool, seed: int) -> Pair:
    """Make a random model of Qwen."""
    model = make_random_model(config=make_tiny_config(family, tied=tied), seed=seed)
    # The embeddings of placeholders, which a tied head shares, are replaced by features.
    silence(model, model.config.placeholder_ids)
    reference = build_reference(model)
    with tempfile.TemporaryDirectory() as folder:
        processor = Processor.from_folder(write_checkpoint_folder(Path(folder), model))
    return Pair(
        model,
        processor,
        lambda prompt: reference_logits(reference, prompt),
        lambda prompt: features(model, reference, prompt),
    )


def llava_pair(family: str, tied: bool, seed: int) -> Pair:
    """Make a random LLaVA; transformers reads the same files."""
    from transformers import LlavaForConditionalGeneration

    (text,) = (each for each, name in llava_models.FAMILIES.items() if name == family)
    with tempfile.TemporaryDirectory() as name:
        raw = llava_models.llava_config(text, tied=tied)
        folder = llava_models.write_llava(Path(name), raw, seed=seed)
        model, processor = load_model(folder, device="cpu"), Processor.from_folder(folder)
        reference: Any = LlavaForConditionalGeneration.from_pretrained(folder)
    silence(model, model.config.placeholder_ids)
    silence_reference(reference, model.config.placeholder_ids)

    def logits(prompt: Prompt) -> torch.Tensor:
        inputs = {"pixel_values": llava_models.pixels(prompt)} if prompt.visuals else {}
        with torch.no_grad():
            whole: torch.Tensor = reference(input_ids=prompt.input_ids[None], **inputs).logits
        return whole[0]

    def features(prompt: Prompt) -> float:
        if not prompt.visuals:
            return 0.0
        theirs = reference.model.get_image_features(llava_models.pixels(prompt)).pooler_output
        ours = [each["hidden"] for each in model.encode(prompt.visuals)]
        return relative(torch.cat(ours), torch.cat(list(theirs)))

    return Pair(model, processor, logits, features)


def silence_reference(reference: Any, tokens: list[int]) -> None:
    """Let transformers' model never generate some tokens, as `silence`."""
    with torch.no_grad():
        reference.lm_head.weight[tokens] = 0


def measure(pair: Pair, name: str) -> dict[str, Any]:
    """Compare one prompt."""
    prompt = encode(pair.processor, name)
    expected = pair.logits(prompt)
    with torch.no_grad():
        measured: dict[str, Any] = {
            "logits": relative(pair.model([prompt])[0], expected),
            "smallest_spread": float((expected.max(-1).values - expected.min(-1).values).min()),
            "features": pair.features(prompt),
        }
    [result] = generate(
        pair.model, [prompt], max_new_tokens=TOKENS, stop_ids=(), return_logits=True
    )
    tokens = torch.tensor(result.token_ids)
    later = pair.logits(continued(prompt, tokens))[len(prompt) - 1 : -1]
    assert result.logits is not None
    measured["greedy_equal"] = int((later.argmax(-1) == tokens).long().cumprod(0).sum())
    measured["decode"] = relative(result.logits, later)
    return measured


def features(model: QwenVL, reference: Any, prompt: Any) -> float:
    """Compare the features of all visuals; 0 if there are none."""
    worst = 0.0
    inputs = visual_inputs(prompt)
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        visuals = [visual for visual in prompt.visuals if visual.kind == kind]
        if not visuals:
            continue
        output = reference.model.visual(inputs[pixels], grid_thw=inputs[f"{kind}_grid_thw"])
        expected = {"hidden": output.pooler_output}
        for number, values in enumerate(getattr(output, "deepstack_features", ())):
            expected[f"deepstack.{number}"] = values
        encoded = model.encode(visuals)
        for key, values in expected.items():
            worst = max(worst, relative(torch.cat([each[key] for each in encoded]), values))
    return worst


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def markdown(results: dict[str, Any]) -> str:
    """Format the results."""
    table = [
        [
            row["family"],
            "tied" if row["tied"] else "untied",
            row["input"],
            f"{row['features']:.1e}" if row["features"] else "",
            f"{row['logits']:.1e}",
            f"{row['decode']:.1e}",
            f"{row['greedy_equal']} of {TOKENS}",
        ]
        for row in results["rows"]
    ]
    heads = ["family", "head", "input", "features", "logits", "cached decoding", "greedy tokens"]
    return (
        "# Parity with transformers\n\n"
        f"{describe(results)} transformers {results['reference']['transformers']}.\n\n"
        f"Random models in float32, the worst of {results['seeds']} seeds: largest difference "
        "relative to the largest value, and the number\nof greedy tokens before the first that is "
        "not transformers' first choice.\n\n" + tabulate(table, heads, tablefmt="github") + "\n"
    )


if __name__ == "__main__":
    main()
