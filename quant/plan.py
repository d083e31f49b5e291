"""The plan: what will happen to every linear layer, and why, before anything runs.

Every linear of the model has exactly one row, the ones that are kept included. What cannot work is
found here (a pattern that matches nothing, a width that does not divide, fused layers that would
differ), not after an hour of calibration.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..model.checkpoint import canonical_name
from ..model.config import ModelConfig
from ..model.families import LinearSpec, family_of
from ..model.loading import build_model
from .packing import VALUES
from .recipe import Recipe, Step, pattern_matches
from .scheme import QuantScheme


@dataclass(frozen=True)
class PlanRow:
    """The fate of one linear layer."""

    spec: LinearSpec
    step: Step | None
    """The step that quantizes it; None = kept."""
    reason: str
    """Why it is kept; empty if it is not."""
    bytes_before: int
    """Weight and bias as stored now."""
    bytes_after: int
    """All its tensors as written (GPTQ layout if quantized)."""

    @property
    def name(self) -> str:
        """Canonical module name."""
        return self.spec.name

    @property
    def fate(self) -> str:
        """What happens, in words."""
        if self.step is None:
            return f"kept, because {self.reason}"
        return f"{self.step.method} {self.step.scheme.label}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "stage": self.spec.stage,
            "in_features": self.spec.in_features,
            "out_features": self.spec.out_features,
            "method": self.step.method if self.step else None,
            "scheme": self.step.scheme.to_dict() if self.step else None,
            "fate": self.fate,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }


@dataclass(frozen=True)
class Memory:
    """What quantizing will hold at its peak, in bytes."""

    weights: int
    """The model itself."""
    solve: int
    """The largest layer's Hessians, factor and working copies."""
    per_token: int
    """Patches and activations that wait between blocks, for each calibration token of a picture."""

    def total(self, tokens: int) -> int:
        """Peak for so many calibration tokens in all."""
        return self.weights + self.solve + self.per_token * tokens


@dataclass(frozen=True)
class Plan:
    """All rows in the order of computation, and the sums."""

    config: ModelConfig
    rows: tuple[PlanRow, ...]
    other_bytes: int
    """Embeddings, norms, convolution: everything that is not a linear layer."""
    memory: Memory

    @property
    def quantized(self) -> tuple[PlanRow, ...]:
        """Rows that a step quantizes."""
        return tuple(row for row in self.rows if row.step is not None)

    @property
    def base_bytes(self) -> int:
        """Tensor bytes of the checkpoint as it is."""
        return self.other_bytes + sum(row.bytes_before for row in self.rows)

    @property
    def candidate_bytes(self) -> int:
        """Tensor bytes of the checkpoint that will be written."""
        return self.other_bytes + sum(row.bytes_after for row in self.rows)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight of the quantized layers: integers, scales, zero points, order."""
        rows = self.quantized
        bits = 8 * sum(row.bytes_after - _bias_bytes(row.spec) for row in rows)
        return bits / sum(row.spec.weights for row in rows) if rows else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "base_bytes": self.base_bytes,
            "candidate_bytes": self.candidate_bytes,
            "other_bytes": self.other_bytes,
            "bits_per_weight": self.bits_per_weight,
            "memory": {
                "weights": self.memory.weights,
                "solve": self.memory.solve,
                "per_token": self.memory.per_token,
            },
        }


def make_plan(config: ModelConfig, recipe: Recipe, *, dtype: torch.dtype | None = None) -> Plan:
    """Decide the fate of every linear layer of a model.

    Args:
        config: the model; no weights are needed.
        recipe: its steps.
        dtype: of the stored weights; default what the config says.

    Raises:
        ValueError: a pattern matches nothing, two steps claim a layer, a shape does not fit its
            scheme, layers that engines fuse would differ, or nothing would be quantized.
    """
    family = family_of(config)
    specs = family.linears(config)
    claims = _claims(specs, recipe)
    itemsize = (dtype or config.dtype or torch.float32).itemsize
    rows = tuple(_row(spec, *claims[spec.name], itemsize) for spec in specs)
    if not any(row.step for row in rows):
        raise ValueError(f"recipe {recipe.name}: every targeted layer is ignored as well")
    for row in rows:
        if row.step is not None:
            _check_shape(row.spec, row.step.scheme)
    _check_fused(config, rows)
    if config.text.tie_word_embeddings:
        rows = (*rows, _tied_head(config))
    parameters = sum(p.numel() for p in build_model(config).parameters()) * itemsize
    other = parameters - sum(row.bytes_before for row in rows)
    return Plan(config, rows, other, _memory(config, rows, parameters, itemsize))


def stored_bytes(spec: LinearSpec, scheme: QuantScheme) -> int:
    """Bytes of a quantized layer in the GPTQ layout (docs/format.md), bias included."""
    groups = scheme.groups(spec.in_features)
    integers = spec.weights * scheme.bits // 8
    zero_points = groups * spec.out_features * scheme.bits // 8
    scales = groups * spec.out_features * 2
    order = spec.in_features * 4
    return integers + zero_points + scales + order + _bias_bytes(spec)


def _bias_bytes(spec: LinearSpec) -> int:
    return 2 * spec.out_features if spec.bias else 0


def _claims(specs: Sequence[LinearSpec], recipe: Recipe) -> dict[str, tuple[Step | None, str]]:
    """For each layer the step that takes it, or why none does."""
    names = [spec.name for spec in specs]
    claims: dict[str, tuple[Step | None, str]] = {
        spec.name: (None, f"no step targets it ({spec.stage})") for spec in specs
    }
    for step in recipe.steps:
        targeted = _matching(step.targets, names, "target")
        ignored = _matching(step.ignore, names, "ignore pattern")
        for name in targeted:
            holder = claims[name][0]
            if name in ignored:
                if holder is None:
                    claims[name] = (None, f"the recipe ignores {ignored[name]!r}")
            elif holder is not None:
                raise ValueError(
                    f"recipe {recipe.name}: {name} is targeted by two steps; ignore it in one"
                )
            else:
                claims[name] = (step, "")
    return claims


def _matching(patterns: Sequence[str], names: Sequence[str], what: str) -> dict[str, str]:
    """Names that match, each with the first pattern that does.

    Raises:
        ValueError: a pattern matches no name.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        plain = pattern if pattern.startswith("re:") else canonical_name(pattern)
        hits = [name for name in names if pattern_matches(plain, name)]
        if not hits:
            near = difflib.get_close_matches(plain.removeprefix("re:"), names, n=3, cutoff=0.5)
            near = near or [names[0], names[-1]]
            raise ValueError(
                f"recipe: {what} {pattern!r} matches no linear layer; near are {', '.join(near)}"
            )
        for name in hits:
            found.setdefault(name, pattern)
    return found


def _row(spec: LinearSpec, step: Step | None, reason: str, itemsize: int) -> PlanRow:
    before = spec.weights * itemsize + (spec.out_features * itemsize if spec.bias else 0)
    try:
        after = before if step is None else stored_bytes(spec, step.scheme)
    except ValueError as error:
        raise ValueError(f"{spec.name}: {error}") from None
    return PlanRow(spec, step, reason, before, after)


def _check_shape(spec: LinearSpec, scheme: QuantScheme) -> None:
    for side, size in (("in_features", spec.in_features), ("out_features", spec.out_features)):
        if size % VALUES:
            raise ValueError(
                f"{spec.name}: {side} {size} is not a multiple of {VALUES}, which packed weights "
                "need; add the layer to the step's ignore list"
            )
    if scheme.activations != "none":
        raise ValueError(
            f"{spec.name}: activations {scheme.activations!r} are not supported yet by any "
            "kernel here; use none"
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
                        f"engines fuse these layers, so they must share one scheme ({fates})"
                    )


def _tied_head(config: ModelConfig) -> PlanRow:
    text = config.text
    spec = LinearSpec("lm_head", text.hidden_size, text.vocab_size, False, "head", 0, "head")
    return PlanRow(spec, None, "it shares its weight with the token embedding", 0, 0)


def _memory(config: ModelConfig, rows: Sequence[PlanRow], parameters: int, itemsize: int) -> Memory:
    solve = 0
    for row in rows:
        if row.step is not None and row.step.method == "gptq":
            spec = row.spec
            # float32, as measured: the Hessian, its ordered and damped copies, both factors and
            # what LAPACK copies; the weight, its solving copy, scales and zero points per column,
            # integers and the candidate. (Twice the first part if float32 finds no factor.)
            solve = max(solve, 4 * (7 * spec.in_features**2 + 7 * spec.weights))
    text, vision = config.text, config.vision
    # Two hidden states (before and after a block), one cosine and one sine per rotary pair.
    seen = vision.merge_unit * (itemsize * 2 * vision.hidden_size + 4 * vision.head_dim)
    read = itemsize * (2 * text.hidden_size + text.head_dim)
    patches = 4 * vision.merge_unit * vision.patch_dim  # float32, kept by the prompts throughout
    return Memory(parameters, solve, patches + max(seen, read))
