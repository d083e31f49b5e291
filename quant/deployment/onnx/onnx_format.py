"""The format `onnx`: graphs for vision, embedding and text, and the description for a host program.

docs/onnx.md is normative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ....common.progress import Reporter
from ....model.families import EMBEDDING, LinearSpec
from ...checkpoint.safetensors_folder.shards import copy_side_files
from ...config import ExportOptions
from ...recipe.scheme import QuantScheme, Scheme
from ..source import ExportSource
from .blocks import STORED_BITS, choose_block_size
from .tensor_parallel import why_not_divided

VERSION = 1
"""Of docs/onnx.md."""
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
RAW = "raw"
"""Value of --embedding for a table without a graph."""


@dataclass(frozen=True)
class OnnxFormat:
    """See the module."""

    name: str = "onnx"
    options: tuple[str, ...] = ("patches", "prefill", "embedding", "tp")
    adapter_advice: str = (
        "export the weights alone with --no-adapter, or keep the checkpoint for engines that load "
        "adapters"
    )

    def why_not(self, source: ExportSource, options: ExportOptions) -> str | None:
        """See `DeploymentFormat.why_not`."""
        if find_spec("onnx") is None:
            return "the package onnx is not installed; run pip install 'vlpress[onnx]'"
        if source.config.family not in FAMILIES:
            return f"it is of the family {source.config.family}; allowed: {', '.join(FAMILIES)}"
        if options.patches is not None and options.patches % 16:
            return f"--patches is {options.patches}; allowed: a multiple of 16"
        if reason := _why_no_layers(source):
            return reason
        if options.embedding == RAW and EMBEDDING in source.schemes:
            return (
                f"{EMBEDDING} is quantized, and --embedding raw would round it to fp16; "
                "use --embedding graph"
            )
        return None if options.tp is None else why_not_divided(source, options.tp)

    def write(
        self, source: ExportSource, folder: Path, options: ExportOptions, reporter: Reporter
    ) -> Mapping[str, Any]:
        """See `DeploymentFormat.write`."""
        # The optional package is imported here, after `why_not`.
        from .embedding import RAW_FILE
        from .graph import IR_VERSION, OPSET
        from .host import describe_host
        from .linear import ACCURACY_LEVEL
        from .writing import GraphWriter

        host = describe_host(
            source.folder, source.config, patches=options.patches, prefill=options.prefill
        )
        writer, ranks = GraphWriter(source, folder), options.tp
        with reporter.step("vision"):
            writer.vision(options.patches)
        with reporter.step("embedding"):
            embedding = writer.raw_embedding() if options.embedding == RAW else writer.embedding()
        with reporter.step("text"):
            shards = None
            if ranks is None:
                writer.text(options.prefill)
            else:
                shards = writer.shards(ranks, options.prefill)
        copy_side_files(source.folder, folder, source.family.side_files)
        for note in (notes := find_notes(source)):
            reporter.warn(note)
        if "changed" in embedding:
            notes.append(f"{RAW_FILE}: {embedding['changed']} entries changed by the cast to fp16")
        return {
            "format": self.name,
            "version": VERSION,
            "family": source.config.family,
            "opset": OPSET,
            "ir_version": IR_VERSION,
            "accuracy_level": ACCURACY_LEVEL,
            "graphs": writer.graphs,
            "embedding": embedding,
            **host,
            "layers": describe_layers(source),
            "tensor_parallel": shards,
            "notes": notes,
        }


def _why_no_layers(source: ExportSource) -> str | None:
    """Return the reason that a quantized layer has no operator, or None; reads group indices."""
    reordered = () if source.quantized is None else source.quantized.contents().reordered
    for name, scheme in source.schemes.items():
        if not isinstance(scheme, QuantScheme):
            return f"{name} has {scheme.label}; allowed: integers (w4a16 and similar recipes)"
        if scheme.activations != "none":
            return (
                f"{name} has {scheme.label}, and MatMulNBits has no place for the scales of "
                "activations; quantize weights only (w4a16 and similar recipes)"
            )
        if name in reordered:
            return (
                f"the groups of {name} are not consecutive input features (act-order); "
                "quantize with static groups"
            )
        try:
            choose_block_size(scheme, source.layers[name].in_features)
        except ValueError as error:
            return f"{name} has {error}"
    return None


def find_notes(source: ExportSource) -> list[str]:
    """State properties of the checkpoint that the files do not have."""
    notes = []
    if source.quantized is not None:
        if source.quantized.quantizes_cache:
            notes.append("the checkpoint's FP8 KV cache is fp32 in the graphs")
        if source.quantized.reduction is not None:
            notes.append("the checkpoint drops visual tokens; a host of the graphs keeps all")
    return notes


def describe_layers(source: ExportSource) -> dict[str, dict[str, Any]]:
    """Describe the operator of every linear layer."""
    return {
        name: _layer(source, spec, source.schemes.get(name)) for name, spec in source.layers.items()
    }


def _layer(source: ExportSource, spec: LinearSpec, scheme: Scheme | None) -> dict[str, Any]:
    is_table = spec.part == "embedding"
    if not isinstance(scheme, QuantScheme):
        dtype = source.reader.dtype(f"{spec.name}.weight")
        operator = "Gather" if is_table else "MatMul"
        return {"operator": operator, "dtype": str(dtype).removeprefix("torch.")}
    return {
        "operator": "GatherBlockQuantized" if is_table else "MatMulNBits",
        "bits": scheme.bits,
        "stored_bits": max(4, STORED_BITS[scheme.bits]) if is_table else STORED_BITS[scheme.bits],
        "group_size": scheme.group_size,
        "block_size": choose_block_size(scheme, spec.in_features),
        "symmetric": scheme.symmetric,
    }
