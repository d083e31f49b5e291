"""The plan: how every linear layer will be quantized, or why it stays in float.

Every linear layer of the model has exactly one row. Errors of the recipe are found here (a pattern
without a match, a width that does not divide, fused layers with different schemes), not after an
hour of calibration.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ...model.carried import CarriedTensors
from ...model.config import ModelConfig
from ...model.families import EMBEDDING, LinearSpec, family_of
from ...model.part_names import byte_part
from ...model.qwen_vl import QwenVL
from ...model.untying import untie_model_, untied_config
from ..checkpoint.formats.contents import Contents
from ..checkpoint.formats.engines import engine_support
from ..checkpoint.formats.format import Format
from ..checkpoint.formats.packing import VALUES
from ..checkpoint.formats.table import AUTO, find_format
from ..checkpoint.kv_scales import why_no_scales
from ..driver.padding import Padding, choose_padding, pad_model_, padded_config, padded_layers
from ..prepare.planning import PlannedPreparation, float_parts, plan_preparations
from ..recipe.adapter import ADAPTER
from ..recipe.kv_cache import KVCacheScheme
from ..recipe.recipe import Recipe
from ..recipe.scheme import Scheme
from ..recipe.vision_input import VisionInput
from ..steps.step import Step
from .carried import carried_kept, carried_specs, check_carried
from .channel_groups import PlannedTransform, plan_transforms
from .checks.adapters import check_adapters, describe_adapters
from .embedding import check_embedding
from .experts import check_experts, insert_kept, take_all_tokens
from .fused_layers import check_fused, with_fused
from .layer_bytes import float_bytes, quantized_bytes
from .memory_estimate import MemoryEstimate, count_memory
from .part_targets import spell_out_parts
from .target_matching import check_groups, claim_layers

FLOAT = "float"
"""The format of a recipe that quantizes nothing: an ordinary checkpoint."""
BYTES = 16
"""Width in 8 bits that every format holds: int8 products of engines read rows in units of 16."""


@dataclass(frozen=True)
class PlanRow:
    """Plan of one linear layer, or of a token embedding that is quantized."""

    spec: LinearSpec
    """The layer with padded widths."""
    step: Step | None
    """The step that quantizes it; None = stays in float."""
    reason: str
    """Why it stays in float; empty if it is quantized."""
    bytes_before: int
    """Bytes of weight and bias in the source; 0 for a head that is tied there."""
    bytes_after: int
    """Bytes of all its tensors in the plan's format, and of its adapter."""
    packed_bytes: int = 0
    """`bytes_after` of a quantized layer without its bias and adapter."""
    source: LinearSpec | None = None
    """The unpadded layer; None if it is not padded."""
    padding: Padding | None = None
    """Padding of one of its widths."""
    fused: tuple[str, ...] = ()
    """Layers, itself included, that engines fuse to one matrix, if that has a scale of its own."""

    @property
    def name(self) -> str:
        """Canonical module name."""
        return self.spec.name

    @property
    def adapter_bytes(self) -> int:
        """Bytes of its low-rank adapter; 0 without one."""
        rule = self.step.adapter_rule if self.step else None
        return rule.nbytes(self.spec.out_features, self.spec.in_features) if rule else 0

    @property
    def fate(self) -> str:
        """Description of the row: method and scheme, or why it stays in float; and its padding."""
        if self.step is None:
            fate = f"kept, because {self.reason}"
        else:
            fate = self.step.label
        return f"{fate}; {self.growth}" if self.padding else fate

    @property
    def growth(self) -> str:
        """Description of the padding; empty without one."""
        if self.source is None or self.padding is None:
            return ""
        inward = self.source.in_features != self.spec.in_features
        side = "in_features" if inward else "out_features"
        return f"{side} {self.padding.before} padded to {self.padding.after}: {self.padding.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        return {
            "name": self.name,
            "stage": self.spec.stage,
            "expert": self.spec.expert,
            "in_features": self.spec.in_features,
            "out_features": self.spec.out_features,
            "source_in_features": (self.source or self.spec).in_features,
            "source_out_features": (self.source or self.spec).out_features,
            "method": self.step.method if self.step else None,
            "scheme": self.step.scheme.to_dict() if self.step else None,
            "fate": self.fate,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }


@dataclass(frozen=True)
class Plan:
    """Plan of a whole model."""

    config: ModelConfig
    """Of the padded model."""
    rows: tuple[PlanRow, ...]
    """All linear layers in the order of computation, then those that are carried along; and the
    token embedding if it is quantized."""
    source_parts: Mapping[str, int]
    """Tensor bytes of the source by part, see `bytes_by_part`."""
    memory: MemoryEstimate
    padding: tuple[Padding, ...] = ()
    """Inner widths that are padded with zero channels before anything else."""
    format: str = "gptq"
    """Name of the checkpoint format that bytes are counted for."""
    transforms: tuple[PlannedTransform, ...] = ()
    """Transforms of float weights before they are quantized, in the order of the recipe."""
    kv_cache: KVCacheScheme | None = None
    """KV cache whose scales are calibrated."""
    kv_scale_bytes: int = 0
    """Bytes of these scales."""
    untied: bool = False
    """The source's head is tied to the token embedding, and gets a weight of its own."""
    vision_input: VisionInput = field(default_factory=VisionInput)
    """Visual tokens of the samples and of the checkpoint."""
    carried: CarriedTensors = field(default_factory=CarriedTensors)
    """Tensors of the source that the model does not compute with."""
    preparations: tuple[PlannedPreparation, ...] = ()
    """Changes of the whole float checkpoint before anything else. With them, `rows`, `padding` and
    `untied` are about the prepared checkpoint."""
    prepared_parts: Mapping[str, int] | None = None
    """Tensor bytes of the prepared checkpoint by part; None: it is the source."""

    @property
    def float_parts(self) -> Mapping[str, int]:
        """Tensor bytes of the float checkpoint that is quantized, by part."""
        return self.source_parts if self.prepared_parts is None else self.prepared_parts

    @property
    def prepared_bytes(self) -> int:
        """Bytes on disk of prepared checkpoints, of which two exist while one is written."""
        sizes = [0, *(planned.bytes_after for planned in self.preparations)]
        return max(a + b for a, b in pairwise([*sizes, 0]))

    @property
    def quantized(self) -> tuple[PlanRow, ...]:
        """Rows that a step quantizes."""
        return tuple(row for row in self.rows if row.step is not None)

    @property
    def tower(self) -> tuple[PlanRow, ...]:
        """Quantized layers of the vision tower and merger, which only images and videos reach."""
        return tuple(row for row in self.quantized if row.spec.part == "tower")

    @property
    def calibrated(self) -> bool:
        """Whether calibration samples run through the model."""
        steps = any(row.step.uses_activations for row in self.quantized if row.step)
        return steps or bool(self.transforms) or self.kv_cache is not None

    @property
    def base_bytes(self) -> int:
        """Tensor bytes of the source."""
        return sum(self.source_parts.values())

    @property
    def candidate_parts(self) -> dict[str, int]:
        """Tensor bytes of the quantized checkpoint by part."""
        parts = dict(self.float_parts)
        for row in self.rows:
            parts[byte_part(row.spec.part)] += row.bytes_after - row.bytes_before
        parts["decoder"] += self.kv_scale_bytes
        return parts

    @property
    def candidate_bytes(self) -> int:
        """Tensor bytes of the quantized checkpoint."""
        return sum(self.candidate_parts.values())

    @property
    def other_bytes(self) -> int:
        """Bytes of the tensors that no row is about: norms, convolution, a float embedding."""
        return sum(self.float_parts.values()) - sum(row.bytes_before for row in self.rows)

    @property
    def packed_bytes(self) -> int:
        """Tensor bytes of the quantized layers in the plan's format, without biases."""
        return sum(row.packed_bytes for row in self.quantized)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight of the quantized layers: integers, scales, zero points, order.

        Adapters are included.
        """
        rows = self.quantized
        stored = self.packed_bytes + sum(row.adapter_bytes for row in rows)
        return 8 * stored / sum(row.spec.weights for row in rows) if rows else 0.0

    @property
    def adapter(self) -> dict[str, Any] | None:
        """Description of the adapters, see `adapter_entry`; None if no layer has one."""
        return describe_adapters(self.rows)

    @property
    def contents(self) -> Contents:
        """Contents of the quantized checkpoint, as formats need them."""
        schemes = {row.name: row.step.scheme for row in self.rows if row.step is not None}
        carried = self.carried.layers
        return Contents(self.config, schemes, kv_cache=self.kv_cache, carried=carried)

    def prepare_model_(self, model: QwenVL) -> None:
        """Untie and pad the source's model in place, so that its config is the plan's.

        Raises:
            ValueError: see `pad_model_`.
        """
        if self.untied:
            untie_model_(model)
        pad_model_(model, self.padding)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "base_bytes": self.base_bytes,
            "candidate_bytes": self.candidate_bytes,
            "other_bytes": self.other_bytes,
            "base_parts": dict(self.source_parts),
            "candidate_parts": self.candidate_parts,
            "bits_per_weight": self.bits_per_weight,
            "format": self.format,
            "engines": []
            if self.format == FLOAT
            else [s.to_dict() for s in engine_support(self.contents, self.format)],
            **({"kv_cache": self.kv_cache.to_dict()} if self.kv_cache else {}),
            **({ADAPTER: adapter} if (adapter := self.adapter) else {}),
            **self.vision_input.described(),
            **(
                {"preparations": [planned.to_dict() for planned in self.preparations]}
                if self.preparations
                else {}
            ),
            "padding": [padding.to_dict() for padding in self.padding],
            "transforms": [transform.to_dict() for transform in self.transforms],
            "memory": self.memory.to_dict(),
        }


def make_plan(
    config: ModelConfig,
    recipe: Recipe,
    *,
    dtype: torch.dtype | None = None,
    format: str = AUTO,
    carried: CarriedTensors | None = None,
    folder: Path | None = None,
) -> Plan:
    """Plan the quantization of every linear layer of a model, without reading weights.

    Args:
        config: of the model.
        recipe: the recipe.
        dtype: of the stored weights; default the config's.
        format: checkpoint format to count bytes for; `check_format` checks whether it fits.
        carried: tensors of the source that the model does not compute with; None: there are none,
            or it is not known, as for a model in memory.
        folder: of the source, whose side files some preparations read.

    Raises:
        ValueError: a pattern matches nothing, two steps claim a layer, a shape does not fit its
            scheme even when padded, layers that engines fuse would differ, nothing would be
            quantized, a transform has nothing to do, a preparation refuses the model, or the
            format is unknown.
    """
    kind, carried = dtype or config.dtype or torch.float32, carried or CarriedTensors()
    parts = float_parts(config, kind.itemsize, carried)
    prepared = plan_preparations(config, recipe, kind.itemsize, carried=carried, folder=folder)
    if prepared:
        config, carried = prepared[-1].config, prepared[-1].carried
        source_parts, parts = parts, float_parts(config, kind.itemsize, carried)
        planned = _plan(config, recipe, kind, format, carried, parts)
        return replace(
            planned, source_parts=source_parts, prepared_parts=parts, preparations=prepared
        )
    return _plan(config, recipe, kind, format, carried, parts)


def _plan(
    config: ModelConfig,
    recipe: Recipe,
    kind: torch.dtype,
    format: str,
    carried: CarriedTensors,
    parts: Mapping[str, int],
) -> Plan:
    """Plan the steps of a recipe that come after its preparations.

    Args:
        config: of the prepared model.
        recipe: the recipe.
        kind: dtype of the stored weights.
        format: see `make_plan`.
        carried: see `make_plan`.
        parts: tensor bytes of the prepared checkpoint.
    """
    family = family_of(config)
    recipe = spell_out_parts(recipe, config)
    untied = not recipe.tie and config.text.tie_word_embeddings
    if untied:
        config = untied_config(config)
    sources, others = family.linears(config), carried_specs(config, carried)
    claims = claim_layers(sources, recipe, others)
    embedding, _ = claims.pop(EMBEDDING, (None, ""))
    check_embedding(config, recipe, embedding)
    claimed = [name for name, (step, _) in claims.items() if step is not None]
    if not claimed and embedding is None and recipe.steps:
        raise ValueError(f"recipe {recipe.name}: every targeted layer is ignored as well")
    padding = choose_padding(config, claimed, recipe.tp)
    check_carried(recipe, others, claims, padding)
    padded = padded_config(config, padding)
    specs = family.linears(padded)
    if recipe.calibration.all_experts:
        specs = take_all_tokens(specs, recipe)
    for step in recipe.steps:
        of_step = [spec for spec in (*specs, *others) if claims[spec.name][0] is step]
        for spec in of_step:
            check_shape(spec, step.scheme)
        check_groups(of_step, step.scheme, recipe.tp)
    schemes = {name: step.scheme for name, (step, _) in claims.items() if step is not None}
    if embedding is not None:
        schemes[EMBEDDING] = embedding.scheme
    if recipe.kv_cache is not None and (reason := why_no_scales(config)):
        raise ValueError(f"recipe {recipe.name}: {reason}")
    contents = Contents(padded, schemes, kv_cache=recipe.kv_cache, carried=carried.layers)
    written, _ = find_format(contents, AUTO if recipe.is_float else format)
    itemsize = kind.itemsize
    padding_of = padded_layers(config, padding)
    rows = tuple(
        _row(source, spec, *claims[spec.name], padding_of.get(spec.name), kind, written)
        for source, spec in zip([*sources, *others], [*specs, *others], strict=True)
    )
    if untied:
        rows = tuple(replace(r, bytes_before=0) if r.spec.part == "head" else r for r in rows)
    kept = [*family.kept(padded), *carried_kept(padded, carried)]
    rows = insert_kept(rows, [_kept_row(*each, itemsize) for each in kept])
    check_experts(rows, all_tokens=recipe.calibration.all_experts)
    check_adapters(rows, recipe, embedding)
    check_fused(config, rows)
    rows = with_fused(config, rows)
    if config.text.tie_word_embeddings:
        rows = (*rows, _tied_head(config))
    if embedding is not None:
        spec = family.embedding(config)
        rows = _before_decoder(rows, _row(spec, spec, embedding, "", None, kind, written))
    growth = sum(float_bytes(row.spec, itemsize) - row.bytes_before for row in rows if row.padding)
    in_float = sum(parts.values()) - sum(carried.bytes.values()) + growth
    layers = ((row.spec, row.step) for row in rows)
    memory = count_memory(padded, layers, in_float, itemsize, recipe)
    transforms = plan_transforms(padded, recipe, schemes)
    scale_bytes = 2 * itemsize * config.text.num_hidden_layers if recipe.kv_cache else 0
    return Plan(
        padded,
        rows,
        parts,
        memory,
        padding,
        FLOAT if recipe.is_float else written.name,
        transforms,
        recipe.kv_cache,
        scale_bytes,
        untied,
        recipe.vision_input,
        carried,
    )


def check_images(plan: Plan, *, present: bool) -> None:
    """Refuse samples without images for a plan that needs them.

    Text never enters the vision tower. Layers there that are only rounded are rounded all the same;
    those that need activations cannot be quantized, which is an error before any work is done.

    Args:
        plan: of the model.
        present: whether any calibration sample has an image or video.

    Raises:
        ValueError: none has, but a layer of the tower is solved, transformed, or needs the range
            of its input.
    """
    if present:
        return
    active = [transform for transform in plan.transforms if not transform.reason]
    transformed = {name for transform in active for name in transform.linears}
    missing = [
        row.name
        for row in plan.tower
        if row.name in transformed or (row.step is not None and row.step.uses_activations)
    ]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"no calibration sample has an image, and {missing[0]}{others} of the vision tower "
            "cannot be calibrated without; add samples with images, leave the tower out of the "
            "recipe, or round it (method rtn, activations none or dynamic)"
        )


def _row(
    source: LinearSpec,
    spec: LinearSpec,
    step: Step | None,
    reason: str,
    padding: Padding | None,
    dtype: torch.dtype,
    format: Format,
) -> PlanRow:
    before, after = (float_bytes(s, dtype.itemsize) for s in (source, spec))
    packed = 0
    if step is not None:
        packed, bias = quantized_bytes(spec, step.scheme, format, dtype)
        after = packed + bias
    unpadded = source if padding else None
    row = PlanRow(spec, step, reason, before, after, packed, unpadded, padding)
    return replace(row, bytes_after=after + row.adapter_bytes)


def _before_decoder(rows: tuple[PlanRow, ...], row: PlanRow) -> tuple[PlanRow, ...]:
    first = next(i for i, other in enumerate(rows) if other.spec.part == "decoder")
    return (*rows[:first], row, *rows[first:])


def _kept_row(spec: LinearSpec, reason: str, itemsize: int) -> PlanRow:
    """Make the row of a layer that is never quantized."""
    size = float_bytes(spec, itemsize)
    return PlanRow(spec, None, reason, size, size)


def check_shape(spec: LinearSpec, scheme: Scheme) -> None:
    """Refuse widths that no format and engine can hold: 8 bits need not be packed into words."""
    multiple = BYTES if scheme.bits == 8 else VALUES
    for side, size in (("in_features", spec.in_features), ("out_features", spec.out_features)):
        if size % multiple:
            raise ValueError(
                f"{spec.name}: {side} {size} is not a multiple of {multiple}, which weights of "
                f"{scheme.bits} bits need; add the layer to the step's ignore list"
            )


def _tied_head(config: ModelConfig) -> PlanRow:
    """Make the row of a head without a weight of its own."""
    text, head = config.text, family_of(config).head
    (linear,) = head.linears
    sizes = text.hidden_size, text.vocab_size
    spec = LinearSpec(head.block_path(0), *sizes, linear.bias, head.name, head.part, 0, linear.tap)
    return PlanRow(spec, None, "it shares its weight with the token embedding", 0, 0)
