"""Formats whose checkpoints are a folder of safetensors with a `quantization_config`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ....model.families import LinearSpec
from ...compressed_weight import CompressedWeight
from ...recipe.scheme import Scheme
from ..formats.contents import Contents
from ..formats.format import Origin
from .writing import write_checkpoint


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


class FolderFormat(ABC):
    """A `Format` that is written to such a folder, and read from it."""

    name: str
    """See `Format.name`."""
    quant_method: str
    """Value of `quant_method` in the `quantization_config`."""
    kinds: tuple[str, ...]
    """See `Format.kinds`."""
    parts: tuple[str, ...]
    """Last name components of all tensors that a layer may have, without its bias.

    The first one that exists takes the position of the float weight in the file."""
    marker: str
    """The part that identifies a quantized layer."""
    other_markers: tuple[str, ...] = ()
    """Parts that do so in files of other writers."""
    order_part: str | None
    """The part with the group index of each input feature, if the format has one."""
    config_files: tuple[str, ...]
    """Further files that hold a copy of `quantization_config`."""
    holds_kv_scales: bool = False
    """See `Format.holds_kv_scales`."""

    @abstractmethod
    def why_not(self, contents: Contents) -> str | None:
        """See `Format.why_not`."""

    @abstractmethod
    def encode(self, weight: CompressedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        """See `Format.encode`."""

    @abstractmethod
    def decode(self, tensors: Mapping[str, Tensor], scheme: Scheme, name: str) -> CompressedWeight:
        """See `Format.decode`."""

    @abstractmethod
    def stored_bytes(self, spec: LinearSpec, scheme: Scheme, dtype: torch.dtype) -> int:
        """See `Format.stored_bytes`."""

    @abstractmethod
    def bias_dtype(self, stored: torch.dtype) -> torch.dtype:
        """See `Format.bias_dtype`."""

    @abstractmethod
    def settings(self, config: Mapping[str, Any]) -> Settings:
        """Read the `quantization_config` of any writer.

        Raises:
            ValueError: a key is missing or has a value that is not supported.
        """

    @abstractmethod
    def quantization_config(
        self, contents: Contents, file_name: Callable[[str], str]
    ) -> dict[str, Any]:
        """Return the `quantization_config` for config.json.

        Args:
            contents: contents for which `why_not` is None.
            file_name: maps a canonical layer name to its name in the checkpoint.
        """

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Whether a `quantization_config` with this `quant_method` is of this version.

        Raises:
            ValueError: it is of no version.
        """
        return True

    def write(
        self,
        origin: Origin,
        contents: Contents,
        folder: Path,
        *,
        config: Mapping[str, Any],
        record: Mapping[str, Any] | None,
    ) -> None:
        """See `Format.write`; the record goes to `vlpress.json` together with the sizes."""
        write_checkpoint(origin, contents, self, folder, config=config, record=record)
