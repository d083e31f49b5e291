"""Typed view of a Qwen-VL `config.json`.

Checkpoints use two generations of the file: flat (text fields at the top level, `rope_scaling`,
`torch_dtype`) and nested (`text_config`, `rope_parameters`, `dtype`); files of Qwen3-VL are nested.
Both become one frozen `ModelConfig`. `raw` holds the unchanged dictionary, because written
checkpoints keep the source's form. Missing fields take the defaults of transformers, which leaves
out the fields that equal them.

Reading a config does not import torch, so that an unusable one is refused at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.json_files import read_json
from ..common.validation import parse
from .config_fields import (
    Qwen2TextSection,
    Qwen2VisionSection,
    Qwen3MoeTextSection,
    Qwen3TextSection,
    Qwen3VisionSection,
    Qwen25VisionSection,
    TokenSection,
)
from .sizes import ExpertSizes, TextConfig, VisionConfig

if TYPE_CHECKING:
    import torch

__all__ = ["ModelConfig", "TextConfig", "VisionConfig", "read_checkpoint_json", "refuse_pointer"]

FILE = "config.json"
REMEDY = "take the file from the original checkpoint"
MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
QWEN3 = ("qwen3_vl", "qwen3_vl_moe")
LFS_POINTER = b"version https://git-lfs"
LARGEST_JSON = 2**28  # bytes; the largest published files, tokenizers, have 2**25
DTYPES = ("float32", "float16", "bfloat16")


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
                f"{', '.join(MODEL_TYPES)}; choose a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint"
            )
        vision = _vision(family, raw.get("vision_config"))
        nested = raw.get("text_config")
        text_raw: Mapping[str, Any] = nested if isinstance(nested, Mapping) else raw
        text = _qwen3_text(family, raw) if family in QWEN3 else _qwen2_text(raw, text_raw)
        if vision.out_hidden_size != text.hidden_size:
            raise ValueError(
                f"config.json: the vision tower has {vision.out_hidden_size} output features, but "
                f"the decoder's hidden_size is {text.hidden_size}; both must be equal"
            )
        if len(vision.deepstack_visual_indexes) > text.num_hidden_layers:
            raise ValueError(
                f"config.json: {len(vision.deepstack_visual_indexes)} deepstack_visual_indexes for "
                f"{text.num_hidden_layers} decoder layers; allowed: one per layer at most; {REMEDY}"
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
    if family in QWEN3:
        newer = parse(Qwen3VisionSection, raw, FILE, "vision_config", remedy=REMEDY)
        return VisionConfig(**newer.model_dump(), norm="layer", separate_frames=True)
    section = parse(Qwen25VisionSection, raw, FILE, "vision_config", remedy=REMEDY)
    return VisionConfig(**section.model_dump(), norm="rms")


def _qwen2_text(raw: Mapping[str, Any], text_raw: Mapping[str, Any]) -> TextConfig:
    at = "" if text_raw is raw else "text_config"
    section = parse(Qwen2TextSection, text_raw, FILE, at, remedy=REMEDY)
    heads = section.num_attention_heads
    head_dim = section.head_dim or section.hidden_size // heads
    if head_dim * heads != section.hidden_size:
        raise ValueError(
            f"config.json: hidden_size {section.hidden_size} is not num_attention_heads "
            f"{heads} x head_dim {head_dim}; correct one of them"
        )
    # Some nested files have the flag only inside text_config, and a default of false outside.
    tied = bool(raw.get("tie_word_embeddings")) or bool(text_raw.get("tie_word_embeddings"))
    return TextConfig(
        **section.common_sizes(section.rope), head_dim=head_dim, tie_word_embeddings=tied
    )


def _qwen3_text(family: str, raw: Mapping[str, Any]) -> TextConfig:
    form = Qwen3MoeTextSection if family == "qwen3_vl_moe" else Qwen3TextSection
    section = parse(form, raw.get("text_config"), FILE, "text_config", remedy=REMEDY)
    experts = None
    if isinstance(section, Qwen3MoeTextSection):
        experts = ExpertSizes(
            section.num_experts,
            section.num_experts_per_tok,
            section.moe_intermediate_size,
            input_major=_input_major(raw),
        )
    return TextConfig(
        **section.common_sizes(section.rope),
        head_dim=section.head_dim or section.hidden_size // section.num_attention_heads,
        # Only the flag at the top level: that of text_config is a default which does not apply.
        tie_word_embeddings=bool(raw.get("tie_word_embeddings")),
        qkv_bias=False,
        qk_norm=True,
        yarn=section.rope.yarn,
        experts=experts,
    )


def _input_major(raw: Mapping[str, Any]) -> bool:
    """Tell the orientation of the tensors of all experts, by the library that saved them.

    Shapes cannot tell: with hidden_size = 2 x moe_intermediate_size both orientations have one.
    Published files (transformers 4) hold `[experts, in_features, out_features]`; those of
    transformers 5.2 and later `[experts, out_features, in_features]`. (5.0 and 5.1 write the
    weights of each expert under names of their own.)

    Raises:
        ValueError: the version cannot be read.
    """
    version = raw.get("transformers_version")
    if version is None:
        return True
    major = str(version).partition(".")[0]
    if not major.isdecimal():
        raise ValueError(
            f"{FILE}: transformers_version is {version!r}; allowed: a version such as 4.57.0, "
            f"which tells the orientation of the experts' weights; {REMEDY}"
        )
    return int(major) < 5


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
