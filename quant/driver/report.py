"""Report of a quantization, layer by layer; it is stored in the checkpoint.

It contains no times and no paths, because checkpoints are deterministic: the same input, recipe,
seed, versions and machine type give the same file.
"""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ... import __version__
from ...calib.token_weights import ModalityTokenWeights, PerTokenWeights
from ...model.processing.inputs import Prompt
from ..plan.channel_groups import PlannedTransform
from ..plan.plan import Plan, PlanRow
from ..recipe.adapter import ADAPTER
from ..recipe.recipe import Recipe
from ..recipe.recover import NAME as RECOVER
from ..steps.transform import Scaling
from .experts import expert_tokens
from .kv_calibration import CalibratedLayer, describe_calibration
from .rounding import TunedBlock
from .sparsity import describe_masks

MAX_FALLBACK = 0.05
"""Largest fraction of rows that may fall back to rounding; beyond it the run fails.

With more, the checkpoint would be an RTN checkpoint labelled with another method."""


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer."""

    row: PlanRow
    values: Mapping[str, Any] = field(default_factory=dict)
    """JSON values in their order: the number of `tokens` that reached a calibrated layer, then
    those of its method (`Solved.values`)."""

    @property
    def tokens(self) -> int:
        """Number of calibration tokens that reached the layer."""
        return int(self.values.get("tokens", 0))

    @property
    def error(self) -> float | None:
        """Relative squared output error before rows fell back; None if it was not calibrated."""
        return self.values.get("error")

    @property
    def rtn_error(self) -> float | None:
        """The error of rounding to nearest on the same grid, if the method measures it."""
        return self.values.get("rtn_error")

    @property
    def final_error(self) -> float | None:
        """Error of the quantized weight, after fallback, without an adapter that comes after."""
        return self.values.get("final_error")

    @property
    def adapter_error(self) -> float | None:
        """Error of the quantized weight and its adapter together; None without both."""
        return self.values.get("adapter_error")

    @property
    def fallback(self) -> str | None:
        """Why the whole layer fell back to rounding, or None."""
        return self.values.get("fallback")

    @property
    def fallback_rows(self) -> int:
        """Number of output rows that fell back to rounding, alone or with the whole layer."""
        if self.fallback:
            return self.row.spec.out_features
        return int(self.values.get("fallback_rows", 0))

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        assert self.row.step is not None
        return {
            "name": self.row.name,
            "method": self.row.step.method,
            "bits": self.row.step.scheme.bits,
            "group_size": self.row.step.scheme.group_size,
            "in_features": self.row.spec.in_features,
            "out_features": self.row.spec.out_features,
            "bytes": self.row.bytes_after,
            **self.values,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], row: PlanRow) -> "LayerReport":
        """Undo `to_dict`."""
        planned = cls(row).to_dict()
        return cls(row, {key: value for key, value in data.items() if key not in planned})


@dataclass(frozen=True)
class TransformReport:
    """One transform of one channel group."""

    planned: PlannedTransform
    values: Mapping[str, Any]
    """JSON values that it chose, see `Scaling.values`."""
    scales: Tensor | None = None
    """float32 `[channels]`; the source was divided by them. None = it was not scaled."""
    error: float | None = None
    """See `Scaling.error`."""
    plain_error: float | None = None
    """The same error without the transform."""

    @classmethod
    def of(cls, planned: PlannedTransform, scaling: Scaling | None = None) -> "TransformReport":
        """Describe what was done to a group; None: it was skipped."""
        if scaling is None:
            return cls(planned, planned.transform.unscaled)
        return cls(planned, scaling.values, scaling.scales, scaling.error, scaling.plain_error)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        scales = self.scales
        return {
            **self.planned.to_dict(),
            **self.values,
            "scales": None if scales is None else [float(scales.min()), float(scales.max())],
            "error": self.error,
            "plain_error": self.plain_error,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], planned: PlannedTransform) -> "TransformReport":
        """Undo `to_dict`, except for `scales`, which keep their minimum and maximum only."""
        scales = data["scales"]
        return cls(
            planned,
            {key: data[key] for key in planned.transform.unscaled},
            None if scales is None else torch.tensor(scales),
            data["error"],
            data["plain_error"],
        )


@dataclass(frozen=True)
class CalibrationRecord:
    """The calibration set of a run."""

    samples: int
    with_images: int
    """Number of samples with an image or video."""
    tokens: int
    fingerprint: str
    token_weights: ModalityTokenWeights | PerTokenWeights
    """Token weights with the values that were computed for them."""
    visual_tokens: tuple[int, int] | None = None
    """Kept and all visual tokens of reduced samples; None: they have all tokens."""

    @classmethod
    def of(
        cls, prompts: Sequence[Prompt], token_weights: ModalityTokenWeights | PerTokenWeights
    ) -> "CalibrationRecord":
        """Count the prompts and hash the model's inputs: token ids, positions and pixels."""
        digest = hashlib.sha256()
        for prompt in prompts:
            digest.update(prompt.input_ids.to("cpu", torch.int64).numpy().tobytes())
            digest.update(b"|")
            digest.update(prompt.position_ids.to("cpu", torch.int64).numpy().tobytes())
            for visual in prompt.visuals:
                digest.update(f"|{visual.digest}{visual.grid}".encode())
            digest.update(b"\n")
        tokens = sum(len(prompt) for prompt in prompts)
        with_images = sum(bool(prompt.visuals) for prompt in prompts)
        return cls(
            len(prompts),
            with_images,
            tokens,
            digest.hexdigest(),
            token_weights,
            count_visual_tokens(prompts),
        )


@dataclass(frozen=True)
class QuantReport:
    """A whole quantization."""

    recipe: Recipe
    plan: Plan
    layers: tuple[LayerReport, ...]
    calibration: CalibrationRecord | None
    """None if no step needs activations."""
    transforms: tuple[TransformReport, ...] = ()
    """In the order in which they ran."""
    changed: frozenset[str] = frozenset()
    """Canonical names of the float tensors that a transform rescaled: they are written from the
    model, not copied from the source."""
    cache_layers: tuple[CalibratedLayer, ...] = ()
    """Calibrated scales of the KV cache, layer by layer; empty if the recipe asks for none."""
    prepared: tuple[Mapping[str, Any], ...] = ()
    """Records of the recipe's preparations, JSON values."""
    tuned: tuple[TunedBlock, ...] = ()
    """Blocks whose rounding was tuned; the errors of their layers are those of the solver."""

    @property
    def true_sequential(self) -> bool:
        """Whether each tap group was calibrated after those before it in its block were quantized.

        Otherwise all layers of a block were calibrated on its float activations.
        """
        return self.calibration is not None and self.recipe.calibration.true_sequential

    @property
    def fallback_rows(self) -> int:
        """Number of output rows that fell back to rounding, alone or with their whole layer."""
        return sum(layer.fallback_rows for layer in self.layers)

    @property
    def base_bytes(self) -> int:
        """Tensor bytes of the source."""
        return self.plan.base_bytes

    @property
    def candidate_bytes(self) -> int:
        """Tensor bytes of the quantized checkpoint."""
        return self.plan.candidate_bytes

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per quantized weight."""
        return self.plan.bits_per_weight

    def _describe_tuning(self) -> dict[str, Any]:
        """Describe the training of blocks; empty if there was none."""
        if not self.tuned or self.recipe.recover is None:
            return {}
        blocks = [block.to_dict() for block in self.tuned]
        return {RECOVER: {**self.recipe.recover.to_dict(), "blocks": blocks}}

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON, in a fixed order."""
        calibration = self.calibration
        return {
            "schema": 1,
            "recipe": self.recipe.to_dict(),
            "versions": {
                "vlpress": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "seed": self.recipe.calibration.seed,
            "calibration": None
            if calibration is None
            else {
                "samples": calibration.samples,
                "with_images": calibration.with_images,
                "tokens": calibration.tokens,
                # Records of recipes without a reduction are as they were before it existed.
                **(
                    {"visual_tokens": dict(zip(("kept", "total"), counts, strict=True))}
                    if (counts := calibration.visual_tokens)
                    else {}
                ),
                "fingerprint": calibration.fingerprint,
                "true_sequential": self.true_sequential,
                "token_weights": calibration.token_weights.to_dict(),
            },
            **self.recipe.vision_input.described(),
            **({"kv_cache": describe_calibration(self.cache_layers)} if self.cache_layers else {}),
            **self._describe_tuning(),
            "size": {
                "base_bytes": self.base_bytes,
                "candidate_bytes": self.candidate_bytes,
                "bits_per_weight": self.bits_per_weight,
                "base_parts": dict(self.plan.source_parts),
            },
            **({"preparations": [dict(p) for p in self.prepared]} if self.prepared else {}),
            "padding": [padding.to_dict() for padding in self.plan.padding],
            "transforms": [transform.to_dict() for transform in self.transforms],
            "changed": sorted(self.changed),
            "fallback_rows": self.fallback_rows,
            **({"masks": masks} if (masks := describe_masks(self.layers)) else {}),
            **({ADAPTER: adapter} if (adapter := self.plan.adapter) else {}),
            **({"experts": experts} if (experts := expert_tokens(self.layers)) else {}),
            "layers": [layer.to_dict() for layer in self.layers],
            "kept": {row.name: row.reason for row in self.plan.rows if row.step is None},
        }


def count_visual_tokens(prompts: Sequence[Prompt]) -> tuple[int, int] | None:
    """Count the kept and all visual tokens of reduced prompts; None if none is reduced."""
    if not any(prompt.selections for prompt in prompts):
        return None
    kept = sum(prompt.kept_visual_tokens for prompt in prompts)
    return kept, kept + sum(prompt.dropped_tokens for prompt in prompts)


def check_fallback(layers: Sequence[LayerReport], rows: int) -> None:
    """Fail a run in which too many rows fell back to plain rounding.

    Args:
        layers: the finished layers.
        rows: number of output rows of all layers whose method may fall back.

    Raises:
        ValueError: over 5 % of the rows fell back, alone or with their whole layer.
    """
    count = sum(layer.fallback_rows for layer in layers)
    if count > MAX_FALLBACK * rows:
        worst = max(layers, key=lambda item: item.fallback_rows / item.row.spec.out_features)
        method = worst.row.step.method if worst.row.step else ""
        raise ValueError(
            f"{method} fell back to plain rounding on {count} of {rows} rows (at most "
            f"{MAX_FALLBACK:.0%} allowed), most in {worst.row.name} "
            f"({worst.fallback or 'was worse'}); use more or other calibration samples, a larger "
            "damp_percent, or method rtn"
        )
