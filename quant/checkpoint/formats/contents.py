"""What a quantized checkpoint contains, independent of its format."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from ....model.config import ModelConfig
from ....model.families import LinearSpec, family_of
from ...recipe.kv_cache import KVCacheScheme
from ...recipe.scheme import Scheme
from ...steps.table import methods_with


@dataclass(frozen=True)
class Solver:
    """Options of the solver that a configuration records; None = unknown."""

    damp_percent: float | None = None
    act_order: bool | None = None
    """Columns were solved in order of decreasing activation energy; no gather at run time."""
    true_sequential: bool | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any] | None) -> Self:
        """Read it from the record of a run: `QuantReport.to_dict` or `vlpress.json`."""
        steps = (record or {}).get("recipe", {}).get("step", [])
        if record is None or not steps:
            return cls()
        # Records of older versions list the options of all methods with every step.
        own = [{k: v for k, v in s.items() if s.get("method") in methods_with(k)} for s in steps]
        return cls(
            damp_percent=next((s["damp_percent"] for s in own if "damp_percent" in s), None),
            act_order=any(s.get("act_order") for s in own),
            true_sequential=bool((record.get("calibration") or {}).get("true_sequential")),
        )


@dataclass(frozen=True)
class Contents:
    """Layers and schemes of a quantized checkpoint, independent of its format."""

    config: ModelConfig
    schemes: Mapping[str, Scheme]
    """Quantized layers by canonical name."""
    reordered: Collection[str] = ()
    """Quantized layers with non-contiguous groups: their scales are gathered at run time."""
    solver: Solver = Solver()
    kv_cache: KVCacheScheme | None = None
    """KV cache whose scales the checkpoint holds."""
    carried: tuple[str, ...] = ()
    """Linear layers that the model does not compute with, see `CarriedTensors.layers`."""

    @cached_property
    def linears(self) -> dict[str, LinearSpec]:
        """All linear layers of the model, in the order of computation."""
        return {spec.name: spec for spec in family_of(self.config).linears(self.config)}

    @cached_property
    def quantized(self) -> dict[str, LinearSpec]:
        """The quantized targets: the token embedding, linear layers in order, carried layers."""
        targets = family_of(self.config).targets(self.config)
        return {spec.name: spec for spec in targets if spec.name in self.schemes}

    @cached_property
    def slices(self) -> dict[str, list[LinearSpec]]:
        """Quantized experts by the tensor that holds their float weights, each in full."""
        slices: dict[str, list[LinearSpec]] = {}
        for spec in self.quantized.values():
            if spec.slice is not None:
                slices.setdefault(spec.slice.tensor, []).append(spec)
        return slices

    @cached_property
    def unquantized(self) -> tuple[str, ...]:
        """Names of the unquantized linear layers, routers last; a tied head is none of them."""
        kept = (spec.name for spec, _ in family_of(self.config).kept(self.config))
        return (*(name for name in self.linears if name not in self.schemes), *kept)

    @cached_property
    def carried_unquantized(self) -> tuple[str, ...]:
        """Names of the carried layers that are not quantized."""
        return tuple(name for name in self.carried if name not in self.schemes)

    @property
    def carries_mtp(self) -> bool:
        """Whether the checkpoint holds a module for multi-token prediction."""
        parts = family_of(self.config).carried_parts(self.config).items()
        starts = tuple(name for name, part in parts if part == "mtp")
        return any(name.startswith(starts) for name in self.carried)

    @property
    def quantizes_carried(self) -> bool:
        """Whether carried layers are quantized."""
        return any(spec.part == "mtp" for spec in self.quantized.values())

    @cached_property
    def by_scheme(self) -> dict[Scheme, list[str]]:
        """Names of quantized layers by scheme, the scheme of most layers first."""
        groups: dict[Scheme, list[str]] = {}
        for name in self.quantized:
            groups.setdefault(self.schemes[name], []).append(name)
        return dict(sorted(groups.items(), key=lambda group: -len(group[1])))

    def where(self, condition: Callable[[LinearSpec, Scheme], object]) -> list[str]:
        """Return the names of quantized layers that meet a condition."""
        return [n for n, spec in self.quantized.items() if condition(spec, self.schemes[n])]


def layers_phrase(names: Sequence[str], one: str, several: str) -> str:
    """Return the subject and verb of a sentence: the first layer, the number of others, the verb.

    Args:
        names: of the layers, at least one.
        one: verb for a single layer.
        several: verb for more.
    """
    if len(names) == 1:
        return f"{names[0]} {one}"
    more = f"{len(names) - 1} more layer{'s' if len(names) > 2 else ''}"
    return f"{names[0]} and {more} {several}"
