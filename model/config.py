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
from .config_fields import TokenSection
from .config_readers import FILE, READERS, REMEDY, ConfigReader, family_name, text_section
from .sizes import TextConfig, VisionConfig

if TYPE_CHECKING:
    import torch

__all__ = ["ModelConfig", "TextConfig", "VisionConfig", "read_checkpoint_json", "refuse_pointer"]

LFS_POINTER = b"version https://git-lfs"
LARGEST_JSON = 2**28  # bytes; the largest published files, tokenizers, have 2**25
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a Qwen-VL model: vision tower, decoder, and the ids of the vision tokens."""

    family: str  # a key of READERS
    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    video_token_id: int | None  # None: the model reads no videos
    vision_start_token_id: int | None  # None: no tokens enclose a visual
    vision_end_token_id: int | None
    dtype_name: str | None  # of the stored parameters, one of `DTYPES`; None: not in the file
    raw: Mapping[str, Any] = field(repr=False, compare=False)  # the unchanged config.json

    @property
    def placeholder_ids(self) -> list[int]:
        """Ids of the tokens that features of visuals replace."""
        ids = (self.image_token_id, self.video_token_id)
        return [each for each in ids if each is not None]

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
        family = family_name(raw)
        reader = READERS[family]
        vision, text = reader.vision(raw), reader.text(raw)
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
        ids = _token_ids(raw, reader, text.vocab_size)
        return cls(
            family=family,
            vision=vision,
            text=text,
            image_token_id=ids.image_token_id,
            video_token_id=ids.video_token_id,
            vision_start_token_id=ids.vision_start_token_id,
            vision_end_token_id=ids.vision_end_token_id,
            dtype_name=_dtype_name(raw, text_section(raw)[0]),
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


def _token_ids(raw: Mapping[str, Any], reader: ConfigReader, vocab_size: int) -> TokenSection:
    """Read the ids of the special tokens, each below `vocab_size`."""
    ids = parse(reader.tokens, reader.token_keys(raw), FILE, remedy=REMEDY)
    for name, token in ids.model_dump().items():
        if token is not None and token >= vocab_size:
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
