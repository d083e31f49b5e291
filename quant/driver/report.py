"""What quantization did, layer by layer: the record that goes into the checkpoint.

It holds no times and no paths, because the bytes of a checkpoint are promised: same input, recipe,
seed, versions and machine type give the same file.
"""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ... import __version__
from ...calib.token_weights import ModalityTokenWeights, PerTokenWeights
from ...model.processing.inputs import Prompt
from ..methods.gptq import SolveStats
from ..plan.channel_groups import PlannedTransform
from ..plan.plan import Plan, PlanRow
from ..recipe.recipe import Recipe

# More fallback rows than this share means that the solver did not do what the recipe asks for.
MAX_FALLBACK = 0.05


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer."""

    row: PlanRow
    result: SolveStats | None
    """None for round to nearest."""
    tokens: int
    """Calibration tokens that reached it."""
    error: float | None = None
    """Of round to nearest, where calibration ran: as `SolveStats.error`."""
    target_shift: float | None = None
    """How far gptaq moved the weight that was to be met, relative to the original's norm. The
    errors are those against the moved weight."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        assert self.row.step is not None
        data: dict[str, Any] = {
            "name": self.row.name,
            "method": self.row.step.method,
            "bits": self.row.step.scheme.bits,
            "group_size": self.row.step.scheme.group_size,
            "in_features": self.row.spec.in_features,
            "out_features": self.row.spec.out_features,
            "bytes": self.row.bytes_after,
        }
        if self.error is not None:
            errors = dict.fromkeys(("error", "rtn_error", "final_error"), self.error)
            data |= {"tokens": self.tokens, **errors}
        if self.result is not None:
            data |= {"tokens": self.tokens, **asdict(self.result)}
        if self.target_shift is not None:
            data["target_shift"] = self.target_shift
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], row: PlanRow) -> "LayerReport":
        """Undo `to_dict`."""
        names = [f.name for f in fields(SolveStats)]
        solved = "damp_percent" in data
        return cls(
            row,
            SolveStats(**{name: data[name] for name in names}) if solved else None,
            data.get("tokens", 0),
            None if solved else data.get("error"),
            data.get("target_shift"),
        )


@dataclass(frozen=True)
class TransformReport:
    """What one transform did to one binding."""

    planned: PlannedTransform
    strength: float | None = None
    """alpha of smoothquant, ratio of awq; None = the binding was left as it is."""
    scales: Tensor | None = None
    """float32 ``[channels]``: the source was divided by them."""
    error: float | None = None
    """Relative squared error with plain rounding, of the block's output (smoothquant, where alpha
    was searched) or of the outputs of the binding's layers (awq)."""
    plain_error: float | None = None
    """The same without the transform."""
    balanced: bool = False
    """Whether the scales of awq divide by the size of the weights too."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        scales = self.scales
        strength: dict[str, Any] = {"alpha": self.strength}
        if self.planned.transform.method == "awq":
            strength = {"ratio": self.strength, "balanced": self.balanced}
        return {
            **self.planned.to_dict(),
            **strength,
            "scales": None if scales is None else [float(scales.min()), float(scales.max())],
            "error": self.error,
            "plain_error": self.plain_error,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], planned: PlannedTransform) -> "TransformReport":
        """Undo `to_dict`, but for `scales`, of which the smallest and the largest are left."""
        scales, is_awq = data["scales"], planned.transform.method == "awq"
        return cls(
            planned,
            data["ratio" if is_awq else "alpha"],
            None if scales is None else torch.tensor(scales),
            data["error"],
            data["plain_error"],
            data.get("balanced", False),
        )


@dataclass(frozen=True)
class CalibrationRecord:
    """What the model was calibrated on."""

    samples: int
    with_images: int
    """Samples that have an image or video."""
    tokens: int
    fingerprint: str
    token_weights: ModalityTokenWeights | PerTokenWeights
    """As they were, found ones in numbers."""

    @classmethod
    def of(
        cls, prompts: Sequence[Prompt], token_weights: ModalityTokenWeights | PerTokenWeights
    ) -> "CalibrationRecord":
        """Count the prompts and hash what the model sees of them."""
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
        return cls(len(prompts), with_images, tokens, digest.hexdigest(), token_weights)


@dataclass(frozen=True)
class QuantReport:
    """The whole run."""

    recipe: Recipe
    plan: Plan
    layers: tuple[LayerReport, ...]
    calibration: CalibrationRecord | None
    """None if no step looks at activations."""
    transforms: tuple[TransformReport, ...] = ()
    """In the order in which they ran."""
    changed: frozenset[str] = frozenset()
    """Canonical names of the tensors that took factors of a transform and stay in float: the
    model holds what is to be written, the source does not."""

    @property
    def true_sequential(self) -> bool:
        """Whether every layer was captured after those before it in its block were quantized."""
        return self.calibration is not None and self.recipe.calibration.true_sequential

    @property
    def fallback_rows(self) -> int:
        """Output rows, over all layers, that kept plain rounding (whole layers included)."""
        return sum(_fallback_rows(layer) for layer in self.layers)

    @property
    def base_bytes(self) -> int:
        """Tensor bytes before."""
        return self.plan.base_bytes

    @property
    def candidate_bytes(self) -> int:
        """Tensor bytes after."""
        return self.plan.candidate_bytes

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per quantized weight."""
        return self.plan.bits_per_weight

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, in a fixed order."""
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
                "fingerprint": calibration.fingerprint,
                "true_sequential": self.true_sequential,
                "token_weights": calibration.token_weights.to_dict(),
            },
            "size": {
                "base_bytes": self.base_bytes,
                "candidate_bytes": self.candidate_bytes,
                "bits_per_weight": self.bits_per_weight,
            },
            "padding": [padding.to_dict() for padding in self.plan.padding],
            "transforms": [transform.to_dict() for transform in self.transforms],
            "changed": sorted(self.changed),
            "fallback_rows": self.fallback_rows,
            "layers": [layer.to_dict() for layer in self.layers],
            "kept": {row.name: row.reason for row in self.plan.rows if row.step is None},
        }


def check_fallback(layers: Sequence[LayerReport], rows: int) -> None:
    """Refuse a run in which plain rounding took the solver's place too often.

    Args:
        layers: those that GPTQ has solved so far.
        rows: output rows that it is to solve in all.

    Raises:
        ValueError: over 5 % of the rows fell back, alone or with their whole layer.
    """
    fallen = sum(_fallback_rows(layer) for layer in layers)
    if fallen > MAX_FALLBACK * rows:
        worst = max(layers, key=lambda item: _fallback_rows(item) / item.row.spec.out_features)
        reason = worst.result.fallback if worst.result and worst.result.fallback else "was worse"
        raise ValueError(
            f"GPTQ fell back to plain rounding on {fallen} of {rows} rows (at most "
            f"{MAX_FALLBACK:.0%} allowed), most in {worst.row.name} ({reason}); use more or other "
            "calibration samples, a larger damp_percent, or method rtn"
        )


def _fallback_rows(layer: LayerReport) -> int:
    if layer.result is None:
        return 0
    return layer.row.spec.out_features if layer.result.fallback else layer.result.fallback_rows
