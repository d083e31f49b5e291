"""The models of transformers with the weights of ours, and inputs that both read."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_models import ARCHITECTURES, new_name

from vlpress.model.config import ModelConfig
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL


def build_reference(ours: QwenVL) -> Any:
    """Build transformers' model of the same config, with the same weights."""
    import transformers

    name = ARCHITECTURES[ours.config.family].removesuffix("ForConditionalGeneration")
    raw = copy.deepcopy(dict(ours.config.raw))
    del raw["model_type"]
    config = getattr(transformers, f"{name}Config")(**raw)
    reference = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    experts = ours.config.text.experts
    input_major = experts is not None and experts.input_major
    state = {
        # Published files of Qwen3-VL hold experts input-major; the model of transformers does not.
        new_name(key): value.transpose(1, 2) if input_major and ".experts." in key else value
        for key, value in ours.state_dict().items()
    }
    if ours.lm_head is None:
        state["lm_head.weight"] = ours.model.embed_tokens.weight
    reference.load_state_dict(state, strict=True)
    return reference


def make_image(width: int, height: int, seed: int) -> Image.Image:
    """Smooth noise: resizing has something to do."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


IMAGES = [make_image(100, 60, 0), make_image(64, 130, 1), make_image(180, 170, 2)]
FRAMES = [make_image(90, 120, seed) for seed in range(3, 8)]
VIDEO = {"type": "video", "video": FRAMES, "fps": 1.5}
CASES: dict[str, list[dict[str, Any]]] = {
    "text": [],
    "one image": [{"type": "image", "image": IMAGES[0]}],
    "three unequal images": [{"type": "image", "image": image} for image in IMAGES],
    "video": [VIDEO],
    "mixed": [{"type": "image", "image": IMAGES[1]}, VIDEO, {"type": "image", "image": IMAGES[2]}],
}


def encode(processor: Processor, name: str) -> Prompt:
    """Make the prompt of a case."""
    question = {"type": "text", "text": f"What about {name}?"}
    return processor.encode([{"role": "user", "content": [*CASES[name], question]}])


def visual_inputs(prompt: Prompt) -> dict[str, torch.Tensor]:
    """Return patches and grids under transformers' names."""
    inputs: dict[str, torch.Tensor] = {}
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        visuals = [visual for visual in prompt.visuals if visual.kind == kind]
        if visuals:
            inputs[pixels] = torch.cat([visual.patches for visual in visuals])
            inputs[f"{kind}_grid_thw"] = torch.tensor([visual.grid for visual in visuals])
    return inputs


def token_types(prompt: Prompt, config: ModelConfig) -> torch.Tensor:
    """Return the kind of each token, int32 `[1, tokens]`: text 0, image 1, video 2."""
    assert config.video_token_id is not None
    is_image = prompt.input_ids == config.image_token_id
    is_video = prompt.input_ids == config.video_token_id
    types: torch.Tensor = (is_image.int() + 2 * is_video.int())[None]
    return types


def reference_logits(reference: Any, prompt: Prompt) -> torch.Tensor:
    """Compute transformers' logits at our position ids, `[tokens, vocab]`."""
    with torch.no_grad():
        logits: torch.Tensor = reference(
            input_ids=prompt.input_ids[None],
            position_ids=prompt.position_ids[:, None],
            **visual_inputs(prompt),
        ).logits[0]
    return logits


def continued(prompt: Prompt, tokens: torch.Tensor) -> Prompt:
    """Return a prompt with generated tokens after it."""
    new = torch.arange(len(tokens)) + prompt.next_position
    return Prompt(
        torch.cat([prompt.input_ids, tokens]),
        torch.cat([prompt.position_ids, new.expand(3, -1)], dim=1),
        prompt.visuals,
    )


def silence(model: QwenVL, tokens: list[int]) -> None:
    """Let tokens never be generated: with weight 0, the logit of another one is always larger."""
    head = model.model.embed_tokens if model.lm_head is None else model.lm_head
    assert isinstance(head.weight, torch.Tensor)
    head.weight[tokens] = 0
