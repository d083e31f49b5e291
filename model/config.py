"""Typed view of a Qwen-VL `config.json`.

Checkpoints in the wild come in two generations: flat (text fields at the top level, `rope_scaling`,
`torch_dtype`) and nested (`text_config`, `rope_parameters`, `dtype`). Both become one frozen
`ModelConfig`; the dictionary as read stays in `raw`, because what is written later must keep the
source's form. Fields that a file leaves out take the defaults of the two published configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..common.json_files import read_json
from ..common.validation import parse
from .config_fields import Qwen2VisionSection, Qwen25VisionSection, TextSection, TokenSection

FILE = "config.json"
REMEDY = "take the file from the original checkpoint"
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl")
LFS_POINTER = b"version https://git-lfs"
LARGEST_JSON = 2**28  # bytes; the largest there are, tokenizers, have 2**25
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower; `hidden_size` is the width inside its blocks."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int  # width after the merger, equal to the decoder's hidden size
    norm: Literal["layer", "rms"]
    hidden_act: Literal["quick_gelu", "silu"]
    in_channels: int = 3
    patch_size: int = 14  # pixels
    temporal_patch_size: int = 2  # frames
    spatial_merge_size: int = 2  # patches per side that become one token
    window_size: int = 0  # pixels; 0: every block sees the whole frame
    fullatt_block_indexes: tuple[int, ...] = ()
    tokens_per_second: int = 0  # 0: temporal position ids count patches instead of seconds

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 4:
            raise ValueError(
                f"config.json: vision width {self.hidden_size} does not split into "
                f"{self.num_heads} heads of a size divisible by 4; correct num_heads"
            )
        merged = self.patch_size * self.spatial_merge_size
        if self.window_size and self.window_size < merged:
            raise ValueError(
                f"config.json: window_size {self.window_size} is smaller than one merged patch "
                f"({merged} pixels); allowed: 0 or at least {merged}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def merge_unit(self) -> int:
        """Patches that the merger joins into one token."""
        return self.spatial_merge_size**2

    @property
    def patch_dim(self) -> int:
        """Values in one flattened patch: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def pixel_factor(self) -> int:
        """Picture sides must be multiples of this many pixels."""
        return self.patch_size * self.spatial_merge_size

    @property
    def is_windowed(self) -> bool:
        """Whether some blocks attend inside windows only."""
        return self.window_size > 0

    def has_full_attention(self, index: int) -> bool:
        """Whether block `index` attends over whole frames."""
        return not self.is_windowed or index in self.fullatt_block_indexes


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]  # rotary pairs for time, height, width
    tie_word_embeddings: bool
    max_position_embeddings: int = 32768

    def __post_init__(self) -> None:
        if self.head_dim * self.num_attention_heads != self.hidden_size:
            raise ValueError(
                f"config.json: hidden_size {self.hidden_size} is not num_attention_heads "
                f"{self.num_attention_heads} x head_dim {self.head_dim}; correct one of them"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"config.json: {self.num_attention_heads} attention heads are not a multiple of "
                f"{self.num_key_value_heads} key/value heads; correct num_key_value_heads"
            )
        if sum(self.mrope_section) * 2 != self.head_dim:
            raise ValueError(
                f"config.json: mrope_section {list(self.mrope_section)} adds up to "
                f"{sum(self.mrope_section)}; it must be half of head_dim {self.head_dim}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """A Qwen-VL model: vision tower, decoder and the tokens that join them."""

    family: str  # one of MODEL_TYPES
    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    dtype: torch.dtype | None  # what the checkpoint says it is stored in
    raw: Mapping[str, Any] = field(repr=False, compare=False)  # config.json as read

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read either generation of `config.json`.

        Raises:
            ValueError: `model_type` is unknown, or a field has a value this model cannot have.
        """
        family = raw.get("model_type")
        if family not in MODEL_TYPES:
            raise ValueError(
                f"config.json: model_type {family!r} is not supported; allowed: "
                f"{', '.join(MODEL_TYPES)}; choose a Qwen2-VL or Qwen2.5-VL checkpoint"
            )
        vision = _vision(family, raw.get("vision_config"))
        nested = raw.get("text_config")
        text_raw: Mapping[str, Any] = nested if isinstance(nested, Mapping) else raw
        at = "text_config" if isinstance(nested, Mapping) else ""
        section = parse(TextSection, text_raw, FILE, at, remedy=REMEDY)
        text = _text(section, tied=_is_tied(raw, text_raw))
        if vision.out_hidden_size != text.hidden_size:
            raise ValueError(
                f"config.json: the vision tower ends in {vision.out_hidden_size} features and the "
                f"decoder is {text.hidden_size} wide; both must be equal"
            )
        return cls(
            family=family,
            vision=vision,
            text=text,
            **_token_ids(raw, text.vocab_size),
            dtype=_dtype(raw, text_raw),
            raw=raw,
        )

    @classmethod
    def from_folder(cls, path: str | Path) -> ModelConfig:
        """Read `config.json` of a checkpoint folder.

        Raises:
            FileNotFoundError: There is no `config.json`.
            ValueError: The file is not a JSON object, or `from_dict` refuses it.
        """
        return cls.from_dict(read_checkpoint_json(Path(path) / "config.json"))


def read_checkpoint_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from `path`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file does not hold a JSON object, or is far larger than any of a model.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent}: no {path.name}; give a folder with a complete checkpoint"
        )
    refuse_pointer(path)
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(f"{path}: {size} bytes; allowed: {LARGEST_JSON}; fetch the file again")
    return read_json(path, "fetch the file again")


def refuse_pointer(path: Path) -> None:
    """Refuse a file that Git LFS has not fetched yet.

    Raises:
        ValueError: It holds a pointer.
    """
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(
                f"{path}: a Git LFS pointer in place of the file; run `git lfs pull` in its folder"
            )


def _vision(family: str, raw: object) -> VisionConfig:
    if family == "qwen2_vl":
        older = parse(Qwen2VisionSection, raw, FILE, "vision_config", remedy=REMEDY)
        sizes = older.model_dump(exclude={"mlp_ratio"})
        width = int(older.hidden_size * older.mlp_ratio)
        return VisionConfig(**sizes, intermediate_size=width, norm="layer")
    section = parse(Qwen25VisionSection, raw, FILE, "vision_config", remedy=REMEDY)
    return VisionConfig(**section.model_dump(), norm="rms")


def _text(section: TextSection, *, tied: bool) -> TextConfig:
    heads = section.num_attention_heads
    return TextConfig(
        vocab_size=section.vocab_size,
        hidden_size=section.hidden_size,
        intermediate_size=section.intermediate_size,
        num_hidden_layers=section.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=section.num_key_value_heads or heads,
        head_dim=section.head_dim or section.hidden_size // heads,
        rms_norm_eps=float(section.rms_norm_eps),
        rope_theta=float(section.rope_base),
        mrope_section=section.rope.mrope_section,
        tie_word_embeddings=tied,
        max_position_embeddings=section.max_position_embeddings,
    )


def _token_ids(raw: Mapping[str, Any], vocab_size: int) -> dict[str, int]:
    """Ids of the special tokens by field name, each below `vocab_size`."""
    ids: dict[str, int] = parse(TokenSection, raw, FILE, remedy=REMEDY).model_dump()
    for name, token in ids.items():
        if token >= vocab_size:
            raise ValueError(
                f"{FILE}: {name} is {token}; allowed: a whole number from 0 to {vocab_size - 1}, "
                f"the vocabulary's last; {REMEDY}"
            )
    return ids


def _is_tied(raw: Mapping[str, Any], text_raw: Mapping[str, Any]) -> bool:
    # Some nested files carry the flag only inside text_config, with a false default outside.
    return bool(raw.get("tie_word_embeddings")) or bool(text_raw.get("tie_word_embeddings"))


def _dtype(raw: Mapping[str, Any], text_raw: Mapping[str, Any]) -> torch.dtype | None:
    for source in (raw, text_raw):
        name = source.get("dtype", source.get("torch_dtype"))
        if name is not None:
            name = str(name).removeprefix("torch.")
            if name not in DTYPES:
                raise ValueError(
                    f"config.json: dtype {name!r} is not supported; allowed: {', '.join(DTYPES)}"
                )
            return DTYPES[name]
    return None
