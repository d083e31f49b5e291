"""Typed view of a Qwen-VL `config.json`.

Published checkpoints use two generations of the file: flat (text fields at the top level,
`rope_scaling`, `torch_dtype`) and nested (`text_config`, `rope_parameters`, `dtype`). Both become
one frozen `ModelConfig`. `raw` holds the unchanged dictionary, because written checkpoints keep the
source's form. Missing fields take the defaults of the two published configurations.

Reading a config does not import torch, so that an unusable one is refused at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..common.json_files import read_json
from ..common.validation import parse
from .config_fields import Qwen2VisionSection, Qwen25VisionSection, TextSection, TokenSection

if TYPE_CHECKING:
    import torch

FILE = "config.json"
REMEDY = "take the file from the original checkpoint"
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl")
LFS_POINTER = b"version https://git-lfs"
LARGEST_JSON = 2**28  # bytes; the largest published files, tokenizers, have 2**25
DTYPES = ("float32", "float16", "bfloat16")


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
    spatial_merge_size: int = 2  # patches per side of one token
    window_size: int = 0  # pixels; 0: full attention in every block
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
        """Number of patches that the merger joins into one token."""
        return self.spatial_merge_size**2

    @property
    def patch_dim(self) -> int:
        """Length of a flattened patch: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def pixel_factor(self) -> int:
        """Divisor of the image sides, in pixels."""
        return self.patch_size * self.spatial_merge_size

    @property
    def is_windowed(self) -> bool:
        """Whether some blocks use window attention."""
        return self.window_size > 0

    def has_full_attention(self, index: int) -> bool:
        """Tell whether block `index` attends to the whole frame."""
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
    """Sizes of a Qwen-VL model: vision tower, decoder, and the ids of the vision tokens."""

    family: str  # one of MODEL_TYPES
    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    dtype_name: str | None  # of the stored parameters, one of `DTYPES`; None: not in the file
    raw: Mapping[str, Any] = field(repr=False, compare=False)  # the unchanged config.json

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the stored parameters; None: not in the file."""
        import torch

        return None if self.dtype_name is None else getattr(torch, self.dtype_name)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read either generation of `config.json`.

        Raises:
            ValueError: `model_type` is unknown, or a field has a value that is not supported.
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
                f"config.json: the vision tower has {vision.out_hidden_size} output features, but "
                f"the decoder's hidden_size is {text.hidden_size}; both must be equal"
            )
        return cls(
            family=family,
            vision=vision,
            text=text,
            **_token_ids(raw, text.vocab_size),
            dtype_name=_dtype_name(raw, text_raw),
            raw=raw,
        )

    @classmethod
    def from_folder(cls, path: str | Path) -> ModelConfig:
        """Read `config.json` of a checkpoint folder.

        Raises:
            FileNotFoundError: there is no `config.json`.
            ValueError: the file is not a JSON object, or see `from_dict`.
        """
        return cls.from_dict(read_checkpoint_json(Path(path) / "config.json"))


def read_checkpoint_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a checkpoint.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a JSON object, is a Git LFS pointer, or exceeds `LARGEST_JSON`.
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
    """Check that a file is not a Git LFS pointer, which takes its place until it is fetched.

    Raises:
        ValueError: it is one.
    """
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(
                f"{path}: a Git LFS pointer instead of the file; run `git lfs pull` in its folder"
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
    # Some nested files have the flag only inside text_config, and a default of false outside.
    return bool(raw.get("tie_word_embeddings")) or bool(text_raw.get("tie_word_embeddings"))


def _dtype_name(raw: Mapping[str, Any], text_raw: Mapping[str, Any]) -> str | None:
    for source in (raw, text_raw):
        name = source.get("dtype", source.get("torch_dtype"))
        if name is not None:
            name = str(name).removeprefix("torch.")
            if name not in DTYPES:
                raise ValueError(
                    f"config.json: dtype {name!r} is not supported; allowed: {', '.join(DTYPES)}"
                )
            return name
    return None
