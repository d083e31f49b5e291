"""vlpress with the oldest supported version of transformers.

Its logits are compared with that library's own model, and the output of its commands with their
output in the environment that wrote the checkpoints. This version of transformers counts positions
as in training, so that prompts with a video use its own position ids.
"""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import checks
import commands
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from vlpress import __version__, load_model
from vlpress.calib.samples.draw import load_samples
from vlpress.model.loading import resolve_model
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor

FPS = 2.0


def main() -> None:
    """Compare, then write the rows."""
    options = checks.parse(__doc__)
    table = checks.Table(f"vlpress on transformers {version('transformers')}", __version__)
    quantized = options.made / "gptq" / "w4a16"
    table.check("not quantized", compare_with_library)
    table.check("not quantized", lambda: compare_answer("tiny", options.made / "answer-tiny.txt"))
    table.check("gptq w4a16", lambda: compare_quantize(quantized, options.work / "w4a16"))
    table.check("gptq w4a16", lambda: compare_answer(quantized, options.made / "answer-w4a16.txt"))
    table.write(options.out)


def compare_with_library() -> checks.Compared:
    """Compare the logits of the built-in model with transformers' own, for images and a video."""
    folder = resolve_model("tiny")
    model = load_model("tiny", device="cpu", dtype="fp32")
    library_model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, torch_dtype=torch.float32
    )
    prompts = [*checks.prompts(folder, seed=checks.COMPARISON_SEED), video_prompt(folder)]
    opened = checks.Opened({}, lambda prompt: library_logits(library_model.eval(), prompt))
    with torch.inference_mode():
        yield checks.compare_logits(model, opened, prompts)


def library_logits(model: Qwen2_5_VLForConditionalGeneration, prompt: Prompt) -> torch.Tensor:
    """Logits of the library with its own position ids."""
    patches = torch.cat([visual.patches for visual in prompt.visuals])
    grid = torch.tensor([visual.grid for visual in prompt.visuals])
    visual = {"pixel_values": patches, "image_grid_thw": grid}
    if prompt.visuals[0].kind == "video":
        seconds = torch.tensor([visual.seconds_per_grid for visual in prompt.visuals])
        visual = {
            "pixel_values_videos": patches,
            "video_grid_thw": grid,
            "second_per_grid_ts": seconds,
        }
    ids = prompt.input_ids[None]
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), **visual).logits[0]


def video_prompt(folder: Path) -> Prompt:
    """A question about a video of synthetic images."""
    samples = load_samples(None, n=checks.PROMPTS, seed=checks.COMPARISON_SEED)
    images = [part["image"] for sample in samples for part in sample.messages[0]["content"][:1]]
    frames = [image.resize((112, 84)) for image in images]
    content = [
        {"type": "video", "video": frames, "fps": FPS},
        {"type": "text", "text": "What is shown last?"},
    ]
    return Processor.from_folder(folder).encode([{"role": "user", "content": content}])


def compare_answer(model: str | Path, stored: Path) -> checks.Compared:
    """Compare `vlpress generate` with the answer from the other environment."""
    answer, expected = commands.answer(model), stored.read_text(encoding="utf-8")
    result = f"same answer, {answer!r}" if answer == expected else f"{answer!r}, not {expected!r}"
    yield "vlpress generate", result, answer == expected


def compare_quantize(made: Path, out: Path) -> checks.Compared:
    """Compare the bytes of `vlpress quantize` with those from the other environment."""
    shutil.rmtree(out, ignore_errors=True)
    commands.quantize("tiny", "w4a16", "gptq", out)
    same = commands.digest(out) == commands.digest(made)
    yield "vlpress quantize", "same bytes" if same else "other bytes", same


if __name__ == "__main__":
    main()
