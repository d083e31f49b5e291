"""Compare a family's table with the modules of a model.

Calibration, padding and formats believe the table, and a layer that it does not list would silently
stay unquantized, so a model is refused if its modules are others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from .config import ModelConfig
from .expert_linear import ExpertLinear
from .family_tables.entries import LinearSpec, NormBinding, PairBinding, widths
from .family_tables.stage import Stage
from .family_tables.table import EMBEDDING, Family
from .features import DEEPSTACK, HIDDEN

if TYPE_CHECKING:
    from .qwen_vl import QwenVL


def check_family(model: QwenVL, family: Family) -> None:
    """Check that a table describes a float model exactly.

    Raises:
        ValueError: it does not; the message names the first difference.
    """
    difference = next(_differences(model, family), None)
    if difference is not None:
        raise ValueError(
            f"family {family.name}: {difference}; correct the family's table or its modules"
        )


def _differences(model: QwenVL, family: Family) -> Iterator[str]:
    modules = dict(model.named_modules())
    if (family.mrope_layout == "single") == model.config.text.mrope:
        yield (
            f"mrope_layout is {family.mrope_layout!r} and the config has mrope "
            f"{model.config.text.mrope}; allowed: 'single' exactly for models without M-RoPE"
        )
    yield from _unknown_paths(model, family, modules)
    kept = [spec for spec, _ in family.kept(model.config)]
    specs = {spec.name: spec for spec in [*family.linears(model.config), *kept]}
    linears = {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Linear | ExpertLinear)
    }
    for name in sorted(specs.keys() ^ linears.keys()):
        yield f"{name} is a linear layer of the {'table' if name in specs else 'model'} only"
    for name, spec in specs.items():
        layer = linears[name]
        sizes = (*layer.weight.shape, layer.bias is not None)
        expected = spec.out_features, spec.in_features, spec.bias
        if sizes != expected:
            yield f"{name} has (outputs, inputs, bias) {sizes}, the table {expected}"
        if spec.row_parts and spec.out_features % sum(spec.row_parts):
            yield f"{name} has {spec.out_features} outputs, the table parts of {spec.row_parts}"
        yield from _slice(layer, spec)
    table = modules.get(EMBEDDING)
    shape = tuple(table.weight.shape) if isinstance(table, nn.Embedding) else None
    spec = family.embedding(model.config)
    if shape != (spec.out_features, spec.in_features):
        yield f"{EMBEDDING} is {shape}, the table {(spec.out_features, spec.in_features)}"
    size = widths(model.config)
    for stage in family.stages:
        widths_of = {
            name: (size[x.inputs], size[x.outputs])
            for x in stage.linears
            for name in x.names(model.config)
        }
        widths_of |= {x.name: (size[x.inputs], size[x.outputs]) for x in stage.kept}
        for block in range(stage.count(model.config)):
            yield from _in_block(stage, block, modules, widths_of, model.config)
    yield from _feature_keys(model, family)


def _unknown_paths(model: QwenVL, family: Family, modules: dict[str, nn.Module]) -> Iterator[str]:
    """Compare the paths of blocks and entries with the modules and their parameters."""
    homes = [path for stage in family.stages for path in stage.blocks(model.config)]
    homes += [path for stage in family.stages for path in stage.entry]
    yield from (f"there is no module {path}" for path in homes if path not in modules)
    counts = Counter(homes)
    for name, _ in model.named_parameters():
        parts = name.split(".")
        owners = sum(counts[".".join(parts[:end])] for end in range(1, len(parts)))
        if owners != 1:
            yield f"{name} belongs to {owners} of the blocks and entries, allowed: 1"


def _in_block(
    stage: Stage,
    block: int,
    modules: dict[str, nn.Module],
    widths_of: dict[str, tuple[int, int]],
    config: ModelConfig,
) -> Iterator[str]:
    """Compare bindings and checkpoints with the modules of one block."""
    path = stage.block_path(block)
    for binding in stage.bindings(config, block):
        if isinstance(binding, NormBinding):
            norm = modules.get(f"{path}.{binding.norm}")
            weight = getattr(norm, "weight", None)
            channels = 0 if weight is None else weight.numel() * binding.tiles
            inputs = {widths_of[name][0] for name in binding.linears}
            if getattr(norm, "offset", 0.0) != binding.offset:
                yield f"{path}.{binding.norm} has another offset than the table, {binding.offset}"
            if inputs != {channels}:
                yield f"{path}.{binding.norm} gives {channels} channels, its linears read {inputs}"
        else:
            yield from _pair(binding, path, widths_of, config.text.head_dim)
    if stage.checkpoints is not None:
        of_experts = {linear.tap for linear in stage.linears if linear.experts is not None}
        methods = ["forward_to", "forward_from"]
        if of_experts & set(stage.checkpoints.taps):
            methods.append("expert_inputs")
        for method in methods:
            if not hasattr(modules[path], method):
                yield f"{path} has checkpoints in the table but no method {method}"


def _slice(layer: nn.Linear | ExpertLinear, spec: LinearSpec) -> Iterator[str]:
    """Compare the slice of an expert's weight; shapes can be equal in either orientation."""
    of_module, of_table = (
        None if weight is None else replace(weight, tensor=weight.tensor.rpartition(".")[2])
        for weight in (layer.slice if isinstance(layer, ExpertLinear) else None, spec.slice)
    )
    if of_module != of_table:
        yield f"{spec.name} has the weight {of_module}, the table {of_table}"


def _pair(
    pair: PairBinding, path: str, widths_of: dict[str, tuple[int, int]], head_dim: int
) -> Iterator[str]:
    index, count = pair.part
    rows, columns = widths_of[pair.source][1], widths_of[pair.target][0]
    channels = rows // count
    unit = head_dim if pair.grouped_heads else channels
    fits = (
        columns % channels == 0 and channels % unit == 0
        if pair.grouped_heads
        else (columns == channels)
    )
    if rows % count or not 0 <= index < count or not fits:
        yield (
            f"{path}: part {pair.part} of the {rows} outputs of {pair.source} does not match the "
            f"{columns} inputs of {pair.target}"
        )


def _feature_keys(model: QwenVL, family: Family) -> Iterator[str]:
    keys = family.features(model.config)
    layers = [f"{DEEPSTACK}{index}" for index in range(model.config.text.num_hidden_layers)]
    if keys[:1] != (HIDDEN,) or set(keys[1:]) - set(layers) or len(set(keys)) < len(keys):
        yield (
            f"features of a visual are {', '.join(keys)}; allowed: {HIDDEN}, then some of "
            f"{DEEPSTACK}0 to {DEEPSTACK}{len(layers) - 1}"
        )
