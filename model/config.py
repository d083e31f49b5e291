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
from .config_fields import DEPTH, POSITIONS, VOCABULARY, WIDTH, Fields

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
        vision_raw = raw.get("vision_config")
        if not isinstance(vision_raw, Mapping):
            raise ValueError(
                "config.json: vision_config is missing or not an object; "
                "take the file from the original checkpoint"
            )
        nested = raw.get("text_config")
        text_raw: Mapping[str, Any] = nested if isinstance(nested, Mapping) else raw
        where = "text_config" if isinstance(nested, Mapping) else ""
        try:
            read_vision = _vision_qwen2 if family == "qwen2_vl" else _vision_qwen2_5
            vision = read_vision(vision_raw)
            text = _text(text_raw, where, tied=_is_tied(raw, text_raw))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"config.json: a field is missing or has the wrong type ({error}); "
                "take the file from the original checkpoint"
            ) from None
        if vision.out_hidden_size != text.hidden_size:
            raise ValueError(
                f"config.json: the vision tower ends in {vision.out_hidden_size} features and the "
                f"decoder is {text.hidden_size} wide; both must be equal"
            )
        fields, last = Fields(raw), text.vocab_size - 1
        return cls(
            family=family,
            vision=vision,
            text=text,
            image_token_id=fields.whole("image_token_id", 151655, least=0, most=last),
            video_token_id=fields.whole("video_token_id", 151656, least=0, most=last),
            vision_start_token_id=fields.whole("vision_start_token_id", 151652, least=0, most=last),
            vision_end_token_id=fields.whole("vision_end_token_id", 151653, least=0, most=last),
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


def _vision_qwen2(raw: Mapping[str, Any]) -> VisionConfig:
    fields = Fields(raw, "vision_config")
    hidden_size = fields.whole("embed_dim", 1280, most=WIDTH)
    _require_act("vision_config", raw.get("hidden_act", "quick_gelu"), "quick_gelu")
    return VisionConfig(
        depth=fields.whole("depth", 32, most=DEPTH),
        hidden_size=hidden_size,
        intermediate_size=int(hidden_size * fields.positive("mlp_ratio", 4, most=64)),
        num_heads=fields.whole("num_heads", 16, most=DEPTH),
        out_hidden_size=fields.whole("hidden_size", 3584, most=WIDTH),
        norm="layer",
        hidden_act="quick_gelu",
        **_patch_fields(fields, raw),
    )


def _vision_qwen2_5(raw: Mapping[str, Any]) -> VisionConfig:
    fields = Fields(raw, "vision_config")
    _require_act("vision_config", raw.get("hidden_act", "silu"), "silu")
    return VisionConfig(
        depth=fields.whole("depth", 32, most=DEPTH),
        hidden_size=fields.whole("hidden_size", 3584, most=WIDTH),
        intermediate_size=fields.whole("intermediate_size", 3420, most=WIDTH),
        num_heads=fields.whole("num_heads", 16, most=DEPTH),
        out_hidden_size=fields.whole("out_hidden_size", 3584, most=WIDTH),
        norm="rms",
        hidden_act="silu",
        window_size=fields.whole("window_size", 112, least=0, most=WIDTH),
        fullatt_block_indexes=fields.wholes("fullatt_block_indexes", (7, 15, 23, 31), most=DEPTH),
        tokens_per_second=fields.whole("tokens_per_second", 4, least=0, most=1000),
        **_patch_fields(fields, raw),
    )


def _patch_fields(fields: Fields, raw: Mapping[str, Any]) -> dict[str, Any]:
    channels = "in_channels" if "in_channels" in raw else "in_chans"
    return {
        "in_channels": fields.whole(channels, 3, most=16),
        "patch_size": fields.whole("patch_size", 14, most=256),
        "temporal_patch_size": fields.whole("temporal_patch_size", 2, most=64),
        "spatial_merge_size": fields.whole("spatial_merge_size", 2, most=64),
    }


def _text(raw: Mapping[str, Any], where: str, *, tied: bool) -> TextConfig:
    fields = Fields(raw, where)
    _require_act("text config", raw.get("hidden_act", "silu"), "silu")
    layers = fields.whole("num_hidden_layers", 80, most=DEPTH)
    if raw.get("use_sliding_window") and layers > fields.whole("max_window_layers", 80, most=DEPTH):
        raise ValueError(
            "config.json: use_sliding_window is true; allowed: false "
            "(sliding-window attention is not implemented)"
        )
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(
            f"config.json: rope type {kind!r} is not supported; allowed: default, mrope; "
            "remove the long-context scaling from the file"
        )
    heads = fields.whole("num_attention_heads", 64, most=DEPTH)
    kv_heads = None
    if raw.get("num_key_value_heads", 8) is not None:
        kv_heads = fields.whole("num_key_value_heads", 8, most=DEPTH)
    hidden_size = fields.whole("hidden_size", 8192, most=WIDTH)
    section = Fields(rope, "rope").wholes("mrope_section", (16, 24, 24), most=WIDTH)
    if len(section) != 3:
        raise ValueError(
            f"config.json: mrope_section has {len(section)} entries; allowed: 3, the rotary pairs "
            "for time, height and width"
        )
    theta = Fields(rope if "rope_theta" in rope else raw, where)
    return TextConfig(
        vocab_size=fields.whole("vocab_size", 152064, most=VOCABULARY),
        hidden_size=hidden_size,
        intermediate_size=fields.whole("intermediate_size", 29568, most=WIDTH),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads if kv_heads is None else kv_heads,
        head_dim=fields.whole("head_dim", 128, most=WIDTH)
        if raw.get("head_dim")
        else hidden_size // heads,
        rms_norm_eps=fields.positive("rms_norm_eps", 1e-5, most=1.0),
        rope_theta=theta.positive("rope_theta", 1_000_000.0, most=1e12),
        mrope_section=(section[0], section[1], section[2]),
        tie_word_embeddings=tied,
        max_position_embeddings=fields.whole("max_position_embeddings", 32768, most=POSITIONS),
    )


def _require_act(where: str, found: str, allowed: str) -> None:
    if found != allowed:
        raise ValueError(
            f"config.json: {where} hidden_act {found!r} is not supported; allowed: {allowed}"
        )


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
