"""Write a quantized model as a checkpoint, given the float checkpoint it was made from.

The new tensors are those of the quantized layers, in the format's encoding, and the float tensors
that a transform rescaled. Everything else is copied from the source, byte for byte.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...common.lazy_tensor import LazyTensor, TensorLike
from ...model.checkpoint import CheckpointReader
from ...model.expert_linear import expert_layers
from ...model.loading import HEAD, stored_dtype
from ...model.qwen_vl import QwenVL
from ...model.untying import open_source
from ..driver.padding import Padding, pad_tensors, padded_shapes
from ..driver.report import QuantReport
from ..plan.plan import FLOAT, Plan
from ..runtime.compressed_linear import CompressedLayer
from ..targets import compressed_layers
from .adapter import adapter_tensors, owner_of
from .encoding import encode_layer
from .formats.contents import Contents, Solver
from .formats.format import Format, Origin, float_tensor
from .formats.table import AUTO, choose_format
from .kv_scales import scale_tensors
from .loading import resolve_folder
from .model_card import Base, write_model_card
from .pixel_budget import change_max_pixels
from .safetensors_folder.shards import checkpoint_folder


def check_format(plan: Plan, format: str = AUTO) -> None:
    """Refuse a format that cannot hold the planned checkpoint; call it before calibration.

    Raises:
        ValueError: the format is unknown or does not fit the plan.
    """
    if plan.format == FLOAT:
        if format not in (AUTO, FLOAT):
            raise ValueError(
                f"format is {format!r}, but the recipe quantizes nothing and its result is an "
                "ordinary float checkpoint; leave the format out"
            )
        return
    choose_format(plan.contents, format)


def save_quantized(
    model: QwenVL,
    report: QuantReport,
    source: str | Path,
    out: str | Path,
    *,
    format: str = AUTO,
    overwrite: bool = False,
) -> None:
    """Write a quantized model as a checkpoint folder, atomically.

    Args:
        model: as `quantize_` left it; its `config.raw` becomes config.json.
        report: returned by `quantize_`. Tensors listed as changed are written from the model, and
            padded ones with their zeros.
        source: the checkpoint that the model was loaded from (folder, hub id, `tiny`); all other
            tensors and all side files are copied from there.
        out: output folder.
        format: `gptq`, `gptq_v2`, `compressed-tensors`, `awq`; `auto` takes compressed-tensors if
            it can hold the model, else gptq.
        overwrite: replace an existing folder.

    Raises:
        ValueError: the format does not fit, the model is not the one of the report, the source is
            another model, or `out` exists.
    """
    contents = replace(report.plan.contents, config=model.config)
    chosen = choose_format(contents, format)
    layers = compressed_layers(model)
    if odd := set(layers) ^ set(contents.schemes):
        raise ValueError(f"model and report disagree about {min(odd)}; save the report's own model")
    reader = open_source(resolve_folder(source), untied=report.plan.untied)
    with checkpoint_folder(Path(out), reader.folder, overwrite=overwrite) as folder:
        check_unchanged(model, reader, report)
        tensors = encode_tensors(layers, report.changed, model, reader, chosen)
        _write(tensors, report, contents, chosen, reader, folder)
        write_model_card(folder, Base.of(source, reader.folder))


def save_finished(
    tensors: Mapping[str, TensorLike],
    report: QuantReport,
    source: Path,
    folder: Path,
    *,
    base: Base | None = None,
) -> None:
    """Write a checkpoint whose new tensors are already encoded, as a run's journal keeps them.

    Args:
        tensors: results of `encode_tensors` for every block, by name.
        report: of the run.
        source: folder of the float checkpoint.
        folder: existing and empty, see `checkpoint_folder`.
        base: the original model, for the model card; default: the float checkpoint.
    """
    contents = report.plan.contents
    chosen = choose_format(contents, report.plan.format)
    reader = open_source(source, untied=report.plan.untied)
    _write(tensors, report, contents, chosen, reader, folder)
    write_model_card(folder, base or Base.of(source, source))


def encode_tensors(
    layers: Mapping[str, CompressedLayer],
    changed: Iterable[str],
    model: QwenVL,
    reader: CheckpointReader,
    format: Format,
) -> dict[str, Tensor]:
    """Encode the tensors that differ from the source, by canonical name.

    Args:
        layers: quantized layers by name; their biases and adapters are included.
        changed: names of float tensors that a transform rescaled. Biases of `layers` may be among
            them.
        model: the model they belong to.
        reader: the float checkpoint; it determines the dtypes of float tensors.
        format: checkpoint format.

    Raises:
        ValueError: the format cannot hold a value, or the source has a bias that a layer has not.
    """
    dtype = stored_dtype(model.config, reader)
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        encoded = encode_layer(layer.quantized(), format, dtype, name)
        tensors |= {f"{name}.{part}": tensor for part, tensor in encoded.items()}
        bias = f"{name}.bias"
        if bias in reader:
            if layer.bias is None:
                raise ValueError(f"{bias} is in the source but not in the model")
            # Layers hold fp16 values in their biases (`storable_bias`): nothing is lost here.
            bias_dtype = format.bias_dtype(reader.dtype(bias))
            tensors[bias] = float_tensor(layer.bias.float(), bias_dtype)
    tensors |= adapter_tensors(layers)
    for name in changed:
        if name not in tensors:
            parameter = model.get_parameter(name).detach()
            tensors[name] = float_tensor(parameter.float(), reader.dtype(name))
    return tensors


def check_unchanged(model: QwenVL, reader: CheckpointReader, report: QuantReport) -> None:
    """Compare all tensors that will be copied from the source with the model's.

    The layers were calibrated on the model's tensors; with others their errors would be unknown.

    Raises:
        ValueError: a tensor differs.
    """
    schemes = report.plan.contents.schemes
    experts = {
        f"{path}.weight": layer
        for layers in expert_layers(model, "").values()
        for path, layer in layers.items()
    }
    for name in reader.names():
        owner = name.rpartition(".")[0]
        if owner in schemes or name in report.changed or (name == HEAD and model.lm_head is None):
            continue
        try:
            parameter = experts[name].weight if name in experts else model.get_parameter(name)
        except AttributeError:
            continue  # not part of the model, such as stored rotary frequencies
        stored = reader.tensor(name)
        stored = pad_tensors({name: stored}, model.config, report.plan.padding).get(name, stored)
        if parameter.shape != stored.shape or not torch.equal(
            stored.to(parameter.device, parameter.dtype), parameter.detach()
        ):
            raise ValueError(
                f"{name} differs between the model and its source; give the checkpoint that the "
                "model was loaded from"
            )


def _write(
    tensors: Mapping[str, TensorLike],
    report: QuantReport,
    contents: Contents,
    format: Format,
    reader: CheckpointReader,
    folder: Path,
) -> None:
    """Write `tensors`, and the tensors of `reader` that they do not replace."""
    encoded: dict[str, dict[str, TensorLike]] = {}
    adapter = {name: tensor for name, tensor in tensors.items() if owner_of(name) is not None}
    for name, tensor in tensors.items():
        owner, _, part = name.rpartition(".")
        if owner in contents.schemes and part != "bias":
            encoded.setdefault(owner, {})[part] = tensor

    def other(name: str) -> TensorLike | None:
        if name == HEAD and contents.config.text.tie_word_embeddings:
            return None  # a copy of the embedding; loading ties it again
        if name in tensors:
            return tensors[name]
        if name.rpartition(".")[0] in contents.schemes:
            raise ValueError(f"{name} belongs to a quantized layer and cannot be written")
        return _padded(reader.lazy(name), name, contents, report.plan.padding)

    record = report.to_dict()
    dtype = stored_dtype(contents.config, reader)
    scales = {of_layer.range.layer: of_layer.scales for of_layer in report.cache_layers}
    added = scale_tensors(scales, dtype)
    format.write(
        Origin(reader, ("weight",), encoded.__getitem__, other, added, adapter),
        replace(contents, solver=Solver.from_record(record)),
        folder,
        config=contents.config.raw,
        record=record,
    )
    if (max_pixels := report.plan.vision_input.max_pixels) is not None:
        change_max_pixels(folder, contents.config, max_pixels)


def _padded(
    stored: LazyTensor, name: str, contents: Contents, padding: tuple[Padding, ...]
) -> LazyTensor:
    """Pad a tensor of the source when it is read, if one of its widths grows."""
    growth = padded_shapes(contents.config, padding).get(name)
    if growth is None:
        return stored
    dim, _, after = growth
    return replace(
        stored,
        shape=(*stored.shape[:dim], after, *stored.shape[dim + 1 :]),
        read=lambda: pad_tensors({name: stored.read()}, contents.config, padding)[name],
    )
