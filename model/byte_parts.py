"""The parts of a model that its bytes are counted by: one definition for plans and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from .checkpoint import CheckpointReader
from .config import ModelConfig
from .families import EMBEDDING, family_of
from .part_names import BYTE_PARTS, REST, byte_part


def bytes_by_part(config: ModelConfig, sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Add up bytes by part.

    Args:
        config: of the model.
        sizes: canonical names of tensors, float or quantized, with their bytes.

    Returns:
        Bytes by the names in `BYTE_PARTS`, in their order.
    """
    part_of = part_finder(config)
    totals = dict.fromkeys(BYTE_PARTS, 0)
    for name, size in sizes:
        totals[part_of(name)] += size
    return totals


def part_finder(config: ModelConfig) -> Callable[[str], str]:
    """Return a function that gives the part of a tensor, one of `BYTE_PARTS`, by canonical name."""
    family = family_of(config)
    carried = family.carried_parts(config).items()
    prefixes: dict[str, str] = {start: byte_part(part) for start, part in carried}
    prefixes[f"{EMBEDDING}."] = "embedding"
    for stage in family.stages:
        prefixes.setdefault(stage.path.partition("{}")[0].removesuffix(".") + ".", stage.part)
        if stage.part == "tower":
            prefixes |= {f"{path}.": stage.part for path in stage.entry}

    def part_of(name: str) -> str:
        return next((part for prefix, part in prefixes.items() if name.startswith(prefix)), REST)

    return part_of


def checkpoint_bytes(
    config: ModelConfig, reader: CheckpointReader, others: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Count the tensor bytes of a checkpoint by part; reads no tensor.

    Args:
        config: of the model.
        reader: of its tensors.
        others: bytes of what else is stored beside them, by the layer that it belongs to.
    """
    sizes = [(name, reader.nbytes(name)) for name in reader.names()]
    sizes += [(f"{layer}.", size) for layer, size in (others or {}).items()]
    return bytes_by_part(config, sizes)
