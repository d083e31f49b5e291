"""Description of a model for the host program: what it computes outside the graphs, as plain data.

See docs/onnx.md for the keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....model.config import ModelConfig
from ....model.families import family_of
from ....model.processing.chat_templates import read_chat_template, render_chat
from ....model.processing.pixel_settings import IMAGE_FILE, PixelSettings
from ....model.processing.processor import Processor
from ....model.processing.tokenizer import load_tokenizer, read_stop_ids
from ....model.rope import decoder_frequencies, mrope_axes, vision_frequencies

QUESTION = "{question}"
"""Placeholder of the question in rendered templates."""
PIXEL_FILES = (IMAGE_FILE, "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


def describe_host(
    folder: Path, config: ModelConfig, *, patches: int | None, prefill: int | None
) -> dict[str, Any]:
    """Describe everything that a host program needs.

    Args:
        folder: of the checkpoint.
        config: of the model.
        patches: fixed number of patches; None: any.
        prefill: tokens of the graph for a prompt of fixed length; None: there is none.

    Raises:
        ValueError: a file of the checkpoint is unusable.
    """
    image = _image_settings(folder, config)
    tokens, chat = _tokens(folder, config, image)
    return {
        "image": None if image is None else _image(image),
        "vision": {"patches": patches, **_vision(config)},
        "text": {**_text(config), "prefill": prefill},
        "tokens": tokens,
        "chat": chat,
    }


def _image_settings(folder: Path, config: ModelConfig) -> PixelSettings | None:
    if not any((folder / name).is_file() for name in PIXEL_FILES):
        return None
    return PixelSettings.from_folder(folder, config.vision)


def _image(settings: PixelSettings) -> dict[str, Any]:
    return {
        "min_pixels": settings.min_pixels,
        "max_pixels": settings.max_pixels,
        "mean": list(settings.mean),
        "std": list(settings.std),
        "rescale_factor": settings.rescale_factor,
    }


def _vision(config: ModelConfig) -> dict[str, Any]:
    vision = config.vision
    return {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "in_channels": vision.in_channels,
        "patch_dim": vision.patch_dim,
        "frequencies": vision_frequencies(vision.head_dim).tolist(),
        "window_size": vision.window_size,
        "position_side": vision.position_side,
        "deepstack": len(vision.deepstack_visual_indexes),
        "tokens_per_second": vision.tokens_per_second,
        "separate_frames": vision.separate_frames,
    }


def _text(config: ModelConfig) -> dict[str, Any]:
    text = config.text
    frequencies, scale = decoder_frequencies(text)
    return {
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
        "layers": text.num_hidden_layers,
        "heads": text.num_attention_heads,
        "kv_heads": text.num_key_value_heads,
        "head_dim": text.head_dim,
        "frequencies": frequencies.tolist(),
        "axes": mrope_axes(text, family_of(config).mrope_layout).tolist(),
        "rotary_scale": scale,
        "rope_theta": text.rope_theta,
        "mrope_section": list(text.mrope_section),
        "max_positions": text.max_position_embeddings,
    }


def _tokens(
    folder: Path, config: ModelConfig, settings: PixelSettings | None
) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Return the ids of special tokens, and the rendered chat template if there is a tokenizer."""
    stop_ids, chat = read_stop_ids(folder, config.text.vocab_size), None
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        tokenizer = load_tokenizer(folder, config)
        processor = Processor(config, tokenizer, settings, extra_stop_ids=stop_ids)
        stop_ids = tuple(processor.stop_ids)
        chat = _chat(folder, tokenizer)
    tokens = {
        "image": config.image_token_id,
        "video": config.video_token_id,
        "vision_start": config.vision_start_token_id,
        "vision_end": config.vision_end_token_id,
        "end": sorted(stop_ids),
    }
    return tokens, chat


def _chat(folder: Path, tokenizer: Any) -> dict[str, str]:
    """Render the chat template for one turn of the user, with an image and without."""
    text = {"type": "text", "text": QUESTION}
    contents = {"with_image": [{"type": "image"}, text], "text_only": [text]}
    rendered = {
        name: render_chat(
            tokenizer, [{"role": "user", "content": content}], add_generation_prompt=True
        )
        for name, content in contents.items()
    }
    file = read_chat_template(folder).file
    return {"file": file.relative_to(folder).as_posix(), **rendered}
