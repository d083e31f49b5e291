"""GPTQ checkpoints (`quant_method: gptq`), written as v1 and read as v1 and v2.

Per layer: `qweight` int32 [K * bits / 32, N] packed along K, `qzeros` int32 [G, N * bits / 32]
packed along N, `scales` fp16 [G, N], `g_idx` int32 [K], `bias` fp16 [N] if the source has one.
v1 stores zero points minus one, v2 as they are. docs/format.md is exact about all of it.

Letters: N = out_features, K = in_features, G = groups per row.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ...model.checkpoint import CheckpointReader, canonical_name
from ...model.families import Family, family_of
from ...model.qwen_vl import QwenVL
from ..affine import QuantizedWeight
from ..linear import QuantLinear
from ..packing import pack, unpack
from ..plan import Plan
from ..report import QuantReport
from ..scheme import QuantScheme
from ..targets import quantized_layers
from .folder import FolderSink, ShardSink, copy_side_files, whole_folder, write_json

BITS = (2, 3, 4, 8)
REPORT_FILE = "vlpress.json"

# Engines give the fused layer the name on the right; a rule about the members must name it too.
_FUSED_NAMES = {
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"): "self_attn.qkv_proj",
    ("mlp.gate_proj", "mlp.up_proj"): "mlp.gate_up_proj",
}


def why_not(plan: Plan) -> str | None:
    """Why a plan cannot be written as GPTQ, or None. Ask before calibrating."""
    for row in plan.quantized:
        if row.spec.stage in ("vision", "merger"):
            return (
                f"{row.name} is in the vision tower, which engines that read GPTQ load "
                "unquantized; leave it out of the recipe's targets"
            )
        if row.spec.stage == "head":
            return f"{row.name} is the output head, which is kept; leave it out of the targets"
    schemes = {row.step.scheme for row in plan.quantized if row.step}
    if len(schemes) != 1:
        labels = ", ".join(sorted(scheme.label for scheme in schemes))
        return f"the format holds one scheme for all layers, the recipe has {labels}"
    scheme = schemes.pop()
    if scheme.bits not in BITS:
        return f"the format holds {', '.join(map(str, BITS))} bits, the recipe asks {scheme.bits}"
    if not scheme.symmetric:
        return "zero points minus one cannot say 0, so asymmetric schemes do not fit"
    return None


def encode(weight: QuantizedWeight) -> dict[str, Tensor]:
    """The four tensors of a layer, v1.

    Raises:
        ValueError: a zero point of 0, a width that does not pack, or a scale fp16 cannot hold.
    """
    bits = weight.scheme.bits
    scales = weight.scales.t().contiguous().to(torch.float16)
    if not torch.equal(scales.to(torch.float32), weight.scales.t()):
        raise ValueError("a scale is not an fp16 number; round the scales before solving")
    if bool((weight.zero_points == 0).any()):
        raise ValueError("a zero point is 0, which this format cannot say")
    return {
        "qweight": pack(weight.integers.t(), bits),
        "qzeros": pack(weight.zero_points - 1, bits).t().contiguous(),
        "scales": scales,
        "g_idx": weight.column_groups().to(torch.int32),
    }


def decode(tensors: Mapping[str, Tensor], settings: "Settings", name: str) -> QuantizedWeight:
    """A layer from its tensors.

    Args:
        tensors: qweight, qzeros, scales, g_idx.
        settings: from the checkpoint's configuration.
        name: for messages.

    Raises:
        ValueError: a shape, type or group index does not belong.
    """
    bits = settings.scheme.bits
    qweight, qzeros = tensors["qweight"], tensors["qzeros"]
    scales, order = tensors["scales"], tensors["g_idx"]
    if qweight.dim() != 2 or qweight.dtype != torch.int32 or qweight.shape[0] % bits:
        raise ValueError(
            f"{name}.qweight is {qweight.dtype} {list(qweight.shape)}; for {bits} bits it must be "
            "int32 and its rows a multiple of them"
        )
    columns, rows = qweight.shape[0] * 32 // bits, qweight.shape[1]
    groups = settings.scheme.groups(columns)
    wanted = {
        "qzeros": (qzeros, (groups, rows * bits // 32), (torch.int32,)),
        "scales": (scales, (groups, rows), (torch.float16, torch.bfloat16, torch.float32)),
        "g_idx": (order, (columns,), (torch.int32, torch.int64)),
    }
    for part, (tensor, shape, dtypes) in wanted.items():
        if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
            raise ValueError(
                f"{name}.{part} is {tensor.dtype} {list(tensor.shape)}; expected "
                f"{dtypes[0]} {list(shape)}"
            )
    zero_points = unpack(qzeros.t(), bits)
    if settings.zero_offset:
        # Wraps within the width: writers that packed 0 - 1 left all bits set.
        zero_points = (zero_points.to(torch.int16) + 1) & settings.scheme.max_level
    return QuantizedWeight(
        integers=unpack(qweight, bits).t().contiguous(),
        scales=scales.t().contiguous().to(torch.float32),
        zero_points=zero_points.to(torch.uint8).contiguous(),
        scheme=settings.scheme,
        group_index=_group_index(order, groups, columns, name),
    )


def _group_index(order: Tensor, groups: int, columns: int, name: str) -> Tensor | None:
    """None for consecutive groups, else the checked index."""
    order = order.to(torch.int32)
    plain = torch.arange(columns, dtype=torch.int32, device=order.device) // (columns // groups)
    if torch.equal(order, plain):
        return None
    if int(order.min()) < 0 or int(order.max()) >= groups:
        raise ValueError(
            f"{name}.g_idx runs from {int(order.min())} to {int(order.max())}, but there are "
            f"{groups} groups; the file is damaged"
        )
    return order.clone()  # what was read is a view of the file


@dataclass(frozen=True)
class Settings:
    """What a GPTQ configuration says."""

    scheme: QuantScheme
    zero_offset: bool
    """True for v1: zero points are stored minus one."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read `quantization_config` of any writer.

        Raises:
            ValueError: a key is missing or says something that cannot be read.
        """
        for key in ("bits", "group_size"):
            if type(config.get(key)) is not int:
                raise ValueError(
                    f"quantization_config: {key} is {config.get(key)!r}; a number is needed"
                )
        if config["bits"] not in BITS:
            raise ValueError(
                f"quantization_config: bits is {config['bits']}; allowed are "
                f"{', '.join(map(str, BITS))}"
            )
        form = config.get("checkpoint_format") or "gptq"
        if form not in ("gptq", "gptq_v2"):
            raise ValueError(
                f"quantization_config: checkpoint_format is {form!r}; allowed are gptq, gptq_v2"
            )
        if config.get("pack_dtype", "int32") != "int32":
            raise ValueError(
                f"quantization_config: pack_dtype is {config['pack_dtype']!r}; allowed is int32"
            )
        overrides = [rule for rule in config.get("dynamic") or {} if not rule.startswith("-:")]
        if overrides:
            raise ValueError(
                f"quantization_config: dynamic rule {overrides[0]!r} changes the scheme of some "
                "layers; allowed are rules that leave layers out (-:)"
            )
        scheme = QuantScheme(config["bits"], config["group_size"], bool(config.get("sym", True)))
        return cls(scheme, form == "gptq")


def write(
    model: QwenVL, report: QuantReport, source: Path, out: Path, *, overwrite: bool = False
) -> None:
    """Write a quantized model as a GPTQ v1 checkpoint.

    What is not quantized is copied from the source with its names and types.

    Args:
        model: with `QuantLinear` in the places that the report's plan names.
        report: of the run that made it.
        source: folder of the original checkpoint.
        out: appears whole or not at all.
        overwrite: replace an existing folder.

    Raises:
        ValueError: the plan does not fit the format, the model is not what the report says, the
            source is another model, or `out` exists.
    """
    if reason := why_not(report.plan):
        raise ValueError(f"format gptq: {reason}")
    layers = quantized_layers(model)
    planned = {row.name for row in report.plan.quantized}
    if set(layers) != planned:
        odd = sorted(set(layers) ^ planned)[0]
        raise ValueError(f"model and report disagree about {odd}; save the report's own model")
    if out.resolve() in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"output {out} is or holds the source, which is never written to")
    reader = CheckpointReader(source)
    family = family_of(model.config)
    with whole_folder(out, overwrite=overwrite) as folder:
        sink = FolderSink(folder)
        _write_tensors(model, layers, reader, sink)
        sink.close()
        config = _quantization_config(report, family)
        write_json(folder / "config.json", {**model.config.raw, "quantization_config": config})
        write_json(folder / "quantize_config.json", config)
        write_json(folder / REPORT_FILE, report.to_dict())
        copy_side_files(source, folder, family.side_files)


def _write_tensors(
    model: QwenVL, layers: Mapping[str, QuantLinear], reader: CheckpointReader, sink: ShardSink
) -> None:
    parameters = dict(model.named_parameters())
    for name in sorted(reader.names(), key=lambda name: (reader.file(name), name)):
        source, file = reader.source_name(name), reader.file(name)
        owner, _, leaf = name.rpartition(".")
        if owner == "lm_head" and model.lm_head is None:
            continue  # a copy of the embedding, which readers tie again
        if owner not in layers:
            tensor = reader.tensor(name)
            _check_unchanged(name, tensor, parameters.get(name))
            sink.write(source, tensor, file)
        elif leaf == "weight":
            prefix = source.removesuffix("weight")
            for part, tensor in _checked_tensors(owner, layers[owner]).items():
                sink.write(prefix + part, tensor, file)
        elif leaf == "bias":
            bias = layers[owner].bias
            if bias is None:
                raise ValueError(f"{name} is in the source but not in the model")
            sink.write(source, bias.to(torch.float16), file)
        else:
            raise ValueError(f"{name} belongs to a quantized layer and cannot be written")


def _checked_tensors(name: str, layer: QuantLinear) -> dict[str, Tensor]:
    """Encode a layer and prove that reading it back gives the same."""
    weight = layer.quantized()
    tensors = encode(weight)
    if not decode(tensors, Settings(weight.scheme, True), name).equals(weight):
        raise RuntimeError(f"{name}: packed and unpacked weights differ; nothing was written")
    return tensors


def _check_unchanged(name: str, stored: Tensor, parameter: Tensor | None) -> None:
    """The copied tensor must be what the model computed with during calibration."""
    if parameter is None or parameter.is_meta:
        return
    same = parameter.shape == stored.shape and torch.equal(
        stored.to(parameter.dtype), parameter.detach().to("cpu")
    )
    if not same:
        raise ValueError(
            f"{name} differs between the model and its source; give the checkpoint that the "
            "model was loaded from"
        )


def _quantization_config(report: QuantReport, family: Family) -> dict[str, Any]:
    """Qwen's keys, then what other engines ask for; every value is what was done."""
    step = report.plan.quantized[0].step
    assert step is not None
    scheme = step.scheme
    return {
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "damp_percent": step.damp_percent,
        "desc_act": False,
        "static_groups": True,
        "sym": True,
        "true_sequential": report.true_sequential,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "dataset": None,
        "lm_head": False,
        "modules_in_block_to_quantize": _modules_in_block(report, family),
        "dynamic": _left_out(report, family),
    }


def _modules_in_block(report: QuantReport, family: Family) -> list[list[str]]:
    """Quantized layers of a decoder block, grouped by shared input."""
    stage = family.stage("decoder")
    used = {row.name for row in report.plan.quantized}
    blocks = stage.blocks(report.plan.config)
    taps: dict[str, list[str]] = {}
    for linear in stage.linears:
        if any(f"{block}.{linear.name}" in used for block in blocks):
            taps.setdefault(linear.tap, []).append(linear.name)
    return list(taps.values())


def _left_out(report: QuantReport, family: Family) -> dict[str, dict[str, Any]]:
    """Negative rules: the vision tower, the head, and decoder layers that were kept.

    A rule is a regular expression that engines match from the start of a layer's name, whatever
    prefix they gave it.
    """
    rules: dict[str, dict[str, Any]] = {r"-:.*visual\..*": {}, r"-:.*lm_head.*": {}}
    kept = {row.name for row in report.plan.rows if row.step is None}
    stage = family.stage("decoder")
    for block in stage.blocks(report.plan.config):
        names = [n.name for n in stage.linears if f"{block}.{n.name}" in kept]
        fused = [alias for members, alias in _FUSED_NAMES.items() if set(members) <= set(names)]
        for name in (*names, *fused):
            # Only the part from "layers." on is the same under every naming.
            tail = re.escape(block.removeprefix("model.") + "." + name)
            rules[rf"-:(.*\.)?{tail}$"] = {}
    return rules


def read_layers(
    reader: CheckpointReader, settings: Settings, device: torch.device
) -> Iterable[tuple[str, QuantizedWeight]]:
    """Every quantized layer of a checkpoint, one at a time.

    Raises:
        ValueError: a layer's tensors are incomplete or do not belong together.
    """
    for name in layer_names(reader.names()):
        parts = {}
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            if f"{name}.{part}" in reader:
                parts[part] = reader.tensor(f"{name}.{part}").to(device)
            elif part == "g_idx" and parts["qweight"].dim() == 2:
                # Some writers leave it out when it is consecutive.
                columns = parts["qweight"].shape[0] * 32 // settings.scheme.bits
                width = settings.scheme.width(columns)
                parts[part] = torch.arange(columns, device=device, dtype=torch.int32) // width
            else:
                raise ValueError(
                    f"{reader.folder}: {name}.{part} is missing; the checkpoint is incomplete"
                )
        try:
            weight = decode(parts, settings, name)
        except ValueError as error:
            raise ValueError(f"{reader.folder}: {error}") from None
        yield name, weight


def layer_names(names: Sequence[str]) -> list[str]:
    """Canonical names of the layers whose packed weights are among the tensor names."""
    return [canonical_name(n).removesuffix(".qweight") for n in names if n.endswith(".qweight")]
