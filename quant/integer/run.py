"""The verb `verify` of the Python API: a checkpoint's static layers in integer arithmetic."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...calib.activation_store import MemoryActivationStore, hold_block
from ...calib.block_runner import BlockRunner
from ...calib.capture import watch_inputs
from ...calib.samples.draw import draw_samples
from ...common.atomic import write_text
from ...common.json_files import read_json
from ...common.options import verb
from ...common.progress import Update, reporting
from ...common.threads import use_threads
from ...model.families import family_of
from ...model.loading import build_model
from ...model.processing.inputs import Prompt
from ..checkpoint.loading import is_quantized
from ..checkpoint.safetensors_folder.reading import QuantizedCheckpoint
from ..checkpoint.verify import QuantizedBlocks
from ..config import ModelSettings, VerifyOptions
from ..methods.affine import QuantizedWeight
from ..resolve import Source, encode_samples, sample_length
from ..runtime.compressed_linear import CompressedLinear
from .check import check_layer, choose_rows, kernels_of, measure_output_scale
from .layer import IntegerLayer, is_static_w8a8

SCHEMA = 1
FROM_SAMPLES, FROM_TABLE = "samples", "table"
"""Origins of an output scale. In these families, norms, attention, activation functions or
residual additions stand between two linear layers, so that no output of one is the int8 input of
another, whose scale could be taken."""


@verb(VerifyOptions)
def verify(options: VerifyOptions) -> dict[str, Any]:
    """Compute static W8A8 layers with integers alone and compare them with the kernels.

    The inputs are activations of calibration samples in the quantized model, block by block.

    Returns:
        `agrees`; `layers` with the constants of each layer (`input_scale`, `output_scale` and its
        origin, `multipliers`, `shifts`, `bias`) and the result of `check_layer`; `others`, the
        schemes of all other linear layers; `skipped`, static layers that no sample reaches.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: `integer` is not given, the checkpoint has no static W8A8 layer or is damaged,
            the samples are unusable, or the table does not fit the checkpoint.
    """
    if not options.integer:
        raise ValueError("verify: no check was named; give --integer")
    use_threads(options.threads)
    out = None if options.out is None else Path(options.out)
    if out is not None and out.is_dir():
        raise ValueError(f"output {out} is a folder; give a file")
    source = Source.find(options.checkpoint, options.group(ModelSettings))
    if not is_quantized(source.folder):
        raise ValueError(
            f"{source.name}: no quantization found in config.json; give a quantized checkpoint"
        )
    checkpoint = QuantizedCheckpoint(source.folder)
    names = [name for name in checkpoint.layers if is_static_w8a8(checkpoint.schemes[name])]
    others = _other_layers(checkpoint, names)
    if not names:
        raise ValueError(_none_found(source.name, others))
    tables = None if options.table is None else _read_tables(Path(options.table), names)
    checkpoint.check()
    with reporting(options.progress) as reporter:
        processor = source.processor()
        drawn = draw_samples(
            options.calib,
            n=options.calib_samples,
            seed=options.seed or 0,
            measure=lambda sample: sample_length(sample, processor),
        )
        prompts = encode_samples(drawn.samples, processor)
        with reporter.stage("verifying in integers") as update:
            layers = list(check_layers(source, checkpoint, names, prompts, tables, update))
    checked = {layer["name"] for layer in layers}
    result = {
        "schema": SCHEMA,
        "checkpoint": str(source.folder),
        "samples": len(prompts),
        "agrees": all(layer["agrees"] for layer in layers),
        "layers": layers,
        "skipped": [name for name in names if name not in checked],
        "others": others,
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Not indented: there are thousands of multipliers, each of which would get a line.
        write_text(out, json.dumps(result, ensure_ascii=False) + "\n")
    return result


def _other_layers(checkpoint: QuantizedCheckpoint, names: Sequence[str]) -> dict[str, str]:
    """Return the schemes of all linear layers that are not verified; `float` without one."""
    family, config = family_of(checkpoint.config), checkpoint.config
    kept = [spec for spec, _ in family.kept(config)]
    specs = [*family.linears(config), *kept]
    labels = {name: scheme.label for name, scheme in checkpoint.schemes.items()}
    return {spec.name: labels.get(spec.name, "float") for spec in specs if spec.name not in names}


def _none_found(name: str, others: Mapping[str, str]) -> str:
    counts = Counter(others.values())
    schemes = ", ".join(f"{label} in {count} layers" for label, count in counts.most_common())
    return (
        f"{name}: no layer has int8 weights per row and static int8 activations (found: {schemes})"
        "; give a checkpoint of the recipe w8a8-static"
    )


def _read_tables(path: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read the constants of each layer from an earlier result."""
    remedy = "give a file that vlpress verify --integer has written"
    layers = read_json(path, remedy).get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise ValueError(f"{path}: has no list of layers; {remedy}")
    tables = {layer.get("name"): layer for layer in layers}
    if missing := [name for name in names if name not in tables]:
        raise ValueError(f"{path}: has no constants of {missing[0]}; {remedy} for this checkpoint")
    return {name: tables[name] for name in names}


@torch.no_grad()
def check_layers(
    source: Source,
    checkpoint: QuantizedCheckpoint,
    names: Sequence[str],
    prompts: Sequence[Prompt],
    tables: Mapping[str, Mapping[str, Any]] | None,
    update: Update,
) -> Iterator[dict[str, Any]]:
    """Check layers in the order of computation, one block in memory at a time.

    Args:
        source: the checkpoint with device and dtype.
        checkpoint: the same.
        names: of static W8A8 layers.
        prompts: samples with their answers.
        tables: constants by name of the layer; None computes them.
        update: called after each block.

    Yields:
        The result of each layer that a sample reaches.
    """
    model = build_model(checkpoint.config, dtype=source.dtype)
    blocks = QuantizedBlocks(checkpoint, model, source.device)
    runner = BlockRunner(model, prompts, blocks, MemoryActivationStore())
    paths = runner.all_blocks()
    remaining = set(names)
    for done, path in enumerate(paths, start=1):
        if not remaining:
            break
        members = [name for name in names if name == path or name.startswith(path + ".")]
        remaining -= set(members)
        following = paths[done] if done < len(paths) else None
        runner.enter(path)
        with hold_block(blocks, path):
            inputs = _run_block(runner, path, following, members)
            for name in members:
                if name in inputs:
                    module, table = model.get_submodule(name), (tables or {}).get(name)
                    yield _check(name, module, torch.cat(inputs.pop(name)), table)
        update(done, len(paths), path)


def _run_block(
    runner: BlockRunner, path: str, following: str | None, members: Sequence[str]
) -> dict[str, list[Tensor]]:
    """Run all samples through a block; return the inputs `[T, K]` of its layers by name."""
    inputs: dict[str, list[Tensor]] = {}

    def watcher(name: str, width: int) -> Any:
        return lambda x: inputs.setdefault(name, []).append(x.detach().reshape(-1, width))

    modules = {name: runner.model.get_submodule(name) for name in members}
    watchers = {module: watcher(name, _width(module)) for name, module in modules.items()}
    with watch_inputs(watchers):
        if following is not None:
            runner.advance(path, following)
        else:
            for sample in runner.local_samples(path):
                runner.output(path, sample)
    return inputs


def _width(module: nn.Module) -> int:
    width = module.in_features
    assert isinstance(width, int)
    return width


def _check(
    name: str, module: nn.Module, inputs: Tensor, table: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Check one layer on its inputs `[T, K]`."""
    assert isinstance(module, CompressedLinear)
    weight, bias = module.quantized(), module.bias
    assert isinstance(weight, QuantizedWeight) and weight.input_scale is not None
    kernels, reason = kernels_of(weight, bias)
    fastest = list(kernels.values())[-1]
    try:
        if table is None:
            output_scale = measure_output_scale(fastest, inputs)
            layer = IntegerLayer.of(weight, bias, output_scale)
        else:
            output_scale = _scale_of(table)
            layer = IntegerLayer.from_table(weight, table)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    rows = choose_rows(inputs, fastest(inputs))
    return {
        "name": name,
        "in_features": weight.in_features,
        "out_features": weight.out_features,
        "input_scale": float(weight.input_scale),
        "output_scale": output_scale,
        "output_scale_from": FROM_SAMPLES if table is None else FROM_TABLE,
        "only_reference": reason or None,
        **check_layer(layer, weight, bias, kernels, rows, output_scale),
        **layer.table(),
    }


def _scale_of(table: Mapping[str, Any]) -> float:
    scale = table.get("output_scale")
    if not isinstance(scale, float) or not scale > 0:
        raise ValueError(f"output_scale: {scale!r}; allowed: a positive number")
    return scale
