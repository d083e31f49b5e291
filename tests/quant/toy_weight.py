"""A kind of compressed weight defined from outside: signs times a scale per group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vlpress.common.validation import validated
from vlpress.quant.compressed_weight import CompressedWeight
from vlpress.quant.methods.layer_inputs import LayerInputs
from vlpress.quant.recipe.scheme import GroupSize, Scheme
from vlpress.quant.runtime.compressed_linear import CompressedLinear, DequantizedLinear
from vlpress.quant.steps.step import Solved, Step


@validated
class SignScheme(Scheme):
    bits: Literal[1] = 1
    group_size: GroupSize = 32
    symmetric: Literal[True] = True
    activations: Literal["none"] = "none"
    kind: ClassVar[str] = "sign"

    @property
    def label(self) -> str:
        return f"sign g{self.group_size}"

    def weight(self, tensors: Mapping[str, Tensor]) -> SignWeight:
        return SignWeight(scheme=self, **tensors)


@dataclass(frozen=True)
class SignWeight:
    signs: Tensor  # int8 [N, K], 1 and -1
    scales: Tensor  # float32 [N, G], bf16 values
    scheme: SignScheme

    @property
    def out_features(self) -> int:
        return self.signs.shape[0]

    @property
    def in_features(self) -> int:
        return self.signs.shape[1]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        width = self.scheme.width(self.in_features)
        return (self.signs * self.scales.repeat_interleave(width, dim=1)).to(dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"signs": self.signs, "scales": self.scales}

    def equals(self, other: CompressedWeight) -> bool:
        return (
            self.scheme == other.scheme
            and isinstance(other, SignWeight)
            and torch.equal(self.signs, other.signs)
            and torch.equal(self.scales, other.scales)
        )

    def with_input_range(self, largest: float) -> SignWeight:
        return self

    def calibration_layer(self, bias: Tensor | None, dtype: torch.dtype | None) -> CompressedLinear:
        return DequantizedLinear(self, bias, dtype)

    def inference_layer(self, bias: Tensor | None) -> CompressedLinear:
        return DequantizedLinear(self, bias)


@validated
class SignStep(Step):
    """The sign of each weight, and the mean magnitude of each group."""

    scheme: SignScheme

    method: ClassVar[str] = "sign"
    scheme_type: ClassVar[type[Scheme]] = SignScheme

    def solve(
        self,
        weight: Tensor,
        inputs: LayerInputs | None,
        *,
        clip: bool = False,
        fused_range: float | None = None,
    ) -> Solved:
        rows, columns = weight.shape
        grouped = weight.float().reshape(rows, -1, self.scheme.width(columns))
        scales = grouped.abs().mean(dim=-1).bfloat16().float()
        signs = torch.where(weight < 0, -1, 1).to(torch.int8)
        values: dict[str, Any] = {"mean_scale": float(scales.mean())}
        return Solved(SignWeight(signs, scales, self.scheme), values, "signs")
