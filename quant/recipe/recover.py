"""The `[recover]` table of a recipe: training of a few parameters after quantization.

`params` names what is trained. Scales, norms and adapters are trained over the whole model, towards
the distributions of teachers or towards the samples' own answers. Rounding is tuned block by block
during calibration, towards the outputs of the float block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ...common.validation import Allowed, Integer, OneOf, Real, parse, validated

NAME = "recover"
SELF = "self"
"""Teacher: the float model that was quantized."""
ROUNDING = "rounding"


@dataclass(frozen=True)
class ParamDefaults:
    """Defaults that depend on what is trained."""

    lr: float
    batch: int


DEFAULTS: Mapping[str, ParamDefaults] = {
    "scales": ParamDefaults(lr=0.001, batch=16),
    "norms": ParamDefaults(lr=0.001, batch=16),
    "adapter": ParamDefaults(lr=0.002, batch=16),
    ROUNDING: ParamDefaults(lr=0.02, batch=16),
}
"""By kind of parameter. Learning rates are relative to the values, that of rounding to the move
that its gradient and curvature ask for."""
END_TO_END = tuple(name for name in DEFAULTS if name != ROUNDING)
OF_BLOCKS = ("steps", "freeze")
"""Keys of rounding alone."""
OF_WHOLE = ("teachers", "weights", "targets", "samples", "held_out", "seed", "epochs")
"""Keys of parameters that are trained over the whole model."""


def _as_list(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Kinds = Annotated[
    tuple[Annotated[str, OneOf(tuple(DEFAULTS))], ...],
    Field(min_length=1),
    BeforeValidator(_as_list),
]
Weights = Annotated[
    tuple[Annotated[float, Real(above=0)], ...], Allowed("a list of numbers above 0")
]
Shares = Annotated[
    tuple[Annotated[float, Real(above=0, most=1)], ...],
    Field(min_length=1),
    Allowed("a list of numbers above 0, at most 1"),
]


@validated
class Recover:
    """What is trained after quantization, on what, and for how long.

    Raises:
        ValueError: a field is out of range, or does not belong to `params`.
    """

    params: Kinds
    """Kinds in `DEFAULTS`; rounding is alone."""
    lr: Annotated[float, Real(above=0)] | None = None
    """Learning rate at the start; it falls to zero linearly. None: the kind's."""
    batch: Annotated[int, Integer(1)] | None = None
    """Samples per step; None: the kind's."""
    teachers: (
        Annotated[tuple[str, ...], Field(min_length=1), Allowed("a list of names, at least one")]
        | None
    ) = None
    """`self`, models, and folders of stored log-probabilities; default self."""
    weights: Weights | None = None
    """Weight of each teacher; default equal."""
    targets: Literal["teachers", "answers"] | None = None
    """Distributions of the teachers (the default), or the samples' own answers."""
    samples: Annotated[int, Integer(2)] | None = None
    """Number of samples, those that are held out included; default 1024."""
    held_out: Annotated[float, Real(above=0, below=1)] | None = None
    """Share of the samples that is not trained on and chooses the best epoch; default 0.125."""
    seed: Annotated[int, Integer(0)] | None = None
    """Seed of the draw, and of the order of the samples; default 1000."""
    epochs: Annotated[int, Integer(1)] | None = None
    """Passes over the samples; default 2."""
    steps: Annotated[int, Integer(1)] | None = None
    """Steps per block; default 160."""
    freeze: Shares | None = None
    """Share of the weights of each row that are fixed to their levels, by stage (INQ, Zhou et al.,
    arXiv 1702.03044); None: all weights are rounded all the time."""

    def __post_init__(self) -> None:
        if ROUNDING in self.params and len(self.params) > 1:
            raise ValueError(
                f"params is {list(self.params)}; allowed: rounding alone, or any of "
                f"{', '.join(END_TO_END)}; recover the result again for the others"
            )
        foreign = OF_WHOLE if self.is_blockwise else OF_BLOCKS
        if wrong := [name for name in foreign if getattr(self, name) is not None]:
            raise ValueError(
                f"{wrong[0]} does not belong to params {', '.join(self.params)}; allowed: "
                f"{', '.join(OF_BLOCKS if self.is_blockwise else OF_WHOLE)}, lr, batch"
            )
        self._check_teachers()
        self._check_freeze()
        first = DEFAULTS[self.params[0]]
        values: dict[str, Any] = {"batch": first.batch}
        if self.is_blockwise:
            values |= {"lr": first.lr, "steps": 160}
        else:
            values |= {"targets": "teachers", "samples": 1024, "held_out": 0.125}
            values |= {"seed": 1000, "epochs": 2}
            if self.targets != "answers":
                values["teachers"] = (SELF,)
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _check_teachers(self) -> None:
        if self.targets == "answers" and (self.teachers or self.weights):
            raise ValueError(
                "teachers with targets answers; allowed: one of them; remove teachers, or targets"
            )
        names = self.teachers or (SELF,)
        if self.weights is not None and len(self.weights) != len(names):
            raise ValueError(
                f"weights has {len(self.weights)} numbers for {len(names)} teachers; allowed: one "
                "for each"
            )

    def _check_freeze(self) -> None:
        stages = self.freeze or (1.0,)
        if any(a >= b for a, b in pairwise(stages)) or stages[-1] != 1:
            raise ValueError(f"freeze is {list(stages)}; allowed: rising shares that end with 1.0")

    @property
    def is_blockwise(self) -> bool:
        """Whether blocks are tuned during calibration, instead of the whole model afterwards."""
        return ROUNDING in self.params

    def rate(self, kind: str) -> float:
        """Return the learning rate of a kind."""
        return DEFAULTS[kind].lr if self.lr is None else self.lr

    @property
    def teacher_shares(self) -> list[tuple[str, float]]:
        """Return the teachers with their weights, which sum to 1; empty for answers as targets."""
        names = self.teachers or ()
        weights = self.weights or (1.0,) * len(names)
        return [(name, w / sum(weights)) for name, w in zip(names, weights, strict=True)]

    @classmethod
    def from_table(cls, table: object) -> Recover | None:
        """Build it from the plain data of a recipe; None without the table.

        Raises:
            ValueError: a key is unknown or missing, or a value is not allowed.
        """
        return None if table is None else parse(cls, table, "recipe", NAME)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which `from_table` reads, with the defaults that apply."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
            if value is not None
        }


def describe_recovery(described: Mapping[str, Any]) -> str:
    """Describe a recovery in a line, from its entry in the record of a checkpoint."""
    params = ", ".join(described["params"])
    if "blocks" in described:
        best = sum(block["best"] for block in described["blocks"])
        start = sum(block["start"] for block in described["blocks"])
        return (
            f"recovery of {params}: loss of the blocks {best / start:.2f} times that of the start, "
            "on samples that were held out"
        )
    losses = described["held_out_loss"]
    return (
        f"recovery of {params} has seen {described['training_samples']} samples: loss "
        f"{min(losses):.4g} after {losses[0]:.4g}, on {described['held_out_samples']} others"
    )
