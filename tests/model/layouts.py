"""Checkpoint folders in the layouts in which models are published, saved and exported.

All are made of the built-in model's files. What differs is which file holds the chat template, the
settings of images and the tokens, and under which keys. Bounds of images are BOUNDS wherever they
count, and others in files that do not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlpress.model.loading import resolve_model

TINY = resolve_model("tiny")
TEMPLATE = (TINY / "chat_template.jinja").read_text()
# How exports of a text model's trainer join messages: parts of a message make it fail.
TEXT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content "
    "+ '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
BOUNDS = (56 * 56, 224 * 224)
OTHER_BOUNDS = (56 * 56, 12845056)

Layout = Callable[[Path], object]


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def start(folder: Path) -> list[dict[str, Any]]:
    """The built-in model's config, weights and tokenizer.json; gives its added tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"):
        os.link(TINY / name, folder / name) if _same_disk(folder) else _copy(folder, name)
    added: list[dict[str, Any]] = read(folder, "tokenizer.json")["added_tokens"]
    return added


def _same_disk(folder: Path) -> bool:
    return folder.stat().st_dev == TINY.stat().st_dev


def _copy(folder: Path, name: str) -> None:
    (folder / name).write_bytes((TINY / name).read_bytes())


def change(folder: Path, name: str, **fields: Any) -> None:
    """Set fields of a JSON file; what was linked is written anew."""
    content = read(folder, name) | fields
    (folder / name).unlink()
    write_json(folder / name, content)


def tokenizer_config(folder: Path, template: object = None, **fields: Any) -> None:
    """tokenizer_config.json as Qwen's models have it."""
    added = read(TINY, "tokenizer.json")["added_tokens"]
    content: dict[str, Any] = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: token[key] for key in token if key != "id"} for token in added
        },
        "additional_special_tokens": [token["content"] for token in added[1:]],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    if template is not None:
        content["chat_template"] = template
    write_json(folder / "tokenizer_config.json", content | fields)


def vocabulary(folder: Path) -> None:
    """vocab.json and merges.txt beside tokenizer.json."""
    model = read(TINY, "tokenizer.json")["model"]
    write_json(folder / "vocab.json", model["vocab"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def tokens(folder: Path) -> None:
    """added_tokens.json and special_tokens_map.json, which older libraries write."""
    added = read(TINY, "tokenizer.json")["added_tokens"]
    write_json(folder / "added_tokens.json", {token["content"]: token["id"] for token in added})
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    special = {key: {"content": token, **flags} for key, token in named.items()}
    names = {"additional_special_tokens": [token["content"] for token in added[1:]]}
    write_json(folder / "special_tokens_map.json", names | special)


def image_settings(bounds: tuple[int, int], *, pixels: bool, size: object) -> dict[str, Any]:
    """Settings of images.

    Args:
        bounds: Least and most pixels.
        pixels: Whether they are there as `min_pixels` and `max_pixels`.
        size: Whether, and under which keys, they are there as `size`.
    """
    published = read(TINY, "preprocessor_config.json")
    settings = {key: published[key] for key in published if key not in ("min_pixels", "max_pixels")}
    if pixels:
        settings |= {"min_pixels": bounds[0], "max_pixels": bounds[1]}
    if isinstance(size, tuple):
        steps = ("do_convert_rgb", "do_normalize", "do_rescale", "do_resize")
        settings |= {"size": dict(zip(size, bounds, strict=True)), **dict.fromkeys(steps, True)}
        settings |= {"resample": 3, "rescale_factor": 1 / 255}
    return settings


EDGES = ("shortest_edge", "longest_edge")


def preprocessor(folder: Path, settings: dict[str, Any], **fields: Any) -> None:
    write_json(folder / "preprocessor_config.json", settings | fields)


def qwen2_vl(folder: Path) -> None:
    start(folder)
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": 256, "num_heads": 4, "mlp_ratio": 4}
    vision |= {"in_chans": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    change(folder, "config.json", model_type="qwen2_vl", vision_config=vision)
    vocabulary(folder)
    tokenizer_config(folder, TEMPLATE)
    write_json(folder / "chat_template.json", {"chat_template": TEMPLATE})
    settings = image_settings(BOUNDS, pixels=True, size=None)
    preprocessor(folder, settings, processor_class="Qwen2VLProcessor")


def qwen2_5_vl(folder: Path) -> None:
    start(folder)
    vocabulary(folder)
    tokenizer_config(folder, TEXT_TEMPLATE)
    write_json(folder / "chat_template.json", {"chat_template": TEMPLATE})
    preprocessor(folder, image_settings(BOUNDS, pixels=True, size=None))


def saved_by_4_45(folder: Path) -> None:
    start(folder)
    vocabulary(folder)
    tokens(folder)
    tokenizer_config(folder, TEMPLATE, padding_side="left")
    write_json(folder / "chat_template.json", {"chat_template": TEMPLATE})
    size = ("min_pixels", "max_pixels")
    preprocessor(folder, image_settings(BOUNDS, pixels=True, size=size))


def saved_by_4_49(folder: Path) -> None:
    saved_by_4_45(folder)
    tokenizer_config(folder, TEXT_TEMPLATE, extra_special_tokens={})
    preprocessor(folder, image_settings(BOUNDS, pixels=True, size=EDGES))


def saved_by_4_52(folder: Path) -> None:
    start(folder)
    vocabulary(folder)
    tokens(folder)
    nest_config(folder, flat_too=True)
    tokenizer_config(folder, extra_special_tokens={}, processor_class="Qwen2_5_VLProcessor")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    empty = ("crop_size", "device", "disable_grouping", "do_center_crop", "input_data_format")
    fields: dict[str, Any] = dict.fromkeys((*empty, "do_pad", "pad_size", "return_tensors"))
    fields |= {"data_format": "channels_first", "default_to_square": True}
    settings = image_settings(BOUNDS, pixels=True, size=EDGES)
    preprocessor(folder, settings, **fields, image_processor_type="Qwen2VLImageProcessorFast")
    video = settings | {"video_processor_type": "Qwen2VLVideoProcessor", "max_frames": 768}
    write_json(folder / "video_preprocessor_config.json", video)


def saved_by_5(folder: Path) -> None:
    start(folder)
    nest_config(folder, flat_too=False)
    names = [token["content"] for token in read(folder, "tokenizer.json")["added_tokens"]]
    settings = {
        "backend": "tokenizers",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "extra_special_tokens": names[1:],
        "is_local": True,
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "processor_class": "Qwen2_5_VLProcessor",
        "tokenizer_class": "Qwen2Tokenizer",
    }
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    image = image_settings(BOUNDS, pixels=False, size=EDGES)
    video = image_settings(OTHER_BOUNDS, pixels=False, size=EDGES)
    content = {"image_processor": image, "processor_class": "Qwen2_5_VLProcessor"}
    content["video_processor"] = video | {"video_processor_type": "Qwen2VLVideoProcessor"}
    write_json(folder / "processor_config.json", content)


def saved_by_5_over_older_files(folder: Path) -> None:
    saved_by_5(folder)
    vocabulary(folder)
    tokens(folder)
    preprocessor(folder, image_settings(OTHER_BOUNDS, pixels=True, size=None))


def llama_factory(folder: Path) -> None:
    saved_by_4_49(folder)
    tokenizer_config(folder, TEXT_TEMPLATE, padding_side="right", split_special_tokens=False)
    (folder / "Modelfile").write_text("FROM .\n")


def ms_swift(folder: Path) -> None:
    saved_by_4_52(folder)
    (folder / "chat_template.jinja").unlink()
    tokenizer_config(folder, TEXT_TEMPLATE)
    write_json(folder / "chat_template.json", {"chat_template": TEMPLATE})
    write_json(folder / "args.json", {"model_type": "qwen2_5_vl", "template": "qwen2_5_vl"})
    write_json(folder / "additional_config.json", {"lora_dtype": None, "lorap_lr_ratio": None})


def unsloth(folder: Path) -> None:
    saved_by_4_52(folder)
    tokenizer_config(folder, TEMPLATE, pad_token="<|vision_pad|>", padding_side="left")
    write_json(folder / "processor_config.json", {"processor_class": "Qwen2_5_VLProcessor"})


def vocabulary_files_only(folder: Path) -> None:
    qwen2_5_vl(folder)
    (folder / "tokenizer.json").unlink()


def vocabulary_files_and_added_tokens(folder: Path) -> None:
    vocabulary_files_only(folder)
    tokens(folder)
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}
    write_json(folder / "tokenizer_config.json", settings)


def tokenizer_json_only(folder: Path) -> None:
    start(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    preprocessor(folder, image_settings(BOUNDS, pixels=False, size=EDGES))


def named_templates(folder: Path) -> None:
    qwen2_5_vl(folder)
    (folder / "chat_template.json").unlink()
    named = {"default": TEMPLATE, "tool_use": TEXT_TEMPLATE}
    listed = [{"name": name, "template": template} for name, template in named.items()]
    tokenizer_config(folder, listed)


def named_templates_in_files(folder: Path) -> None:
    saved_by_5(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TEXT_TEMPLATE)


def template_in_processor_config(folder: Path) -> None:
    saved_by_5(folder)
    (folder / "chat_template.jinja").write_text(TEXT_TEMPLATE)
    change(folder, "processor_config.json", chat_template=TEMPLATE)


def tokens_added(folder: Path) -> None:
    """A fine-tune whose embedding was padded for five tokens of its own."""
    saved_by_4_49(folder)
    change(folder, "config.json", vocab_size=1344)
    content = read(folder, "tokenizer.json")
    last = content["added_tokens"][-1]
    content["added_tokens"] += [
        last | {"id": 1280 + index, "content": f"<|act_{index}|>"} for index in range(5)
    ]
    change(folder, "tokenizer.json", added_tokens=content["added_tokens"])


def nest_config(folder: Path, *, flat_too: bool) -> None:
    """The decoder's fields in `text_config`, and with `flat_too` beside it as well."""
    flat = read(folder, "config.json")
    outer = ("architectures", "model_type", "vision_config", "tie_word_embeddings")
    ids = tuple(key for key in flat if key.endswith("_token_id") and key[:3] not in ("bos", "eos"))
    text = {key: value for key, value in flat.items() if key not in (*outer, *ids)}
    if not flat_too:
        rope = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
        text["rope_parameters"] = rope | {"rope_type": "default"}
        text["dtype"] = text.pop("torch_dtype")
    nested = {key: flat[key] for key in (*outer, *ids)}
    nested["text_config"] = text | {"model_type": "qwen2_5_vl_text"}
    (folder / "config.json").unlink()
    write_json(folder / "config.json", (flat if flat_too else {}) | nested)


LAYOUTS: tuple[Layout, ...] = (
    qwen2_vl,
    qwen2_5_vl,
    saved_by_4_45,
    saved_by_4_49,
    saved_by_4_52,
    saved_by_5,
    saved_by_5_over_older_files,
    llama_factory,
    ms_swift,
    unsloth,
    vocabulary_files_only,
    vocabulary_files_and_added_tokens,
    tokenizer_json_only,
    named_templates,
    named_templates_in_files,
    template_in_processor_config,
    tokens_added,
)
