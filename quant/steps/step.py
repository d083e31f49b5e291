"""What a quantization method is: its options, the statistics it needs, its solver and its costs.

A method is a subclass of `Step` and a row of `METHODS` (`table.py`). Everything else (recipes, the
plan, estimates, the drivers, the report) asks the class and knows no method by name.

Recipes are read before torch is loaded: modules of this package import it, and everything that
imports it, inside functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from ...calib.statistics import HESSIAN, INPUT_RANGE, Statistic
from ...common.validation import Allowed, validated
from ..recipe.adapter import AdapterKind, AdapterRank, AdapterRule
from ..recipe.mask import Keep, MaskRule, Score
from ..recipe.presets import DECODER
from ..recipe.scheme import GridScheme, QuantScheme, Scheme, TableScheme

if TYPE_CHECKING:
    from torch import Tensor

    from ..compressed_weight import CompressedWeight
    from ..methods.layer_inputs import LayerInputs
    from ..methods.low_rank import LowRank

Patterns = Annotated[tuple[str, ...], Allowed("a list of layer patterns")]
Targets = Annotated[
    tuple[str, ...], Field(min_length=1), Allowed("a list of layer patterns, at least one")
]


@dataclass(frozen=True)
class Solved:
    """A quantized layer."""

    weight: CompressedWeight
    values: Mapping[str, Any]
    """JSON values for the report, in its order. Those that tables and checks read: `error`,
    `rtn_error` and `final_error` (relative squared output errors, before and after rows fall back),
    `fallback_rows` (rows that fell back to rounding) and `fallback` (why the whole layer did)."""
    summary: str
    """The end of a line of progress that begins with the layer's name."""
    warning: str | None = None
    target: Tensor | None = None
    """`[out_features, in_features]`: what was approximated; None = the weight itself."""
    adapter: LowRank | None = None
    """Low-rank part that is added, see `adapter.py`."""


@dataclass(frozen=True)
class Work:
    """Operations of solving one layer, for the estimate of time."""

    columns: int = 0
    """Columns that are solved one after the other."""
    macs: float = 0.0
    """Multiply-adds of the solver."""
    factor_macs: float = 0.0
    """Multiply-adds of the factor."""
    factor: Hashable = None
    """Layers that read the same input share the factors of equal keys."""
    searched: int = 0
    """Weights whose scales are searched."""


GRID_KEY = "grid"
"""Key that states a table of levels; without it the levels are integers."""


@validated
class Step(ABC):
    """One quantization pass over some of the layers; a method adds its own options as fields.

    The annotation of a field states its range, which is checked on construction and nowhere else.
    """

    scheme: Scheme
    """The grid. Recipes state its fields next to those of the step."""
    targets: Targets = (DECODER,)
    ignore: Patterns = ()

    method: ClassVar[str]
    """Name in recipes."""
    scheme_type: ClassVar[type[Scheme]] = QuantScheme
    """Class of `scheme`, whose fields recipes state; see `scheme_of` for several."""
    rounds: ClassVar[bool] = False
    """Whether every weight is rounded on its own, so that an earlier transform can foresee it."""
    falls_back: ClassVar[bool] = False
    """Whether rows may fall back to rounding; more than a few of them fail the run."""

    @classmethod
    def scheme_of(cls, keys: Collection[str]) -> type[Scheme]:
        """Return the class of the scheme that the keys of a recipe's step state."""
        return cls.scheme_type

    @property
    def mask(self) -> MaskRule | None:
        """Weights that are held at zero; None = none is."""
        return None

    @property
    def adapter_rule(self) -> AdapterRule | None:
        """Low-rank adapter of the layers; None = they have none."""
        return None

    @property
    def label(self) -> str:
        """Short form for tables, for example `gptq int4 g128 sym, keep 0.5 by wanda`."""
        parts = [part.label for part in (self.mask, self.adapter_rule) if part is not None]
        return ", ".join([f"{self.method} {self.scheme.label}", *parts])

    @property
    def statistics(self) -> frozenset[Statistic]:
        """Statistics of the input that the pass cannot work without."""
        return frozenset({INPUT_RANGE} if self.scheme.calibrates_input else ())

    @property
    def uses_activations(self) -> bool:
        """Whether activations of calibration samples are needed."""
        return bool(self.statistics)

    @property
    def uses_float_model(self) -> bool:
        """Whether activations of the float model are needed too."""
        return any(statistic.from_float_model for statistic in self.statistics)

    @abstractmethod
    def solve(
        self,
        weight: Tensor,
        inputs: LayerInputs | None,
        *,
        clip: bool = False,
        fused_range: float | None = None,
    ) -> Solved:
        """Quantize a weight; a pure function.

        Args:
            weight: `[out_features, in_features]`, any float dtype.
            inputs: statistics of the layer's input: the Hessian and those in `statistics`. None
                if no calibration sample reaches the layer, for methods that need none.
            clip: an earlier transform asks methods that round for a search of the scales.
            fused_range: see `GridScheme.fit_for_rounding`.

        Raises:
            ValueError: the weight or a statistic is unusable.
        """

    def round(self, weight: Tensor, *, fused_range: float | None = None) -> CompressedWeight:
        """Quantize the weight `[out_features, in_features]` of an expert that few tokens reach.

        It is rounded, with the scales whose squared rounding error is least.

        Raises:
            ValueError: the method's kind of weight has no levels to round to.
        """
        import torch

        if not isinstance(self.scheme, GridScheme):
            raise ValueError(
                f"method {self.method} cannot quantize an expert that few tokens reach"
            )
        unit = torch.eye(weight.shape[1], device=weight.device)
        grid = self.scheme.fit_for_rounding(weight, unit, fused_range=fused_range)
        rounded: CompressedWeight = grid.compressed(grid.nearest(weight))
        return rounded

    def work(self, columns: int, rows: int) -> Work:
        """Count the operations of solving a layer `[rows, columns]`."""
        return Work()

    def memory(self, columns: int, rows: int, *, calibrated: bool) -> int:
        """Count the bytes of solving a layer `[rows, columns]`, without its float weight.

        Args:
            columns: input features.
            rows: output features.
            calibrated: whether the layer has statistics.
        """
        if calibrated:
            # The Hessian; the weight, its scaled copy, the candidate and their products with it.
            return 4 * (columns**2 + 5 * columns * rows)
        return 15 * columns * rows

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which `read_step` reads."""
        values = plain_fields(self)
        grid = values.pop("scheme").to_dict()
        first = {"method": self.method, "targets": values.pop("targets")}
        return {**first, "ignore": values.pop("ignore"), **grid, **values}


@validated
class GridStep(Step):
    """A step whose method finds levels on any grid."""

    scheme: GridScheme
    keep: Keep | None = None
    """Share of the weights of a row, or pattern N:M, that is not held at zero; None = all."""
    score: Score | None = None
    """Which weights are kept, see `MaskRule`; default the last of `scores`."""
    adapter_rank: AdapterRank | None = None
    """Rank of a low-rank adapter that is added to every layer; None = none."""
    adapter: AdapterKind | None = None
    """What the adapter is fitted to, see `AdapterRule`; default the first of `adapters`."""

    scores: ClassVar[tuple[Score, ...]] = ("magnitude", "wanda", "sparsegpt")
    """Scores that the method can compute, the best last."""
    adapters: ClassVar[tuple[AdapterKind, ...]] = ("eora", "svd", "svd_first")
    """Kinds of adapters beside the method, the default first."""

    def __post_init__(self) -> None:
        self._complete_adapter()
        if self.keep is None and self.score is not None:
            raise ValueError(
                f"score is {self.score!r} without keep; allowed: with keep, the share of weights "
                "that are not zero; add keep, or remove score"
            )
        if self.keep is not None and self.score is None:
            object.__setattr__(self, "score", self.scores[-1])
        if self.keep is not None and self.score not in self.scores:
            raise ValueError(
                f"score is {self.score!r} with method {self.method}; allowed: "
                f"{', '.join(self.scores)}; the method gptq has all scores"
            )

    def _complete_adapter(self) -> None:
        if self.adapter_rank is None and self.adapter is not None:
            raise ValueError(
                f"adapter is {self.adapter!r} without adapter_rank; allowed: with adapter_rank, "
                "the rank of A and B; add adapter_rank = 32, or remove adapter"
            )
        if self.adapter_rank is not None and self.adapter is None:
            object.__setattr__(self, "adapter", self.adapters[0])
        if self.adapter is not None and self.adapter not in self.adapters:
            raise ValueError(
                f"adapter is {self.adapter!r} with method {self.method}; allowed: "
                f"{', '.join(self.adapters)}; the method gptq has all kinds"
            )

    @property
    def adapter_rule(self) -> AdapterRule | None:
        """See `Step.adapter_rule`."""
        if self.adapter_rank is None or self.adapter is None:
            return None
        return AdapterRule(self.adapter_rank, self.adapter)

    @property
    def statistics(self) -> frozenset[Statistic]:
        """See `Step.statistics`."""
        return super().statistics | ({HESSIAN} if self.adapter == "eora" else set())

    @property
    def mask(self) -> MaskRule | None:
        """See `Step.mask`."""
        if self.keep is None or self.score is None:
            return None
        return MaskRule(self.keep, self.score)

    def round(self, weight: Tensor, *, fused_range: float | None = None) -> CompressedWeight:
        """See `Step.round`; a mask is chosen by magnitude, for want of energies of the input."""
        from ..methods.masks import choose_zeros, hold_zeros

        if self.keep is not None:
            zeros = choose_zeros(weight, MaskRule(self.keep, "magnitude"))
            weight = hold_zeros(weight, zeros)
        return super().round(weight, fused_range=fused_range)

    def to_dict(self) -> dict[str, Any]:
        """See `Step.to_dict`; steps without a mask or adapter are as they were before these."""
        values = super().to_dict()
        if self.keep is None:
            del values["keep"], values["score"]
        if self.adapter_rank is None:
            del values["adapter_rank"], values["adapter"]
        return values

    @classmethod
    def scheme_of(cls, keys: Collection[str]) -> type[Scheme]:
        """See `Step.scheme_of`."""
        return TableScheme if GRID_KEY in keys else QuantScheme


def plain_fields(step: Any) -> dict[str, Any]:
    """Return the fields of a step by name, with lists for tuples."""
    values = {name: getattr(step, name) for name in field_names(step)}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def field_names(kind: Any) -> list[str]:
    """Return the names of the options of a step or of its class."""
    return [f.name for f in fields(kind)]
