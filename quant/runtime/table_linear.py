"""Linear layers over levels of a table, see `methods/grids/table_weight.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import bf16_linear, cpu_layout, library, reference
from ..kernels.gpu import linear as gpu
from ..kernels.gpu import packing
from ..methods.grids.activation_rounding import rounded_activations
from ..methods.grids.levels import code_levels, code_to_index, index_to_code
from ..methods.grids.table_weight import TableWeight, effective_scales
from ..recipe.grids import SIMULATED
from ..recipe.scheme import TableScheme
from .tiled_linear import TiledLinear, run_product, unpack_tiles

HALF_BYTE = 4
"""Most bits of indices that are packed."""


class TableLinear(TiledLinear):
    """Rounds the input where the scheme says so, then multiplies with the dequantized weight.

    With rounded activations the product is computed in float32, see `activation_rounding.py`. The
    compiled kernels decode weights in registers; the reference dequantizes all of them in each
    call.
    """

    tiled_buffers = ("stored", "scales")
    exact_buffers = ("scales", "divisor", "input_scale")  # those of other writers are float32
    stored: Tensor | None
    """Indices; at inference those of 4 bits and less two to a byte (`reference.prepack`)."""
    scales: Tensor | None
    divisor: Tensor | None
    input_scale: Tensor | None
    dequantized: Tensor | None
    scheme: TableScheme

    def __init__(
        self, weight: TableWeight, bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Register the tensors of `weight`, without copies but for packing.

        Args:
            weight: unpacked.
            bias: `[out_features]` or None.
            dtype: of the activations, for a layer that will run often: its weight is dequantized
                once. None packs the weight and dequantizes it in each call, unless a kernel is
                selected.

        Raises:
            ValueError: the scheme calibrates the input, and the weight has no scale for it.
        """
        super().__init__(weight)
        if weight.scheme.calibrates_input and weight.input_scale is None:
            raise ValueError(
                f"{weight.scheme.label} comes with no input scale; calibrate the activations"
            )
        bits, even = weight.scheme.bits, weight.in_features % 2 == 0
        self._packed = dtype is None and bits <= HALF_BYTE and even
        kept = None if dtype is None else weight.dequantize(self._product_dtype(dtype))
        for name, value in {
            "stored": reference.prepack(weight.indices, bits) if self._packed else weight.indices,
            "scales": weight.scales,
            "divisor": weight.divisor,
            "input_scale": weight.input_scale,
            "bias": bias,
        }.items():
            self.register_buffer(name, value)
        self.register_buffer("dequantized", kept, persistent=False)

    def quantized(self) -> TableWeight:
        """See `CompressedLinear.quantized`; without copies unless the indices are packed."""
        if self.tiles is not None:
            codes, scales, _ = unpack_tiles(self.tiles)
            indices = code_to_index(codes, self.scheme.table, "weight")
            scales = scales[:: self.scheme.scale_rows].contiguous()
            return TableWeight(indices, scales, self.scheme, self.divisor, self.input_scale)
        assert self.stored is not None and self.scales is not None
        bits = self.scheme.bits
        indices = reference.unprepack(self.stored, bits) if self._packed else self.stored
        return TableWeight(indices, self.scales, self.scheme, self.divisor, self.input_scale)

    @property
    def kernel(self) -> str:
        """Name of the kernel; rounded activations are simulated, see `SIMULATED`."""
        name = "reference" if self.product is None else self.product.name
        if self.multiplies_inputs:
            return name
        simulated = f"{SIMULATED} {self.scheme.grid} activations"
        return simulated if self.product is None else f"{simulated}, {name}"

    @property
    def multiplies_inputs(self) -> bool:
        """See `TiledLinear.multiplies_inputs`."""
        return self.scheme.activations == "none" or isinstance(self.product, gpu.TritonLinear)

    @property
    def int8_scale(self) -> float | None:
        """See `TiledLinear.int8_scale`; the Triton kernels round the input to E4M3 themselves."""
        if self.scheme.activations == "none" or not isinstance(self.product, gpu.TritonLinear):
            return None
        return 0.0 if self.input_scale is None else float(self.input_scale)

    def why_not(self) -> str | None:
        """See `CompressedLinear.why_not`."""
        if not self.on_cpu:
            return self._why_not_on_gpu()
        table, groups = self.scheme.table, self.scheme.groups(self.in_features)
        mantissa = 0 if table.format is None else table.format.mantissa
        divisor = 0.0 if self.divisor is None else float(self.divisor)
        return cpu_layout.why_not_codes(
            self.in_features, table.bits, groups, len(table.levels), mantissa, divisor
        )

    def _why_not_on_gpu(self) -> str | None:
        if self.scales is None:
            return None  # prepared already
        if self.scales.device.type != "cuda" or self.scheme.grid != "fp8":
            return f"no kernel but those of the CPU computes levels of {self.scheme.grid}"
        if self.scheme.activations == "dynamic" and self.scheme.input_group != -1:
            return f"its activations are rounded in groups of {self.scheme.input_group}"
        groups = self.scheme.groups(self.in_features)
        return gpu.why_not_shape(self.out_features, self.in_features, groups)

    def select_kernel(self, kernels: library.Kernels | None) -> None:
        """See `CompressedLinear.select_kernel`."""
        self.prepare(kernels)

    def make_tiles(self) -> cpu_layout.TiledWeight:
        """See `TiledLinear.make_tiles`; every row gets the stored scales of its block."""
        weight, table = self.quantized(), self.scheme.table
        bits = HALF_BYTE if table.bits <= HALF_BYTE else 8
        levels = cpu_layout.Levels(
            code_levels(table, bits), 0 if table.format is None else table.format.mantissa
        )
        scales = effective_scales(weight.scales, None, self.scheme, self.out_features)
        divisor = 0.0 if self.divisor is None else float(self.divisor)
        codes = index_to_code(weight.indices, table)
        return cpu_layout.prepack_codes(codes, scales, levels, bits, divisor)

    def pack_for_gpu(self) -> packing.PackedWeight:
        """See `TiledLinear.pack_for_gpu`."""
        weight = self.quantized()
        codes = index_to_code(weight.indices, self.scheme.table)
        return packing.prepack_e4m3(codes, weight.row_scales())

    def reference_form(self) -> dict[str, Tensor | None]:
        """See `TiledLinear.reference_form`."""
        weight = self.quantized()
        stored = weight.indices
        if self._packed:
            stored = reference.prepack(stored, self.scheme.bits)
        return {"stored": stored, "scales": weight.scales}

    def multiply(self, x: Tensor) -> Tensor:
        """See `CompressedLinear.multiply`."""
        dtype = x.dtype
        if not self.multiplies_inputs:
            x = rounded_activations(x, self.scheme, self.input_scale)
        if self.product is not None:
            return run_product(self.product, self.number, x, self.int8_scale)[0].to(dtype)
        weight = self.dequantized
        if weight is None or weight.dtype != x.dtype:
            weight = self._dequantize(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.multiplies_inputs:
            return bf16_linear.select_linear(x.device)(x, weight, bias)
        return F.linear(x, weight, bias).to(dtype)

    def _dequantize(self, dtype: torch.dtype) -> Tensor:
        assert self.stored is not None and self.scales is not None
        levels = torch.tensor(self.scheme.table.levels, device=self.stored.device)
        bits = self.scheme.bits if self._packed else 8
        scales = effective_scales(self.scales, self.divisor, self.scheme, self.out_features)
        return reference.dequantize_levels(self.stored, scales, levels, bits, dtype)

    def _product_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype if self.multiplies_inputs else torch.float32
