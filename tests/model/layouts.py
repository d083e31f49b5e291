"""Checkpoint folders as they are published and as training tools write them, made of `tiny`.

Folders differ by the tool that saved them: the files that contain the tokenizer, the chat template
and the image settings, whether config.json nests its text part, how tensors are named, and whether
a tied head is stored. Every part here is written in one of these forms; `LAYOUTS` puts them
together as publishers and tools do.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tiny_models import make_random_model, new_name

from vlpress.model.config import ModelConfig
from vlpress.model.loading import load_model, resolve_model
from vlpress.model.qwen_vl import QwenVL

Json = dict[str, Any]
TINY = resolve_model("tiny")
TEMPLATE = (TINY / "chat_template.jinja").read_text(encoding="utf-8")
TEXT_ONLY = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Not the defaults, so that settings from the wrong file, or from none, are seen.
BOUNDS = {"min_pixels": 28 * 28 * 3, "max_pixels": 28 * 28 * 20}
OTHER_BOUNDS = {"min_pixels": 28 * 28 * 30, "max_pixels": 28 * 28 * 90}
NORMALIZED = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
PATCHES = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
STEPS = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
}


@dataclass(frozen=True)
class Layout:
    """How each part of a folder is written."""

    config: Callable[[Json], Json]
    tokenizer: Callable[[Path], None]
    template: Callable[[Path], None]
    images: Callable[[Path], None]
    new_names: bool = False
    tied: bool = True
    stored_head: bool = False
    shards: int = 1
    family: str = "qwen2_5_vl"

    def write(self, folder: Path) -> QwenVL:
        """Write the folder; returns the saved model."""
        model, raw = source(self.family)
        raw = {**raw, "tie_word_embeddings": self.tied}
        write_json(folder / "config.json", self.config(raw))
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        if self.stored_head or not self.tied:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        if self.new_names:
            tensors = {new_name(name): tensor for name, tensor in tensors.items()}
        write_tensors(folder, tensors, self.shards)
        shutil.copyfile(TINY / "generation_config.json", folder / "generation_config.json")
        for write in (self.tokenizer, self.template, self.images):
            write(folder)
        return model


def source(family: str) -> tuple[QwenVL, Json]:
    """A model with tiny's vocabulary, and its config.json as it is published."""
    raw = json.loads((TINY / "config.json").read_text())
    if family == "qwen2_5_vl":
        return load_model("tiny", device="cpu"), raw
    raw |= {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": family}
    raw |= {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    raw |= {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}
    raw["vision_config"] = {
        "model_type": family,
        "depth": 2,
        "embed_dim": 64,
        "mlp_ratio": 4,
        "num_heads": 4,
        "in_chans": 3,
        "hidden_size": 128,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    }
    config = ModelConfig.from_dict(raw)
    return make_random_model(config=config, dtype=torch.bfloat16), raw


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


def merge_json(path: Path, value: Mapping[str, object]) -> None:
    """Add keys to a JSON file."""
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **value})


def write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


# config.json


def published_config(raw: Json) -> Json:
    return raw


def config_of_4_49(raw: Json) -> Json:
    """From 4.45 on: flat, and the type of the rotary embedding is written as default."""
    section = raw["rope_scaling"]["mrope_section"]
    scaling = {"mrope_section": section, "rope_type": "default", "type": "default"}
    return raw | {"rope_scaling": scaling, "sliding_window": 8192, "transformers_version": "4.49.0"}


def config_of_4_52(raw: Json) -> Json:
    """The text section nested, in addition to the same keys as before."""
    raw = config_of_4_49(raw)
    skipped = ("vision_config", "model_type", "transformers_version")
    text = {key: value for key, value in raw.items() if key not in skipped}
    text |= {
        "model_type": raw["model_type"] + "_text",
        "image_token_id": None,
        "video_token_id": None,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
    }
    vision = raw["vision_config"] | {"in_channels": 3, "initializer_range": 0.02}
    return raw | {"text_config": text, "vision_config": vision, "transformers_version": "4.52.4"}


def config_of_4_56(raw: Json) -> Json:
    """The text part nested alone."""
    raw = config_of_4_52(raw)
    kept = ("architectures", "model_type", "text_config", "vision_config", "tie_word_embeddings")
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    own = {key: raw[key] for key in (*kept, *ids)}
    return own | {"dtype": raw["torch_dtype"], "transformers_version": "4.56.1"}


def config_of_5(raw: Json) -> Json:
    """As the installed transformers writes it."""
    kinds = {
        "qwen2_vl": transformers.Qwen2VLConfig,
        "qwen2_5_vl": transformers.Qwen2_5_VLConfig,
    }
    return dict(json.loads(kinds[raw["model_type"]].from_dict(raw).to_json_string()))


# The tokenizer


def special_tokens() -> list[Json]:
    tokens = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    return list(tokens)


def tokenizer_settings() -> Json:
    """The published tokenizer_config.json, without a chat template."""
    added = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in special_tokens()
    }
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [token["content"] for token in special_tokens()][1:],
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


def slow_files(folder: Path) -> None:
    """vocab.json, merges.txt and tokenizer_config.json."""
    model = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    write_json(folder / "vocab.json", model["vocab"])
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    text = "#version: 0.2\n" + "".join(f"{pair}\n" for pair in merges)
    (folder / "merges.txt").write_text(text, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", tokenizer_settings())


def published_tokenizer(folder: Path) -> None:
    slow_files(folder)
    shutil.copyfile(TINY / "tokenizer.json", folder / "tokenizer.json")


def tokenizer_of_4(folder: Path) -> None:
    """With the two further files that transformers 4 writes."""
    published_tokenizer(folder)
    merge_json(
        folder / "tokenizer_config.json",
        {"extra_special_tokens": {}, "processor_class": "Qwen2_5_VLProcessor"},
    )
    maps(folder)


def maps(folder: Path) -> None:
    ids = {token["content"]: token["id"] for token in special_tokens()}
    write_json(folder / "added_tokens.json", ids)
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    mapped: Json = {key: {"content": token, **plain} for key, token in named.items()}
    mapped["additional_special_tokens"] = list(ids)[1:]
    write_json(folder / "special_tokens_map.json", mapped)


def slow_tokenizer_of_4(folder: Path) -> None:
    """Saved with use_fast=False: no tokenizer.json."""
    slow_files(folder)
    maps(folder)


def first_tokenizer(folder: Path) -> None:
    """The ids of special tokens in added_tokens.json alone, as before `added_tokens_decoder`."""
    slow_tokenizer_of_4(folder)
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}
    write_json(folder / "tokenizer_config.json", settings)


def one_file(folder: Path) -> None:
    """tokenizer.json without tokenizer_config.json."""
    shutil.copyfile(TINY / "tokenizer.json", folder / "tokenizer.json")


def unsloth_tokenizer(folder: Path) -> None:
    tokenizer_of_4(folder)
    changes = {"pad_token": "<|vision_pad|>", "padding_side": "left"}
    merge_json(folder / "tokenizer_config.json", changes)


def tokenizer_of_5(folder: Path) -> None:
    """tokenizer.json alone holds the tokens."""
    shutil.copyfile(TINY / "tokenizer.json", folder / "tokenizer.json")
    settings = tokenizer_settings()
    for key in ("added_tokens_decoder", "additional_special_tokens"):
        del settings[key]
    extra = [token["content"] for token in special_tokens()][1:]
    settings |= {"backend": "tokenizers", "is_local": True, "extra_special_tokens": extra}
    settings |= {"processor_class": "Qwen2_5_VLProcessor"}
    write_json(folder / "tokenizer_config.json", settings)


def backend_tokenizer_of_5(folder: Path) -> None:
    tokenizer_of_5(folder)
    merge_json(folder / "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"})


# The chat template


def in_tokenizer_config(folder: Path, text: str = TEMPLATE) -> None:
    merge_json(folder / "tokenizer_config.json", {"chat_template": text})


def in_legacy_file(folder: Path, text: str = TEMPLATE) -> None:
    write_json(folder / "chat_template.json", {"chat_template": text})


def in_jinja_file(folder: Path, text: str = TEMPLATE) -> None:
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def in_both(folder: Path) -> None:
    in_tokenizer_config(folder)
    in_legacy_file(folder)


def text_only_in_tokenizer_config(folder: Path) -> None:
    in_tokenizer_config(folder, TEXT_ONLY)
    in_legacy_file(folder)


def text_only_in_jinja_file(folder: Path) -> None:
    in_jinja_file(folder, TEXT_ONLY)
    in_legacy_file(folder)


def named_in_tokenizer_config(folder: Path) -> None:
    named = (("tool_use", TEXT_ONLY), ("default", TEMPLATE))
    listed = [{"name": name, "template": text} for name, text in named]
    merge_json(folder / "tokenizer_config.json", {"chat_template": listed})


def named_in_files(folder: Path) -> None:
    in_jinja_file(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TEXT_ONLY)


# Image settings


def published_images(folder: Path, bounds: Mapping[str, int] = BOUNDS) -> None:
    kinds = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
    write_json(folder / "preprocessor_config.json", {**bounds, **PATCHES, **NORMALIZED, **kinds})


def edges(bounds: Mapping[str, int] = BOUNDS) -> Json:
    return {"shortest_edge": bounds["min_pixels"], "longest_edge": bounds["max_pixels"]}


def images_of_4_45(folder: Path) -> None:
    """The bounds twice, in `size` under names that later versions no longer take there."""
    published_images(folder)
    merge_json(folder / "preprocessor_config.json", {**STEPS, "size": BOUNDS})


def images_of_4_49(folder: Path) -> None:
    """The bounds twice; those in `size` stay the defaults where a run changed the others."""
    published_images(folder)
    size = {"shortest_edge": 3136, "longest_edge": 12845056}
    merge_json(folder / "preprocessor_config.json", {**STEPS, "size": size})


def images_of_4_52(folder: Path) -> None:
    """The fast processor, with keys that are not set, and a file for videos."""
    published_images(folder)
    unset = dict.fromkeys(("crop_size", "device", "do_center_crop", "input_data_format"))
    changes: Json = {
        **STEPS,
        **unset,
        "data_format": "channels_first",
        "default_to_square": True,
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "size": edges(),
    }
    merge_json(folder / "preprocessor_config.json", changes)
    videos = {**changes, **OTHER_BOUNDS, "size": edges(OTHER_BOUNDS)}
    videos |= {"video_processor_type": "Qwen2VLVideoProcessor"}
    del videos["image_processor_type"]
    write_json(folder / "video_preprocessor_config.json", videos)


def images_of_5(folder: Path) -> None:
    """Nested in processor_config.json, and no other file."""
    shared = {**STEPS, **PATCHES, **NORMALIZED}
    nested = {
        "image_processor": {
            **shared,
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": edges(),
        },
        "processor_class": "Qwen2_5_VLProcessor",
        "video_processor": {
            **shared,
            "size": edges(OTHER_BOUNDS),
            "video_processor_type": "Qwen2VLVideoProcessor",
        },
    }
    write_json(folder / "processor_config.json", nested)


def images_of_5_and_template(folder: Path) -> None:
    """A chat template among the settings of the processor, where it goes before all others."""
    images_of_5(folder)
    merge_json(folder / "processor_config.json", {"chat_template": TEMPLATE})


def images_of_5_and_older(folder: Path) -> None:
    """Saved by transformers 5 into a folder that had the older file."""
    published_images(folder, OTHER_BOUNDS)
    images_of_5(folder)


def images_and_plain_processor_config(folder: Path) -> None:
    """processor_config.json as transformers 4 wrote it: without image settings."""
    images_of_4_49(folder)
    write_json(folder / "processor_config.json", {"processor_class": "Qwen2_5_VLProcessor"})


LAYOUTS: dict[str, Layout] = {
    "Qwen2-VL": Layout(
        published_config, published_tokenizer, in_both, published_images, family="qwen2_vl"
    ),
    "Qwen2-VL untied, sharded": Layout(
        published_config,
        *(published_tokenizer, in_both, published_images),
        family="qwen2_vl",
        tied=False,
        shards=3,
    ),
    "Qwen2.5-VL-3B": Layout(
        published_config, published_tokenizer, in_both, published_images, shards=2
    ),
    "Qwen2.5-VL-7B, 32B, 72B": Layout(
        published_config,
        *(published_tokenizer, text_only_in_tokenizer_config, published_images),
        tied=False,
        shards=3,
    ),
    "transformers 4.45, Qwen2-VL": Layout(
        config_of_4_49, tokenizer_of_4, in_legacy_file, images_of_4_45, family="qwen2_vl"
    ),
    "transformers 4.49": Layout(
        config_of_4_49, tokenizer_of_4, in_legacy_file, images_of_4_49, stored_head=True
    ),
    "transformers 4.49, untied": Layout(
        config_of_4_49,
        *(tokenizer_of_4, text_only_in_tokenizer_config, images_of_4_49),
        tied=False,
        shards=2,
    ),
    "transformers 4.49, processor_config.json": Layout(
        config_of_4_49, tokenizer_of_4, in_both, images_and_plain_processor_config
    ),
    "transformers 4.52": Layout(
        config_of_4_52, tokenizer_of_4, in_jinja_file, images_of_4_52, new_names=True
    ),
    "transformers 4.52, old names, untied": Layout(
        config_of_4_52, tokenizer_of_4, in_jinja_file, images_of_4_52, tied=False, shards=2
    ),
    "transformers 4.52, the base's template left": Layout(
        config_of_4_52, tokenizer_of_4, text_only_in_jinja_file, images_of_4_52
    ),
    "transformers 4.56": Layout(
        config_of_4_56, tokenizer_of_4, in_jinja_file, images_of_4_52, new_names=True
    ),
    "transformers 5": Layout(config_of_5, tokenizer_of_5, in_jinja_file, images_of_5),
    "transformers 5, untied, new names": Layout(
        config_of_5,
        *(backend_tokenizer_of_5, in_jinja_file, images_of_5),
        new_names=True,
        tied=False,
        shards=2,
    ),
    "transformers 5, tied head stored": Layout(
        config_of_5, tokenizer_of_5, in_jinja_file, images_of_5, stored_head=True
    ),
    "transformers 5 over a published folder": Layout(
        config_of_5, published_tokenizer, in_both, images_of_5_and_older
    ),
    "transformers 5, Qwen2-VL": Layout(
        config_of_5, tokenizer_of_5, in_jinja_file, images_of_5, family="qwen2_vl"
    ),
    "ms-swift": Layout(
        config_of_4_49, tokenizer_of_4, in_both, images_of_4_49, tied=False, shards=2
    ),
    "LLaMA-Factory": Layout(
        config_of_4_49, tokenizer_of_4, in_tokenizer_config, images_of_4_49, shards=2
    ),
    "LLaMA-Factory, transformers 4.52": Layout(
        config_of_4_52, tokenizer_of_4, in_jinja_file, images_of_4_52, shards=2
    ),
    "Unsloth": Layout(
        config_of_4_52, unsloth_tokenizer, in_jinja_file, images_of_4_52, tied=False, shards=2
    ),
    "vocab.json and merges.txt only": Layout(
        published_config, slow_files, in_legacy_file, published_images
    ),
    "saved with use_fast=False": Layout(
        config_of_4_49, slow_tokenizer_of_4, in_both, images_of_4_49
    ),
    "added_tokens.json without added_tokens_decoder": Layout(
        config_of_4_49, first_tokenizer, in_legacy_file, images_of_4_49
    ),
    "tokenizer.json only": Layout(config_of_5, one_file, in_jinja_file, images_of_5),
    "named templates": Layout(
        config_of_4_49, tokenizer_of_4, named_in_tokenizer_config, images_of_4_49
    ),
    "named templates in files": Layout(config_of_5, tokenizer_of_5, named_in_files, images_of_5),
    "template in processor_config.json": Layout(
        config_of_5, tokenizer_of_5, text_only_in_jinja_file, images_of_5_and_template
    ),
}
"""By name; where a tool is named, the parts are in the forms that it writes."""
