"""The plan: what will happen to every linear layer, and why, before anything runs.

Every linear of the model has exactly one row, the ones that are kept included. What cannot work is
found here (a pattern that matches nothing, a width that does not divide, fused layers that would
differ), not after an hour of calibration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...model.config import ModelConfig
from ...model.families import LinearSpec, family_of
from ...model.loading import build_model
from ..checkpoint.formats import AUTO, find_format
from ..checkpoint.formats.format import Contents, Format
from ..checkpoint.formats.packing import VALUES
from ..driver.padding import Padding, choose_padding, padded_config, padded_layers
from ..recipe.recipe import Recipe
from ..recipe.scheme import QuantScheme
from ..recipe.steps import Step
from .channel_groups import PlannedTransform, plan_transforms
from .memory_estimate import MemoryEstimate, count_memory
from .target_matching import check_groups, claim_layers


@dataclass(frozen=True)
class PlanRow:
    """The fate of one linear layer."""

    spec: LinearSpec
    """As it will be: padded, if a width of it grows."""
    step: Step | None
    """The step that quantizes it; None = kept."""
    reason: str
    """Why it is kept; empty if it is not."""
    bytes_before: int
    """Weight and bias as stored now."""
    bytes_after: int
    """All its tensors as written in the plan's format."""
    packed_bytes: int = 0
    """Of these, what stands for the weight of a quantized layer: all but the bias."""
    source: LinearSpec | None = None
    """As it is now; None = no width of it grows."""
    padding: Padding | None = None
    """What makes it grow."""

    @property
    def name(self) -> str:
        """Canonical module name."""
        return self.spec.name

    @property
    def fate(self) -> str:
        """What happens, in words."""
        if self.step is None:
            fate = f"kept, because {self.reason}"
        else:
            fate = f"{self.step.method} {self.step.scheme.label}"
        return f"{fate}; {self.growth}" if self.padding else fate

    @property
    def growth(self) -> str:
        """Which width grows, from what to what, and why; empty if none does."""
        if self.source is None or self.padding is None:
            return ""
        inward = self.source.in_features != self.spec.in_features
        side = "in_features" if inward else "out_features"
        return f"{side} {self.padding.before} padded to {self.padding.after}: {self.padding.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "stage": self.spec.stage,
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
    """All rows in the order of computation, and the sums."""

    config: ModelConfig
    """Of the model as it will be, with the widths that grow."""
    rows: tuple[PlanRow, ...]
    other_bytes: int
    """Embeddings, norms, convolution: everything that is not a linear layer."""
    memory: MemoryEstimate
    padding: tuple[Padding, ...] = ()
    """Inner widths that grow by zero channels before anything else happens."""
    format: str = "gptq"
    """Name of the checkpoint format that bytes are counted for."""
    passed_over: str = ""
    """Why a more common format was not chosen; empty if it was, or if the format was asked for."""
    transforms: tuple[PlannedTransform, ...] = ()
    """What is done to float weights before they are quantized, in the order of the recipe."""

    @property
    def quantized(self) -> tuple[PlanRow, ...]:
        """Rows that a step quantizes."""
        return tuple(row for row in self.rows if row.step is not None)

    @property
    def tower(self) -> tuple[PlanRow, ...]:
        """Quantized layers of the vision tower and merger, which only images and videos reach."""
        return tuple(row for row in self.quantized if row.spec.stage in ("vision", "merger"))

    @property
    def calibrated(self) -> bool:
        """Whether samples run through the model."""
        return bool(self.transforms) or any(row.step.looks for row in self.quantized if row.step)

    @property
    def base_bytes(self) -> int:
        """Tensor bytes of the checkpoint as it is."""
        return self.other_bytes + sum(row.bytes_before for row in self.rows)

    @property
    def candidate_bytes(self) -> int:
        """Tensor bytes of the checkpoint that will be written."""
        return self.other_bytes + sum(row.bytes_after for row in self.rows)

    @property
    def packed_bytes(self) -> int:
        """Tensor bytes of the quantized layers, as they will be written."""
        return sum(row.packed_bytes for row in self.quantized)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight of the quantized layers: integers, scales, zero points, order."""
        rows = self.quantized
        return 8 * self.packed_bytes / sum(row.spec.weights for row in rows) if rows else 0.0

    @property
    def contents(self) -> Contents:
        """What the checkpoint will hold."""
        schemes = {row.name: row.step.scheme for row in self.rows if row.step is not None}
        return Contents(self.config, schemes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "base_bytes": self.base_bytes,
            "candidate_bytes": self.candidate_bytes,
            "other_bytes": self.other_bytes,
            "bits_per_weight": self.bits_per_weight,
            "format": self.format,
            "passed_over": self.passed_over,
            "padding": [padding.to_dict() for padding in self.padding],
            "transforms": [transform.to_dict() for transform in self.transforms],
            "memory": self.memory.to_dict(),
        }


def make_plan(
    config: ModelConfig, recipe: Recipe, *, dtype: torch.dtype | None = None, format: str = AUTO
) -> Plan:
    """Decide the fate of every linear layer of a model.

    Args:
        config: the model; no weights are needed.
        recipe: its steps.
        dtype: of the stored weights; default what the config says.
        format: checkpoint format to count bytes for; `check_format` says whether it fits.

    Raises:
        ValueError: a pattern matches nothing, two steps claim a layer, a shape does not fit its
            scheme even when padded, layers that engines fuse would differ, nothing would be
            quantized, a transform has nothing to do, or the format is unknown.
    """
    family = family_of(config)
    sources = family.linears(config)
    claims = claim_layers(sources, recipe)
    claimed = [name for name, (step, _) in claims.items() if step is not None]
    if not claimed:
        raise ValueError(f"recipe {recipe.name}: every targeted layer is ignored as well")
    padding = choose_padding(config, claimed, recipe.tp)
    padded = padded_config(config, padding)
    specs = family.linears(padded)
    for step in recipe.steps:
        mine = [spec for spec in specs if claims[spec.name][0] is step]
        for spec in mine:
            _check_shape(spec, step.scheme)
        check_groups(mine, step.scheme, recipe.tp)
    schemes = {name: step.scheme for name, (step, _) in claims.items() if step is not None}
    written, passed_over = find_format(Contents(padded, schemes), format)
    kind = dtype or config.dtype or torch.float32
    itemsize = kind.itemsize
    growing = padded_layers(config, padding)
    rows = tuple(
        _row(source, spec, *claims[spec.name], growing.get(spec.name), kind, written)
        for source, spec in zip(sources, specs, strict=True)
    )
    _check_fused(config, rows)
    if config.text.tie_word_embeddings:
        rows = (*rows, _tied_head(config))
    parameters = sum(p.numel() for p in build_model(config).parameters()) * itemsize
    other = parameters - sum(row.bytes_before for row in rows)
    in_float = other + sum(_float_bytes(spec, itemsize) for spec in specs)
    fates = ((row.spec, row.step) for row in rows)
    memory = count_memory(padded, fates, in_float, itemsize, recipe)
    transforms = plan_transforms(padded, recipe, claimed)
    return Plan(padded, rows, other, memory, padding, written.name, passed_over, transforms)


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
        if row.name in transformed or (row.step is not None and row.step.looks)
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
    before, after = (_float_bytes(s, dtype.itemsize) for s in (source, spec))
    packed = 0
    if step is not None:
        packed = format.stored_bytes(spec, step.scheme, dtype)
        bias = format.bias_dtype(dtype).itemsize * spec.out_features if spec.bias else 0
        after = packed + bias
    unpadded = source if padding else None
    return PlanRow(spec, step, reason, before, after, packed, unpadded, padding)


def _float_bytes(spec: LinearSpec, itemsize: int) -> int:
    return itemsize * (spec.weights + (spec.out_features if spec.bias else 0))


def _check_shape(spec: LinearSpec, scheme: QuantScheme) -> None:
    for side, size in (("in_features", spec.in_features), ("out_features", spec.out_features)):
        if size % VALUES:
            raise ValueError(
                f"{spec.name}: {side} {size} is not a multiple of {VALUES}, which packed weights "
                "need; add the layer to the step's ignore list"
            )


def _check_fused(config: ModelConfig, rows: Sequence[PlanRow]) -> None:
    """Layers that engines run as one must share scheme and fate."""
    steps = {row.name: row.step for row in rows}
    for stage in family_of(config).stages:
        for block in stage.blocks(config):
            for members in stage.fused:
                names = [f"{block}.{member}" for member in members]
                schemes = {name: step.scheme if (step := steps[name]) else None for name in names}
                if len(set(schemes.values())) > 1:
                    fates = ", ".join(
                        f"{name}: {scheme.label if scheme else 'kept'}"
                        for name, scheme in schemes.items()
                    )
                    raise ValueError(
                        "engines fuse these layers into one matrix, which has one scheme, so "
                        f"they must share it ({fates}); give all the same bits and group_size"
                    )


def _tied_head(config: ModelConfig) -> PlanRow:
    text = config.text
    spec = LinearSpec("lm_head", text.hidden_size, text.vocab_size, False, "head", 0, "head")
    return PlanRow(spec, None, "it shares its weight with the token embedding", 0, 0)
