"""Differences between llama.cpp's computation and the model's: what is refused and what is noted.

llama.cpp has some sizes in its code that a file cannot state. A model for which it would compute
something else is refused; differences that depend on the input are notes of the export.
"""

from __future__ import annotations

from collections.abc import Iterator

from ....model.config import ModelConfig
from ....model.processing.pixel_settings import PixelSettings
from ....model.rope import decoder_frequencies
from ..source import ExportSource
from .text import full_attention_interval
from .tokenizer import normalizes, tokenizer_keys
from .vision import PROJECTORS, window_pattern

WINDOW = 112
"""Side of the attention windows of Qwen2.5-VL in pixels."""
TOKENS = (8, 4096)
"""Least and most tokens of an image."""
LARGEST_ANGLE = 0.2
"""Rotation in radians at the end of the context that counts as none: `cos` is then above 0.98."""


def why_not_model(source: ExportSource) -> str | None:
    """Return why llama.cpp would compute something else than the model; None if it does not.

    Reads no weights.
    """
    config = source.config
    pixels = PixelSettings.from_folder(source.folder, config.vision)
    reasons = (
        *_vision_reasons(config),
        *_text_reasons(config),
        *(
            [f"rescale_factor is {pixels.rescale_factor:g}; llama.cpp divides pixels by 255"]
            if pixels.rescale_factor != PixelSettings.rescale_factor
            else []
        ),
    )
    if reasons:
        return reasons[0]
    try:
        tokenizer_keys(source.folder, config)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return None


def _vision_reasons(config: ModelConfig) -> Iterator[str]:
    vision, projector = config.vision, PROJECTORS[config.family]
    fixed = {"spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}
    for name, value in fixed.items():
        if (given := getattr(vision, name)) != value:
            yield f"{name} is {given}; llama.cpp's vision tower has {value}"
    if projector == "qwen2.5vl_merger":
        if vision.is_windowed and vision.window_size != WINDOW:
            yield (
                f"window_size is {vision.window_size}; llama.cpp has windows of {WINDOW} pixels "
                "for every model, so it would compute other features; use another engine"
            )
        try:
            window_pattern(config)
        except ValueError as error:
            yield str(error)
    if projector != "qwen3vl_merger" and vision.intermediate_size == vision.hidden_size:
        yield (
            f"the tower's intermediate_size and hidden_size are both {vision.hidden_size}; "
            "llama.cpp exchanges the layers of such MLPs"
        )


def _text_reasons(config: ModelConfig) -> Iterator[str]:
    text = config.text
    if text.yarn is not None:
        yield (
            "config.json has YaRN scaling of positions, which is not exported; remove it from a "
            "copy of the checkpoint and give llama.cpp --rope-scaling yarn"
        )
    angle = unplaced_angle(config)
    if angle > LARGEST_ANGLE:
        yield (
            f"mrope_section {list(text.mrope_section)} gives frequencies to time that llama.cpp "
            f"leaves without a position; they rotate by up to {angle:.1f} within the context, "
            f"allowed: {LARGEST_ANGLE}; use another engine"
        )
    if (linear := text.linear_attention) is not None:
        if linear.key_head_dim != linear.value_head_dim:
            yield (
                f"linear_key_head_dim is {linear.key_head_dim} and linear_value_head_dim "
                f"{linear.value_head_dim}; llama.cpp has one size for both"
            )
        try:
            full_attention_interval(config)
        except ValueError as error:
            yield str(error)


def unplaced_angle(config: ModelConfig) -> float:
    """Return the largest angle within the context of a frequency without a position in llama.cpp.

    Interleaved sections give every third frequency to height and width and all others to time;
    llama.cpp gives time those divisible by three, and frequencies that no axis has turn by zero.
    """
    if PROJECTORS[config.family] != "qwen3vl_merger":
        return 0.0
    time, height, width = config.text.mrope_section
    limits = {0: 3 * time, 1: 3 * height, 2: 3 * width}
    frequencies, _ = decoder_frequencies(config.text)
    unplaced = [
        float(frequency)
        for index, frequency in enumerate(frequencies)
        if index >= limits[index % 3]
    ]
    return max(unplaced, default=0.0) * config.text.max_position_embeddings


def notes(source: ExportSource) -> list[str]:
    """Return differences that depend on the input, and what the files do not hold."""
    config = source.config
    return [*_input_notes(source), *_contents_notes(source), *_position_notes(config)]


def _input_notes(source: ExportSource) -> Iterator[str]:
    config = source.config
    factor = config.vision.pixel_factor
    least, most = TOKENS
    yield (
        f"llama.cpp gives images {least} to {most} tokens and pads them instead of stretching; "
        f"images whose sides are multiples of {factor} pixels within these bounds are not resized"
    )
    pixels = PixelSettings.from_folder(source.folder, config.vision)
    if pixels.min_pixels > least * factor**2 or pixels.max_pixels < most * factor**2:
        yield (
            f"the pixel bounds {pixels.min_pixels} to {pixels.max_pixels} of the checkpoint are "
            "not in the file; give llama.cpp --image-min-tokens and --image-max-tokens "
            f"({pixels.min_pixels // factor**2} and {pixels.max_pixels // factor**2})"
        )
    if normalizes(source.folder, config):
        yield "llama.cpp does not normalize texts as the tokenizer of the checkpoint does (NFC)"


def _contents_notes(source: ExportSource) -> Iterator[str]:
    if source.schemes:
        yield "llama.cpp rounds activations to int8 in blocks of 32 where weights are quantized"
    rounded = sorted({s.label for s in source.schemes.values() if s.activations != "none"})
    if rounded:
        yield f"GGUF cannot state the activations of {', '.join(rounded)}; the weights are exact"
    if source.quantized is not None and source.quantized.quantizes_cache:
        yield "the scales of the FP8 KV cache are not in the file; --cache-type-k q8_0 is similar"
    if source.quantized is not None and source.quantized.reduction is not None:
        yield "llama.cpp drops no visual tokens; the rule of the checkpoint is not in the file"
    if source.config.text.mtp_layers:
        yield "the layers for multi-token prediction (mtp.*) are not in the file"


def _position_notes(config: ModelConfig) -> Iterator[str]:
    if PROJECTORS[config.family] != "qwen3vl_merger":
        return
    side = config.vision.position_side * config.vision.patch_size
    yield (
        "llama.cpp before July 2026 interpolates the position table without aligned corners; "
        f"images of {side} x {side} pixels do not depend on it"
    )
    if (angle := unplaced_angle(config)) > 0:
        yield (
            "llama.cpp leaves the slowest frequencies of time without a position; at the end of "
            f"the context they rotate by {angle:.2f}"
        )
