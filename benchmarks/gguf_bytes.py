"""GGUF files against the checkpoints they were exported from: every weight bit for bit, and sizes.

    python benchmarks/gguf_bytes.py [--work out/gguf]

Rounds the decoder layers of each model by different schemes, and its tower to 8 bits, exports the
checkpoint, and reads the files with the package gguf. The models are those of `common/gguf_models`
and a random one with the widths of Qwen2.5-VL-3B. Writes results/gguf.json and results/gguf.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from common.gguf_models import MODELS, make_model, use_known_pattern
from common.machine import describe, provenance
from tabulate import tabulate
from torch import Tensor

from vlpress.quant.api import export, quantize
from vlpress.quant.deployment.gguf import text, vision
from vlpress.quant.deployment.gguf.carriers import BLOCK
from vlpress.quant.deployment.gguf.format import PREFIX
from vlpress.quant.deployment.gguf.naming import grouped_layers
from vlpress.quant.deployment.source import ExportSource

HERE = Path(__file__).resolve().parent
SCHEMES = (
    "bits = 4\ngroup_size = 128",
    "bits = 4\ngroup_size = 128\nsymmetric = false",
    "bits = 3\ngroup_size = 128",
    "bits = 8\ngroup_size = 128",
    'grid = "mxfp4"',
)
"""Of the first decoder layers, one after the other."""
WIDE, LAYERS, TOWER_LAYERS = "3b", len(SCHEMES), 2


def main() -> None:
    """Compare, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=Path("out/gguf"))
    options = parser.parse_args()
    rows = [row for name, folder in models(options.work) for row in compare(name, folder)]
    results = {**provenance(), "rows": rows}
    out = HERE / "results"
    (out / "gguf.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (out / "gguf.md").write_text(markdown(results), encoding="utf-8")
    print(markdown(results))
    if any(row["differing"] for row in rows):
        sys.exit("some weights differ")


def models(work: Path) -> Iterator[tuple[str, Path]]:
    """Make the models; yield their names and folders."""
    for model in MODELS:
        if model.source != "tiny3.5":  # its linear attention has no layers of 128 channels
            yield model.name, make_model(model, work / model.source)
    folder = work / WIDE
    shutil.rmtree(folder, ignore_errors=True)
    sizes = ["--size", WIDE, "--layers", str(LAYERS), "--vision-layers", str(TOWER_LAYERS)]
    command = [sys.executable, str(HERE / "make_model.py"), str(folder), *sizes]
    subprocess.run(command, check=True)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["fullatt_block_indexes"] = [TOWER_LAYERS - 1]
    (folder / "config.json").write_text(json.dumps(config))
    use_known_pattern(folder)
    yield f"random, widths of {WIDE.upper()}, {LAYERS} layers", folder


def compare(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Round and export a model; yield a row per file."""
    recipe = folder.with_name(f"{folder.name}.toml")
    recipe.write_text(recipe_of(ExportSource(folder)))
    checkpoint, out = folder.with_name(f"{folder.name}-rounded"), folder.with_name("export")
    common = {"threads": 1, "overwrite": True, "fresh": True}
    quantize(folder, checkpoint, recipe=str(recipe), format="compressed-tensors", **common)
    described = export(checkpoint, out, format="gguf", **common)
    source = ExportSource(checkpoint)
    for part, prefix, naming in (
        ("text", "", text.naming(source.config)),
        ("tower", PREFIX, vision.naming(source.config)),
    ):
        path = out / f"{prefix}{out.name}.gguf"
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        groups = grouped_layers(source, naming)
        differing, weights = [], 0
        for tensor_name, layers in groups.items():
            expected, given = dequantized(source, layers[0]), read(tensors, tensor_name)
            weights += expected.numel()
            if not torch.equal(expected, given):
                differing.append(tensor_name)
        yield {
            "model": name,
            "file": part,
            "types": {kind: of["bytes"] for kind, of in described[part].items()},
            "layers": len(groups),
            "weights": weights,
            "differing": differing,
            "bytes": path.stat().st_size,
            "float_bytes": sum(2 * source.layers[each[0]].weights for each in groups.values()),
        }


def recipe_of(source: ExportSource) -> str:
    """Write a recipe with a scheme per decoder layer, and 8 bits in the tower."""
    steps = [
        f'[[step]]\nmethod = "rtn"\ntargets = ["model.layers.{layer}.*"]\n{scheme}\n'
        for layer, scheme in zip(range(source.config.text.num_hidden_layers), SCHEMES, strict=False)
    ]
    padded = {name for stage in source.family.tower for of in stage.padded for name in of.inputs}
    tower = [
        spec.name
        for spec in source.layers.values()
        if spec.part == "tower"
        and (spec.in_features % BLOCK == 0 or spec.name.endswith(tuple(padded)))
    ]
    steps.append(
        f'[[step]]\nmethod = "rtn"\ntargets = {json.dumps(tower)}\nbits = 8\ngroup_size = -1\n'
    )
    return "\n".join(['name = "all carriers"\n', *steps])


def dequantized(source: ExportSource, layer: str) -> Tensor:
    """Return a layer's weight in float32."""
    weight = source.weight(layer)
    return weight.float() if isinstance(weight, Tensor) else weight.dequantize()


def read(tensors: dict[str, Any], name: str) -> Tensor:
    """Read a weight with the package gguf; of fused query, key and value, the three parts."""
    if name not in tensors:
        parts = [name.replace("attn_qkv", f"attn_{letter}") for letter in "qkv"]
        return torch.cat([read(tensors, part) for part in parts])
    values = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def markdown(results: dict[str, Any]) -> str:
    """Format the results."""
    lines = [
        [
            row["model"],
            row["file"],
            ", ".join(f"{kind} {size / 2**20:.2f}" for kind, size in row["types"].items()),
            f"{row['layers']} layers, {row['weights']} weights",
            f"{len(row['differing'])} differ" if row["differing"] else "all equal",
            f"{row['bytes'] / 2**20:.2f}",
            f"{row['float_bytes'] / 2**20:.2f}",
        ]
        for row in results["rows"]
    ]
    head = ["model", "file", "types (MiB)", "compared", "bit for bit", "MiB", "layers in bf16"]
    table = tabulate(lines, head, tablefmt="github", disable_numparse=True)
    intro = (
        "Weights of linear layers, read from the GGUF files by the package gguf, against the "
        "dequantized weights of the checkpoint. Decoder layers are rounded one after the other to "
        "int4, asymmetric int4 and int3 in groups of 128, int8 and mxfp4; the tower's layers of "
        "whole blocks to int8 per row."
    )
    return f"# GGUF files\n\n{describe(results)}\n\n{intro}\n\n{table}\n"


if __name__ == "__main__":
    main()
