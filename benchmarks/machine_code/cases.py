"""The launches of the Triton kernels in their tuned shapes, recorded from the launchers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType

import torch

from vlpress.quant.kernels.gpu import byte_products, float_products, token_quantization
from vlpress.quant.kernels.gpu.packing import TILES, PackedWeight
from vlpress.quant.kernels.gpu.tuning import Blocks, byte_blocks, float_blocks

from .inspection import Launch, Recorder
from .roofline import GPUS

IN_FEATURES, OUT_FEATURES = 3584, 18944
"""gate_proj and up_proj of the 7B model."""
GROUP = 128
FEW, MANY = (1, 32, 64), (2048,)
"""Tokens of a product; the first values select each row of the tables of blocks."""
META = torch.device("meta")
FIRST_FP8 = 89


@dataclass(frozen=True)
class Case:
    """A kernel in one of its tuned shapes."""

    name: str
    tokens: int
    weight_bits: float
    """Bits that are read per weight, with scales and zero points; 0 without weights."""
    product: str
    """Types of the tensor-core instruction: `bf16`, `int8` or `fp8`; empty without one."""
    blocks: Blocks | None
    tile: int
    """Inputs per step."""
    launch: Launch


@dataclass(frozen=True)
class Preset:
    """A kind of layer."""

    name: str
    kind: str
    bits: int
    group: int
    zero: int | None
    levels: str
    """`bf16`, `int8` or `fp8` activations."""


PRESETS = (
    Preset("w4a16", "nibbles", 4, GROUP, 8, "bf16"),
    Preset("w4a16-asym", "nibbles", 4, GROUP, None, "bf16"),
    Preset("w8a16", "bytes", 8, GROUP, 128, "bf16"),
    Preset("w8a8", "bytes", 8, -1, 128, "int8"),
    Preset("w4a8", "nibbles", 4, GROUP, 8, "int8"),
    Preset("fp8", "e4m3", 8, -1, 0, "fp8"),
)


def cases(capability: int) -> list[Case]:
    """Record every kernel in its tuned shapes for a compute capability."""
    found = []
    for preset in PRESETS:
        # Variants share the blocks of the first; one of few and one of many tokens are enough.
        few = FEW if preset.name == "w4a16" else FEW[:1]
        found += [_product(preset, tokens, capability) for tokens in (*few, *MANY)]
    found += [_quantization("int8", torch.int8, "bytes"), _quantization_fp8(capability)]
    return found


def _product(preset: Preset, tokens: int, capability: int) -> Case:
    weight = _packed(preset)
    processors = GPUS[capability].processors
    on_bytes = preset.levels == "int8" or (preset.levels == "fp8" and capability >= FIRST_FP8)
    chosen = (
        byte_blocks(tokens, weight.groups > 1, capability)
        if on_bytes
        else float_blocks(tokens, weight.kind, capability)
    )
    blocks = replace(chosen, processors=processors)
    scales = torch.empty(tokens, device=META)

    def run() -> None:
        if on_bytes:
            dtype = torch.int8 if preset.levels == "int8" else torch.float8_e4m3fn
            x = torch.empty(tokens, IN_FEATURES, dtype=dtype, device=META)
            byte_products.byte_product(x, scales, weight, torch.bfloat16, None, blocks)
        else:
            x = torch.empty(tokens, IN_FEATURES, dtype=torch.bfloat16, device=META)
            token_scales = scales if preset.levels == "fp8" else None
            float_products.float_product(x, weight, None, token_scales, x.dtype, blocks)

    launch = _record(byte_products if on_bytes else float_products, run)
    group = IN_FEATURES if preset.group == -1 else preset.group
    return Case(
        preset.name,
        tokens,
        weight.width + 32 / group,
        preset.levels if on_bytes else "bf16",
        blocks,
        weight.tile * (1 if on_bytes else blocks.tiles_per_step(weight)),
        launch,
    )


def _quantization(levels: str, dtype: torch.dtype, order: str) -> Case:
    x = torch.empty(MANY[0], IN_FEATURES, dtype=torch.bfloat16, device=META)
    launch = _record(
        token_quantization,
        lambda: token_quantization.quantize_tokens(
            x, dtype, levels=levels, order=order, tile=TILES[0]
        ),
    )
    return Case(f"tokens to {levels}", MANY[0], 0, "", None, 0, launch)


def _quantization_fp8(capability: int) -> Case:
    if capability >= FIRST_FP8:
        return _quantization("e4m3", torch.float8_e4m3fn, "bytes")
    return _quantization("e4m3", torch.bfloat16, "inputs")


def _packed(preset: Preset) -> PackedWeight:
    width = 4 if preset.kind == "nibbles" else 8
    tile = TILES[0]
    groups = 1 if preset.group == -1 else IN_FEATURES // preset.group
    shape = (IN_FEATURES // tile, OUT_FEATURES, tile * width // 32)
    return PackedWeight(
        torch.empty(shape, dtype=torch.int32, device=META),
        torch.empty((groups, OUT_FEATURES), dtype=torch.int32, device=META),
        preset.kind,
        preset.bits,
        OUT_FEATURES,
        IN_FEATURES,
        preset.zero,
        torch.bfloat16 if preset.zero is None else torch.float32,
        frozenset({torch.bfloat16, torch.float16}),
    )


def _record(module: ModuleType, run: Callable[[], object]) -> Launch:
    """Return the launch of a launcher that starts one kernel."""
    launches: list[Launch] = []
    with _recording(module, launches):
        run()
    (launch,) = launches
    return launch


@contextmanager
def _recording(module: ModuleType, launches: list[Launch]) -> Iterator[None]:
    names = ("few_tokens", "many_tokens", "_quantize")
    kernels = {name: getattr(module, name) for name in names if hasattr(module, name)}
    for name, kernel in kernels.items():
        setattr(module, name, Recorder(kernel, launches))
    try:
        yield
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)
