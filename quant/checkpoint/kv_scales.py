"""Scales of an FP8 KV cache in checkpoints: their tensors, and the names that other writers use.

vlpress writes `<layer>.self_attn.k_scale` and `v_scale` `[1]`, the names of compressed-tensors,
which vLLM reads. Others are read as vLLM does (`maybe_remap_kv_scale_name` and `get_cache_scale`
there): those of ModelOpt, of earlier versions of compressed-tensors, of vLLM's own modules, and one
scale for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ...model.checkpoint import CheckpointReader
from ...model.config import ModelConfig
from ...model.families import family_of
from ...model.kv_quant.scales import KVScales
from .formats.format import FLOATS, float_tensor

ATTENTION = "model.layers.{}.self_attn"
ANCHOR = "k_proj.weight"
"""Tensor of an attention module next to which the scales are written."""
KEY, VALUE = "k_scale", "v_scale"
KEYS = (KEY, "k_proj.k_scale", "k_proj.output_scale", "attn.k_scale", "kv_scale")
VALUES = (VALUE, "v_proj.v_scale", "v_proj.output_scale", "attn.v_scale", "kv_scale")
"""Names below an attention module; the first is written, the first that exists is read."""


def why_no_scales(config: ModelConfig) -> str | None:
    """Return the reason that checkpoints of a model cannot hold scales, or None."""
    family = family_of(config)
    layer = f"self_attn.{ANCHOR.removesuffix('.weight')}"
    if any(linear.name == layer for linear in family.decoder.linears):
        return None
    return (
        f"kv_cache: engines look for its scales beside {layer}, which the family {family.name} has "
        "not; leave the table out"
    )


def scale_names(layers: Iterable[int]) -> set[str]:
    """Return all canonical names that a scale may have.

    Args:
        layers: indexes of the layers with a cache.
    """
    return {f"{ATTENTION.format(layer)}.{name}" for layer in layers for name in (*KEYS, *VALUES)}


def read_scales(reader: CheckpointReader, layers: Sequence[int]) -> list[KVScales] | None:
    """Read the scales of some layers; None if the checkpoint has none.

    Args:
        reader: the checkpoint.
        layers: indexes of the layers with a cache.

    Raises:
        ValueError: a layer lacks one, or it is not one positive finite number.
    """
    if not scale_names(layers).intersection(reader.names()):
        return None
    return [KVScales(_read(reader, layer, KEYS), _read(reader, layer, VALUES)) for layer in layers]


def _read(reader: CheckpointReader, layer: int, names: Sequence[str]) -> float:
    path = ATTENTION.format(layer)
    for name in names:
        full = f"{path}.{name}"
        if full in reader:
            stored = reader.tensor(full)
            if stored.numel() == 1 and stored.dtype in FLOATS and 0 < float(stored) < torch.inf:
                return float(stored)
            raise ValueError(
                f"{full} is {stored.dtype} {list(stored.shape)} {stored.flatten()[:2].tolist()}; "
                "allowed: one positive float, a scale for the whole layer"
            )
    raise ValueError(
        f"{path}.{names[0]} is missing, but other layers have scales of the KV cache; the "
        "checkpoint is incomplete"
    )


def scale_tensors(
    scales: Mapping[int, KVScales], dtype: torch.dtype
) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of all layers' scales, by the tensor next to which they are written.

    Args:
        scales: by index of the layer.
        dtype: of the checkpoint's float tensors; a wider one is taken if it is not exact.
    """
    tensors = {}
    for layer, of_layer in scales.items():
        path = ATTENTION.format(layer)
        tensors[f"{path}.{ANCHOR}"] = {
            f"{path}.{name}": float_tensor(torch.tensor([scale]), dtype)
            for name, scale in ((KEY, of_layer.key), (VALUE, of_layer.value))
        }
    return tensors
