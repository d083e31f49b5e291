"""Preparation shrink: fewer MLP channels, or fewer decoder layers, see `prepare/shrink`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictBool, StrictInt

from ...common.validation import Allowed, Integer, Real, validated
from ..recipe.ranges import ChannelScore, DampPercent
from .preparation import Foreseen, Preparation
from .step import plain_fields

if TYPE_CHECKING:
    from ...model.carried import CarriedTensors
    from ...model.config import ModelConfig
    from ..prepare.context import Context

Keep = Annotated[float, Real(above=0, most=1)]
Parts = Annotated[
    tuple[Literal["decoder", "tower"], ...],
    Field(min_length=1),
    Allowed("a list of decoder, tower"),
]
Layer = Annotated[int, Integer(0)]
Layers = Annotated[
    tuple[Layer, ...], Field(min_length=1), Allowed("a list of layer numbers from 0 on")
]
Score = Annotated[
    ChannelScore | Literal["influence"], Allowed("wanda, magnitude, influence, random")
]

WIDTH_OPTIONS = {
    "keep": None,
    "refit": True,
    "score": "wanda",
    "targets": ("decoder",),
    "multiple": 128,
    "damp_percent": 0.01,
    "seed": 0,
}
"""Options of `width` with their defaults; `keep` is required."""
LAYER_OPTIONS = {"score": "influence", "seed": 0}
"""Options of `layers`."""
SCORES = {"width": ("wanda", "magnitude", "random"), "layers": ("influence", "random")}


@validated
class ShrinkStep(Preparation):
    """Removal of MLP channels (`width`) or of decoder layers (`layers`, `drop_layers`)."""

    width: Literal["mlp"] | None = None
    """What becomes narrower: the inner channels of every MLP."""
    keep: Keep | None = None
    """Share of the channels that stay at most; the number is a multiple of `multiple`."""
    refit: StrictBool | None = None
    """Whether the remaining columns of the last layer are refitted in closed form."""
    targets: Parts | None = None
    """Parts whose MLPs become narrower."""
    multiple: Annotated[int, Integer(1)] | None = None
    """Divisor of the new width: that of quantized groups, times the tensor-parallel size."""
    damp_percent: DampPercent | None = None
    """Damping of the refit as a fraction of the Hessian's mean diagonal."""
    layers: Annotated[int, Integer(1)] | None = None
    """Number of decoder layers that stay."""
    drop_layers: Layers | None = None
    """Decoder layers that are dropped, by their numbers."""
    score: Score | None = None
    """What stays: by output energy ("wanda") or magnitude of channels, by influence of layers, or
    by chance ("random"), the control of every choice."""
    seed: Annotated[StrictInt, Integer(0)] | None = None
    """Seed of "random"."""

    method: ClassVar[str] = "shrink"

    def __post_init__(self) -> None:
        given = [n for n in ("width", "layers", "drop_layers") if getattr(self, n) is not None]
        if len(given) != 1:
            what = " and ".join(given) if given else "none"
            raise ValueError(
                f"shrink has {what}; allowed: one of width, layers, drop_layers in a step; "
                "write a step for each"
            )
        options = self._options
        for name in (*WIDTH_OPTIONS, *LAYER_OPTIONS):
            if name not in options and getattr(self, name) is not None:
                raise ValueError(f"{name} has no meaning with {given[0]}; remove it")
        for name, default in options.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        if self.width is not None and self.keep is None:
            raise ValueError("keep is missing; it is required with width, as keep = 0.875")
        allowed = SCORES.get(given[0], (None,))
        if self.score not in allowed:
            raise ValueError(
                f"score is {self.score!r} with {given[0]}; allowed: {', '.join(map(str, allowed))}"
            )
        drops = self.drop_layers or ()
        if len(set(drops)) < len(drops):
            raise ValueError(f"drop_layers is {list(drops)}; allowed: each layer once")

    @property
    def _options(self) -> Mapping[str, Any]:
        """The options that have a meaning, with their defaults."""
        if self.width is not None:
            return WIDTH_OPTIONS
        return LAYER_OPTIONS if self.layers is not None else {}

    @property
    def uses_samples(self) -> bool:
        """See `Preparation.uses_samples`."""
        return self.score in ("wanda", "influence") or bool(self.refit)

    def foresee(self, config: ModelConfig, folder: Path | None) -> Foreseen:
        """See `Preparation.foresee`."""
        if self.width is not None:
            from ..prepare.shrink.widths import foresee_widths

            return foresee_widths(config, self)
        from ..prepare.shrink.layers import foresee_layers

        return foresee_layers(config, self)

    def foresee_carried(self, config: ModelConfig, carried: CarriedTensors) -> CarriedTensors:
        """See `Preparation.foresee_carried`: layers for multi-token prediction become narrower."""
        if self.width is None:
            return carried
        from ..prepare.shrink.widths import narrowed_carried

        return narrowed_carried(config, carried, self)

    def prepare(self, source: Path, destination: Path, context: Context) -> Mapping[str, Any]:
        """See `Preparation.prepare`."""
        if self.width is not None:
            from ..prepare.shrink.narrowing import narrow_checkpoint

            return narrow_checkpoint(source, destination, self, context)
        from ..prepare.shrink.dropping import drop_from_checkpoint

        return drop_from_checkpoint(source, destination, self, context)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which `read_step` reads, without options that have no meaning."""
        values = {key: v for key, v in plain_fields(self).items() if v is not None}
        return {"method": self.method, **values}
