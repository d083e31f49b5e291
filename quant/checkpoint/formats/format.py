"""Interface of the checkpoint formats, and helpers that they share.

A format defines the tensors of one quantized layer and the `quantization_config` in `config.json`.
Reading a source, copying unquantized tensors and writing the folder are common to all formats
(`writer.py`, `checkpoint.py`).
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ....model.config import ModelConfig
from ....model.families import LinearSpec, family_of
from ...compressed_weight import CompressedWeight
from ...methods.affine import QuantizedWeight
from ...recipe.scheme import QuantScheme, Scheme
from ...steps.table import methods_with

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
INDICES = (torch.int32, torch.int64)
Shapes = Mapping[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]]
"""Shape and allowed dtypes by part."""
CONFIG = "quantization_config"
QUANTIZED_INPUTS = "int8 activations, which only compressed-tensors supports"


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

    @cached_property
    def linears(self) -> dict[str, LinearSpec]:
        """All linear layers of the model, in the order of computation."""
        return {spec.name: spec for spec in family_of(self.config).linears(self.config)}

    @cached_property
    def quantized(self) -> dict[str, LinearSpec]:
        """The quantized linear layers, in the same order."""
        return {name: spec for name, spec in self.linears.items() if name in self.schemes}

    @cached_property
    def unquantized(self) -> tuple[str, ...]:
        """Names of the unquantized linear layers; a tied head is not one of them."""
        return tuple(name for name in self.linears if name not in self.schemes)

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


class Settings(Protocol):
    """The `quantization_config` of one checkpoint."""

    def scheme(self, names: Sequence[str]) -> Scheme:
        """Return the scheme of a layer.

        Args:
            names: all names of the layer: canonical, in the file, in newer libraries.

        Raises:
            ValueError: the configuration has no scheme for it, or one that is not supported.
        """
        ...


class Format(Protocol):
    """A checkpoint format: tensors of quantized layers and their configuration."""

    @property
    def name(self) -> str:
        """Value of the option `--format`."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of compressed weights that it holds, see `Scheme.kind`."""
        ...

    @property
    def parts(self) -> tuple[str, ...]:
        """Last name components of all tensors that a layer may have, without its bias.

        The first one that exists takes the position of the float weight in the file.
        """
        ...

    @property
    def marker(self) -> str:
        """The part that identifies a quantized layer."""
        ...

    @property
    def order_part(self) -> str | None:
        """The part with the group index of each input feature, if the format has one."""
        ...

    @property
    def config_files(self) -> tuple[str, ...]:
        """Further files that hold a copy of `quantization_config`."""
        ...

    def why_not(self, contents: Contents) -> str | None:
        """Return the reason that the format cannot hold the contents, or None.

        All layers are of its `kinds`; `refusal` checks that first.
        """
        ...

    def encode(self, weight: CompressedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the tensors of a layer by part.

        Args:
            weight: the layer, of one of `kinds`.
            dtype: of the checkpoint's float tensors.

        Raises:
            ValueError: the format cannot represent a number of this layer.
        """
        ...

    def decode(self, tensors: Mapping[str, Tensor], scheme: Scheme, name: str) -> CompressedWeight:
        """Return a layer from its tensors, of which it holds no views.

        Args:
            tensors: those of `parts` that the file has.
            scheme: from `Settings.scheme`.
            name: for messages.

        Raises:
            ValueError: a tensor is missing, or has a wrong shape, dtype or content.
        """
        ...

    def settings(self, config: Mapping[str, Any]) -> Settings:
        """Read the `quantization_config` of any writer.

        Raises:
            ValueError: a key is missing or has a value that is not supported.
        """
        ...

    def quantization_config(
        self, contents: Contents, file_name: Callable[[str], str]
    ) -> dict[str, Any]:
        """Return the `quantization_config` for config.json.

        Args:
            contents: contents for which `why_not` is None.
            file_name: maps a canonical layer name to its name in the checkpoint.
        """
        ...

    def stored_bytes(self, spec: LinearSpec, scheme: Scheme, dtype: torch.dtype) -> int:
        """Return the bytes of a layer's tensors without its bias.

        Raises:
            ValueError: the width does not divide into whole groups.
        """
        ...

    def bias_dtype(self, stored: torch.dtype) -> torch.dtype:
        """Return the dtype in which a bias is written, given its dtype in the source."""
        ...


def refusal(format: Format, contents: Contents) -> str | None:
    """Return the reason that a format cannot hold the contents, or None."""
    if names := contents.where(lambda _, scheme: scheme.kind not in format.kinds):
        kind = contents.schemes[names[0]].kind
        return (
            f"{layers_phrase(names, 'is', 'are')} of the kind {kind}; {format.name} holds "
            f"{', '.join(format.kinds)}"
        )
    return format.why_not(contents)


def integers_of(weight: CompressedWeight) -> QuantizedWeight:
    """Return the weight as integers, for formats of this kind only.

    Raises:
        ValueError: it is of another kind.
    """
    if not isinstance(weight, QuantizedWeight):
        raise ValueError(f"it is of the kind {weight.scheme.kind}; allowed: {QuantScheme.kind}")
    return weight


def integer_scheme(scheme: Scheme) -> QuantScheme:
    """Return the scheme of integers, for formats of this kind only.

    Raises:
        ValueError: it is of another kind.
    """
    if not isinstance(scheme, QuantScheme):
        raise ValueError(f"it is of the kind {scheme.kind}; allowed: {QuantScheme.kind}")
    return scheme


def check_parts(tensors: Mapping[str, Tensor], expected: Shapes, name: str) -> None:
    """Check a layer's tensors for their shapes and dtypes.

    Raises:
        ValueError: one is missing, or has another shape or dtype.
    """
    for part, (shape, dtypes) in expected.items():
        tensor = require_part(tensors, part, name)
        if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
            raise ValueError(
                f"{name}.{part} is {tensor.dtype} {list(tensor.shape)}; expected "
                f"{dtypes[0]} {list(shape)}"
            )


def require_part(tensors: Mapping[str, Tensor], part: str, name: str) -> Tensor:
    """Return a part that every layer has.

    Raises:
        ValueError: it is missing.
    """
    if part not in tensors:
        raise ValueError(f"{name}.{part} is missing; the checkpoint is incomplete")
    return tensors[part]


def check_expression(text: str, prefixes: Sequence[str] = ()) -> str:
    """Check that a string is a regular expression after one of the prefixes, if it has one.

    Raises:
        ValueError: it does not compile.
    """
    expression = text
    for prefix in prefixes:
        expression = expression.removeprefix(prefix)
    try:
        re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{text!r} is not a valid expression ({error})") from None
    return text


def group_index(order: Tensor, groups: int, name: str) -> Tensor | None:
    """Return the checked group of each input feature; None for contiguous groups.

    Args:
        order: integers [K], from the file.
        groups: number of groups.
        name: of the tensor, for messages.

    Returns:
        int32 [K], a copy, or None.

    Raises:
        ValueError: a group is out of range.
    """
    order = order.to(torch.int32)
    columns = torch.arange(len(order), dtype=torch.int32, device=order.device)
    if torch.equal(order, columns // (len(order) // groups)):
        return None
    if int(order.min()) < 0 or int(order.max()) >= groups:
        raise ValueError(
            f"{name} runs from {int(order.min())} to {int(order.max())}, but there are "
            f"{groups} groups; the file is damaged"
        )
    return order.clone()  # the input may be a view of the mapped file


def check_symmetric(weight: QuantizedWeight, name: str, key: str) -> None:
    """Check that a symmetric scheme has the zero point of the midpoint only.

    Args:
        weight: a decoded layer.
        name: of the layer, for messages.
        key: of the configuration, which may be wrong instead, for messages.

    Raises:
        ValueError: another zero point is stored; engines that trust the configuration ignore it.
    """
    if weight.scheme.symmetric and bool((weight.zero_points != weight.scheme.midpoint).any()):
        others = weight.zero_points[weight.zero_points != weight.scheme.midpoint]
        raise ValueError(
            f"{name} has a zero point of {int(others[0])}, but the configuration says symmetric, "
            f"which means {weight.scheme.midpoint}; correct {key} in quantization_config"
        )


def fp16_scales(scales: Tensor) -> Tensor:
    """Convert scales [N, G] to fp16 [G, N], the layout of GPTQ and AWQ files.

    Raises:
        ValueError: fp16 does not represent one exactly.
    """
    rounded = scales.t().contiguous().to(torch.float16)
    if not torch.equal(rounded.to(torch.float32), scales.t()):
        raise ValueError("a scale is not an fp16 number; compressed-tensors can hold it")
    return rounded


def float_tensor(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert float32 values to `dtype`, or to the narrowest other one that is exact."""
    for choice in (dtype, torch.float16):
        if torch.equal(values.to(choice).to(torch.float32), values):
            return values.to(choice).contiguous()
    return values.to(torch.float32).contiguous()
