"""Interface of the checkpoint formats, and helpers that they share.

A format defines the tensors of one compressed layer and the files of a checkpoint. Those that are
a folder of safetensors have the files in common (`safetensors_folder/folder_format.py`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ....common.lazy_tensor import TensorLike
from ....model.checkpoint import CheckpointReader
from ....model.families import LinearSpec, family_of
from ...compressed_weight import CompressedWeight
from ...methods.affine import QuantizedWeight
from ...recipe.scheme import QuantScheme, Scheme
from .contents import Contents, layers_phrase

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
INDICES = (torch.int32, torch.int64)
Shapes = Mapping[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]]
"""Shape and allowed dtypes by part."""
CONFIG = "quantization_config"
QUANTIZED_INPUTS = "int8 activations, which only compressed-tensors supports"


@dataclass(frozen=True)
class Origin:
    """Source of a checkpoint's tensors."""

    reader: CheckpointReader
    parts: tuple[str, ...]
    """Last name components of the tensors that hold a quantized layer's weight in the source; the
    new tensors take the position of the first one that exists."""
    encoded: Callable[[str], Mapping[str, TensorLike]]
    """Returns the tensors of a quantized layer by part, see `encode_layer`."""
    tensor: Callable[[str], TensorLike | None]
    """Returns any other tensor by name, biases of quantized layers too; None leaves it out."""
    added: Mapping[str, Mapping[str, TensorLike]] = field(default_factory=dict)
    """Tensors that the source lacks, by the name of the one next to which they are written."""
    adapter: Mapping[str, TensorLike] = field(default_factory=dict)
    """Matrices of the low-rank adapter, see `adapter_tensors`; empty without one."""


class Format(Protocol):
    """A checkpoint format: the encoding of compressed layers, and the files that hold them."""

    @property
    def name(self) -> str:
        """Value of the option `--format`."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of compressed weights that it holds, see `Scheme.kind`."""
        ...

    @property
    def holds_kv_scales(self) -> bool:
        """Whether it has a place for the scales of an FP8 KV cache."""
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
            tensors: those that `encode` returns, or that a file of another writer has.
            scheme: of the layer.
            name: for messages.

        Raises:
            ValueError: a tensor is missing, or has a wrong shape, dtype or content.
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

    def write(
        self,
        origin: Origin,
        contents: Contents,
        folder: Path,
        *,
        config: Mapping[str, Any],
        record: Mapping[str, Any] | None,
    ) -> None:
        """Write a whole checkpoint into an empty folder.

        Args:
            origin: source of the tensors.
            contents: contents for which `refusal` is None.
            folder: existing, empty, see `checkpoint_folder`.
            config: content of the model's config.json, with padded widths.
            record: of the run, see `QuantReport.to_dict`; None if it is unknown.

        Raises:
            ValueError: the format cannot represent a number of a layer, or the source is
                inconsistent.
        """
        ...


def refusal(format: Format, contents: Contents) -> str | None:
    """Return the reason that a format cannot hold the contents, or None."""
    family = family_of(contents.config)
    if family.formats and format.name not in family.formats:
        return (
            f"no program reads the family {family.name} as {format.name}; allowed: "
            f"{', '.join(family.formats)}"
        )
    if names := contents.where(lambda _, scheme: scheme.kind not in format.kinds):
        kind = contents.schemes[names[0]].kind
        return (
            f"{layers_phrase(names, 'is', 'are')} of the kind {kind}; {format.name} holds "
            f"{', '.join(format.kinds)}"
        )
    if contents.kv_cache is not None and not format.holds_kv_scales:
        return (
            f"scales of an {contents.kv_cache.type} KV cache (kv_cache) have no place in "
            f"{format.name}; use compressed-tensors"
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
