"""onnxruntime runs exports of vlpress through the host program of docs/onnx.md, in float32."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import checks
import commands
import numpy as np
import torch

from vlpress.calib.samples.draw import load_samples
from vlpress.model.generation import generate
from vlpress.model.loading import resolve_model
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import open_model

sys.path.append(str(Path(__file__).resolve().parent / "workers"))
from onnx_host import Host

QUESTIONS = 50
LONGEST_ANSWER = 32
TOLERANCE = 1e-4
"""Largest difference in float32, of the largest feature or logit."""
FIXED = ("--patches", "1280", "--prefill", "384")
"""Options of the export with fixed shapes, which the longest prompt fits into."""
CHECKPOINTS = {
    "tiny": ("gptq/w4a16", "gptq/w8a16-rtn", "gptq/w3a16-rtn"),
    "tiny3": ("tiny3/compressed-tensors/w4a16",),
}
"""By model, below the folder of checkpoints."""


def main() -> None:
    """Compare, then write the rows."""
    options = checks.parse(__doc__)
    table = checks.Table("onnxruntime", version("onnxruntime"))
    for model, folders in CHECKPOINTS.items():
        sources = {"float": resolve_model(model)}
        sources |= {Path(name).name: options.made / name for name in folders}
        for recipe, source in sources.items():
            for shapes, words in (("any", ()), ("fixed", FIXED)):
                out = options.work / model / f"{recipe}-{shapes}"
                name = f"onnx {recipe} of {model}, {shapes} shapes"
                make = lambda s=source, o=out, w=words: compare(s, o, w)  # noqa: E731
                table.check(name, make)
    table.write(options.out)


def compare(source: Path, out: Path, words: Sequence[str]) -> checks.Compared:
    """Export a checkpoint, and compare features, logits and greedy answers."""
    commands.export(source, "onnx", out, *words)
    model, host = open_model(source, device="cpu", dtype="fp32"), Host(out)
    processor = Processor.from_folder(source)
    questions = checks.prompts(source, seed=checks.COMPARISON_SEED, number=QUESTIONS)
    several, video = combined(processor)
    with torch.inference_mode():
        for compared, prompts in (
            (f"{checks.PROMPTS} images", questions[: checks.PROMPTS]),
            ("several images", [several]),
            ("a video", [video]),
        ):
            yield difference(f"features of {compared}", feature_pairs, model, host, prompts)
            yield difference(f"logits with {compared}", logit_pairs, model, host, prompts)
        yield compare_answers(model, host, [*questions, several, video], prefill=bool(words))


def combined(processor: Processor) -> tuple[Prompt, Prompt]:
    """Make a prompt with several images, and one with their video."""
    samples = load_samples(None, n=3, seed=checks.COMPARISON_SEED)
    parts = [part for sample in samples for part in sample.messages[-1]["content"]]
    images = [part["image"] for part in parts if part["type"] == "image"]
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    text = {"type": "text", "text": "What is written on the signs?"}
    several = processor.encode([{"role": "user", "content": [*content, text]}])
    first = images[0]
    frames = [first, *(image.resize(first.size) for image in images[1:]), first]
    clip = {"type": "video", "video": frames, "fps": 2.0}
    return several, processor.encode([{"role": "user", "content": [clip, text]}])


def difference(
    compared: str,
    pairs: Callable[[QwenVL, Host, Prompt], list[tuple[Any, Any]]],
    model: QwenVL,
    host: Host,
    prompts: Sequence[Prompt],
) -> tuple[str, str, bool]:
    """Largest difference of values of both sides, of the largest value of its prompt."""
    worst = 0.0
    for prompt in prompts:
        for expected, actual in pairs(model, host, prompt):
            relative = np.abs(expected - actual).max() / np.abs(expected).max()
            worst = max(worst, float(np.nan_to_num(relative, nan=np.inf)))
    return compared, f"largest difference {worst:.1e} of the largest value", worst <= TOLERANCE


def feature_pairs(model: QwenVL, host: Host, prompt: Prompt) -> list[tuple[Any, Any]]:
    """Features of vlpress and of the host, by kind."""
    encoded = model.encode(prompt.visuals)
    actual = host_features(host, prompt)
    return [
        (
            torch.cat([each[key] for each in encoded]).numpy(),
            actual["image_features" if key == "hidden" else key],
        )
        for key in encoded[0]
    ]


def logit_pairs(model: QwenVL, host: Host, prompt: Prompt) -> list[tuple[Any, Any]]:
    """Logits of vlpress and of the host, of all tokens."""
    ids, positions = prompt.input_ids.numpy(), prompt.position_ids.numpy()
    actual = host.logits(ids, positions, host_features(host, prompt))
    return [(model([prompt])[0].numpy(), actual)]


def host_features(host: Host, prompt: Prompt) -> dict[str, Any]:
    """Features of all visuals of a prompt."""
    patches = np.concatenate([visual.patches.numpy() for visual in prompt.visuals])
    return host.features(patches, [visual.grid for visual in prompt.visuals])


def compare_answers(
    model: QwenVL, host: Host, prompts: Sequence[Prompt], *, prefill: bool
) -> tuple[str, str, bool]:
    """Compare greedy answers token by token; end tokens do not end them, so that none is short."""
    same = 0
    for prompt in prompts:
        (expected,) = generate(
            model, [prompt], max_new_tokens=LONGEST_ANSWER, stop_ids=frozenset({-1})
        )
        ids, positions = prompt.input_ids.numpy(), prompt.position_ids.numpy()
        actual = host.answer(
            ids,
            positions,
            host_features(host, prompt),
            LONGEST_ANSWER,
            end={-1},
            prefill=prefill,
        )
        same += actual == list(expected.token_ids)
    return (
        f"{LONGEST_ANSWER} greedy tokens",
        f"{same} of {len(prompts)} answers are the same",
        same == len(prompts),
    )


if __name__ == "__main__":
    main()
