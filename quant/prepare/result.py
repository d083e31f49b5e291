"""Float checkpoints that are the result of a recipe with preparations alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...model.byte_parts import checkpoint_bytes
from ...model.checkpoint import CheckpointReader
from ...model.config import ModelConfig, read_checkpoint_json
from ..checkpoint.safetensors_folder.shards import REPORT_FILE

KEY = "preparations"
"""Key of the records of preparations, in `vlpress.json` and in plans."""


def prepared_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a prepared float checkpoint; None if the folder is something else."""
    path = folder / REPORT_FILE
    config = folder / "config.json"
    if not path.is_file() or not config.is_file():
        return None
    if read_checkpoint_json(config).get("quantization_config") is not None:
        return None
    record = read_checkpoint_json(path)
    return record if record.get(KEY) else None


def describe_prepared(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Describe such a checkpoint with the keys of a quantized one, see `inspect`."""
    sizes = checkpoint_bytes(ModelConfig.from_folder(folder), CheckpointReader(folder))
    return {
        "checkpoint": str(folder),
        "format": "float",
        "recipe": record.get("recipe"),
        "calibration": record.get("calibration"),
        KEY: record[KEY],
        "layers": [],
        "kept": record.get("kept"),
        "bytes": sum(sizes.values()),
        "parts": sizes,
        "base_parts": record.get("size", {}).get("base_parts"),
    }
