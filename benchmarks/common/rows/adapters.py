"""Rows of low-rank adapters beside groups, and beside 4-bit activations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

from .row import Row

ADAPTER_RANK = 4
"""Rank that costs about as many bits in layers as narrow as those of the built-in models as groups
of 32 instead of 128 do, or rank 32 in a model of 3 billion weights."""
_NVFP4 = {"grid": "nvfp4", "activations": "dynamic"}
ADAPTERS: dict[str, dict[str, Any]] = {
    **{
        f"int{bits}-g128{name}": {"bits": bits, "group_size": 128, **adapter}
        for bits in (3, 4)
        for name, adapter in (
            ("", {}),
            ("-eora", {"adapter_rank": ADAPTER_RANK, "adapter": "eora"}),
            ("-svd", {"adapter_rank": ADAPTER_RANK, "adapter": "svd"}),
        )
    },
    **{f"int{bits}-g32": {"bits": bits, "group_size": 32} for bits in (3, 4)},
    "nvfp4-plain": _NVFP4,
    "nvfp4-eora": _NVFP4 | {"adapter_rank": ADAPTER_RANK, "adapter": "eora"},
    "nvfp4-svd_first": _NVFP4 | {"adapter_rank": ADAPTER_RANK, "adapter": "svd_first"},
}
"""Decoder layers with an adapter, and those that they are compared with; measured on request."""
BESIDE = {
    **{f"int{bits}-g128-{kind}": f"int{bits}-g32" for bits in (3, 4) for kind in ("eora", "svd")},
    "nvfp4-eora": "nvfp4-plain",
    "nvfp4-svd_first": "nvfp4-plain",
}
"""Setting without an adapter that a setting is compared with, sample by sample: the one of nearest
size, or for NVFP4, whose groups are fixed, the plain one."""
ADAPTER_METHODS = ("rtn", "gptq")
SMOOTHED_METHODS = (*ADAPTER_METHODS, "smoothquant+rtn", "smoothquant+gptq")
"""Methods of adapters; with smoothing where activations are rounded, as by SVDQuant."""


class AdapterRow(Row):
    """Decoder layers with an adapter, or without for comparison."""

    settings = ADAPTERS
    has_layer_errors = True

    @classmethod
    def rows(cls) -> list[Self]:
        """All adapters with their methods."""
        return [
            cls(setting, name)
            for setting in ADAPTERS
            for name in (SMOOTHED_METHODS if setting.startswith("nvfp4") else ADAPTER_METHODS)
        ]

    @property
    def scored(self) -> bool:
        """The solver."""
        return self.method == "gptq"

    @property
    def is_plain(self) -> bool:
        """Integers by GPTQ without an adapter."""
        return self.method == "gptq" and self.scheme.keys() == {"bits", "group_size"}

    @property
    def beside(self) -> Row | None:
        """See `BESIDE`."""
        other = BESIDE.get(self.setting)
        return None if other is None else replace(self, setting=other)
