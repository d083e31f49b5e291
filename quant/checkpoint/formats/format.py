"""What every checkpoint format must answer, and what it is asked about.

A format says how one quantized layer lies on disk and how `config.json` speaks of it. Walking a
source, copying what is not quantized and making the folder whole is the same for all of them
(`writer.py`, `checkpoint.py`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ....model.config import ModelConfig
from ....model.families import LinearSpec, family_of
from ...methods.affine import QuantizedWeight
from ...recipe.scheme import QuantScheme

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
INDICES = (torch.int32, torch.int64)
Shapes = Mapping[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]]
"""For each part the shape it must have, and the types it may have."""
ROUNDED_INPUTS = "int8 activations, which only compressed-tensors can ask for"


@dataclass(frozen=True)
class Solver:
    """How the integers were found, as far as a configuration says it; None = not known."""

    damp_percent: float | None = None
    act_order: bool | None = None
    """Columns were solved by falling activation energy; nothing is gathered at run time."""
    true_sequential: bool | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any] | None) -> Self:
        """Read the record of a run, as a report gives it and `vlpress.json` keeps it."""
        steps = (record or {}).get("recipe", {}).get("step", [])
        if record is None or not steps:
            return cls()
        return cls(
            damp_percent=next((s["damp_percent"] for s in steps if "damp_percent" in s), None),
            act_order=any(s.get("method") != "rtn" and s.get("act_order") for s in steps),
            true_sequential=bool((record.get("calibration") or {}).get("true_sequential")),
        )


@dataclass(frozen=True)
class Contents:
    """What a quantized checkpoint holds, whatever its format."""

    config: ModelConfig
    schemes: Mapping[str, QuantScheme]
    """Quantized layers by canonical name."""
    reordered: Collection[str] = ()
    """Those whose groups are not runs of neighbours, so that scales are gathered at run time."""
    solver: Solver = Solver()

    @cached_property
    def linears(self) -> dict[str, LinearSpec]:
        """Every linear layer of the model, in the order of computation."""
        return {spec.name: spec for spec in family_of(self.config).linears(self.config)}

    @cached_property
    def quantized(self) -> dict[str, LinearSpec]:
        """Those that are quantized, in the same order."""
        return {name: spec for name, spec in self.linears.items() if name in self.schemes}

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """Names of the others; a tied head is not a layer of its own."""
        return tuple(name for name in self.linears if name not in self.schemes)

    @cached_property
    def by_scheme(self) -> dict[QuantScheme, list[str]]:
        """Layers of each scheme, the scheme of most layers first."""
        groups: dict[QuantScheme, list[str]] = {}
        for name in self.quantized:
            groups.setdefault(self.schemes[name], []).append(name)
        return dict(sorted(groups.items(), key=lambda group: -len(group[1])))

    def where(self, holds: Callable[[LinearSpec, QuantScheme], object]) -> list[str]:
        """Quantized layers for which something holds."""
        return [name for name, spec in self.quantized.items() if holds(spec, self.schemes[name])]


def say(names: Sequence[str], one: str, several: str) -> str:
    """The beginning of a sentence about layers: the first of them, how many more, and the verb."""
    if len(names) == 1:
        return f"{names[0]} {one}"
    more = f"{len(names) - 1} more layer{'s' if len(names) > 2 else ''}"
    return f"{names[0]} and {more} {several}"


class Settings(Protocol):
    """What the `quantization_config` of one checkpoint says."""

    def scheme(self, names: Sequence[str]) -> QuantScheme:
        """Scheme of a layer.

        Args:
            names: all that the layer is called: canonical, in the file, in newer libraries.

        Raises:
            ValueError: the configuration does not say, or says what cannot be read.
        """
        ...


class Format(Protocol):
    """How quantized layers lie on disk."""

    @property
    def name(self) -> str:
        """As users write it."""
        ...

    @property
    def parts(self) -> tuple[str, ...]:
        """Last names of all tensors that a layer may have, its bias apart.

        The first of them that is there stands where the float weight stood.
        """
        ...

    @property
    def marker(self) -> str:
        """The part by which a quantized layer is known."""
        ...

    @property
    def order_part(self) -> str | None:
        """The part that says which group each input feature belongs to, if there is one."""
        ...

    @property
    def config_files(self) -> tuple[str, ...]:
        """Files beside config.json that hold the same `quantization_config`."""
        ...

    def why_not(self, contents: Contents) -> str | None:
        """Why the format cannot hold this, or None."""
        ...

    def encode(self, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors of a layer by part.

        Args:
            weight: the layer.
            dtype: of the checkpoint's float tensors.

        Raises:
            ValueError: a number of this layer cannot be said.
        """
        ...

    def decode(
        self, tensors: Mapping[str, Tensor], scheme: QuantScheme, name: str
    ) -> QuantizedWeight:
        """A layer from its tensors; what it keeps is no view of them.

        Args:
            tensors: those of `parts` that the file has.
            scheme: from `Settings.scheme`.
            name: for messages.

        Raises:
            ValueError: a tensor is missing, or of a shape, type or content that does not belong.
        """
        ...

    def settings(self, config: Mapping[str, Any]) -> Settings:
        """Read the `quantization_config` of any writer.

        Raises:
            ValueError: a key is missing or says something that cannot be read.
        """
        ...

    def quantization_config(
        self, contents: Contents, file_name: Callable[[str], str]
    ) -> dict[str, Any]:
        """What goes into config.json; every value is what was done.

        Args:
            contents: what `why_not` has nothing against.
            file_name: what the checkpoint itself calls a layer.
        """
        ...

    def stored_bytes(self, spec: LinearSpec, scheme: QuantScheme, dtype: torch.dtype) -> int:
        """Bytes of a layer's tensors, its bias apart.

        Raises:
            ValueError: the width does not divide into whole groups.
        """
        ...

    def bias_dtype(self, stored: torch.dtype) -> torch.dtype:
        """Type that the bias of a layer is written in when its source has this one."""
        ...


def check_parts(
    tensors: Mapping[str, Tensor],
    wanted: Shapes,
    name: str,
) -> None:
    """Compare a layer's tensors with the shapes and types that they must have.

    Raises:
        ValueError: one is missing, or another shape or type than allowed.
    """
    for part, (shape, dtypes) in wanted.items():
        tensor = need(tensors, part, name)
        if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
            raise ValueError(
                f"{name}.{part} is {tensor.dtype} {list(tensor.shape)}; expected "
                f"{dtypes[0]} {list(shape)}"
            )


def need(tensors: Mapping[str, Tensor], part: str, name: str) -> Tensor:
    """A part that every layer has.

    Raises:
        ValueError: it is missing.
    """
    if part not in tensors:
        raise ValueError(f"{name}.{part} is missing; the checkpoint is incomplete")
    return tensors[part]


def group_index(order: Tensor, groups: int, name: str) -> Tensor | None:
    """The group of each input feature, checked; None if they are runs of neighbours.

    Args:
        order: integers ``[K]``, as the file has them.
        groups: number of groups.
        name: of the tensor, for messages.

    Raises:
        ValueError: a group is out of range.
    """
    order = order.to(torch.int32)
    plain = torch.arange(len(order), dtype=torch.int32, device=order.device)
    if torch.equal(order, plain // (len(order) // groups)):
        return None
    if int(order.min()) < 0 or int(order.max()) >= groups:
        raise ValueError(
            f"{name} runs from {int(order.min())} to {int(order.max())}, but there are "
            f"{groups} groups; the file is damaged"
        )
    return order.clone()  # what was read is a view of the file


def check_symmetric(weight: QuantizedWeight, name: str, key: str) -> None:
    """Refuse zero points that contradict a symmetric scheme.

    Raises:
        ValueError: there are such; engines that trust the configuration ignore them.
    """
    if weight.scheme.symmetric and bool((weight.zero_points != weight.scheme.midpoint).any()):
        odd = weight.zero_points[weight.zero_points != weight.scheme.midpoint]
        raise ValueError(
            f"{name} has a zero point of {int(odd[0])}, but the configuration says symmetric, "
            f"which means {weight.scheme.midpoint}; correct {key} in quantization_config"
        )


def fp16_scales(scales: Tensor) -> Tensor:
    """Scales as fp16, transposed to ``[G, N]`` as GPTQ and AWQ files have them.

    Raises:
        ValueError: one is not an fp16 number.
    """
    rounded = scales.t().contiguous().to(torch.float16)
    if not torch.equal(rounded.to(torch.float32), scales.t()):
        raise ValueError("a scale is not an fp16 number; compressed-tensors can hold it")
    return rounded


def float_tensor(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 values in the dtype, or the narrowest other one that holds them exactly."""
    for choice in (dtype, torch.float16):
        if torch.equal(values.to(choice).to(torch.float32), values):
            return values.to(choice).contiguous()
    return values.to(torch.float32).contiguous()
