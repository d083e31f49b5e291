"""Estimates of a kernel's speed from its machine code and the published rates of a GPU.

A product cannot be faster than its memory traffic, its tensor-core operations, or the issue of its
instructions: a multiprocessor issues four warp instructions per clock. The first two are the
roofline of the product (Williams et al., "Roofline", CACM 2009); the third is read from the main
loop. Loads in flight bound the rate of memory further: bandwidth times latency must be in flight.

These are bounds from above: bank conflicts, barriers and dependencies are not part of them.
"""

from __future__ import annotations

from dataclasses import dataclass

LATENCY = 800e-9
"""Seconds of a load from memory under load; measured values are from 500 to 900 ns."""
ISSUES = 4
"""Warp instructions per clock and multiprocessor."""


@dataclass(frozen=True)
class Gpu:
    """Published rates, from the vendor's data sheets and architecture white papers."""

    name: str
    processors: int
    clock: float
    """Hz, the boost clock to which the rates of tensor cores refer."""
    bandwidth: float
    """Bytes per second."""
    rates: dict[str, float]
    """Dense operations per second of the tensor cores, by type; two per multiplication."""
    shared: int
    """Largest shared memory of a program, in bytes."""
    shared_total: int
    """Shared memory of a multiprocessor for programs, in bytes."""


GPUS = {
    80: Gpu("A100 80 GB SXM", 108, 1.41e9, 2.039e12, {"bf16": 312e12, "int8": 624e12},
            163 * 1024, 164 * 1024),
    90: Gpu("H100 SXM", 132, 1.83e9, 3.35e12,
            {"bf16": 989e12, "int8": 1979e12, "fp8": 1979e12}, 227 * 1024, 228 * 1024),
    100: Gpu("B200", 148, 1.85e9, 8.0e12,
             {"bf16": 2250e12, "int8": 4500e12, "fp8": 4500e12}, 227 * 1024, 228 * 1024),
}  # fmt: skip
REGISTERS = 65536
"""Registers of a multiprocessor."""
_RESERVED = 1024
"""Bytes of shared memory that the system takes per program."""


@dataclass(frozen=True)
class Step:
    """One step of the main loop of a program: a block times a tile of inputs."""

    weight_bytes: float
    token_bytes: float
    """Bytes of activations; they come from the L2 cache."""
    operations: float
    """Two per multiplication, with tokens that are padding."""
    instructions: int
    """Of one warp in the main loop."""
    warps: int
    stages: int
    product: str


def resident(gpu: Gpu, registers: int, shared: int, warps: int) -> int:
    """Programs of a kernel that one multiprocessor runs at a time."""
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32 * warps)
    return min(by_registers, gpu.shared_total // (shared + _RESERVED), 64 // warps)


def memory_share(gpu: Gpu, step: Step, programs: int) -> float:
    """Largest share of the memory bandwidth that a kernel reaches while it reads weights.

    Args:
        gpu: the target.
        step: of the kernel.
        programs: resident on a multiprocessor.
    """
    reading = step.weight_bytes / (gpu.bandwidth / gpu.processors)
    in_flight = programs * (step.stages - 1) * step.weight_bytes
    needed = gpu.bandwidth / gpu.processors * LATENCY
    return min(1.0, in_flight / needed, reading / max(_issue(gpu, step), _products(gpu, step)))


def product_share(gpu: Gpu, step: Step) -> float:
    """Largest share of the tensor cores' rate that a kernel with many tokens reaches."""
    products = _products(gpu, step)
    # Activations and weights of a step come from the L2 cache, at about twice memory's rate.
    traffic = (step.weight_bytes + step.token_bytes) / (2 * gpu.bandwidth / gpu.processors)
    return products / max(products, _issue(gpu, step), traffic)


def _issue(gpu: Gpu, step: Step) -> float:
    """Seconds in which the instructions of a step are issued."""
    return step.instructions * step.warps / ISSUES / gpu.clock


def _products(gpu: Gpu, step: Step) -> float:
    return step.operations / (gpu.rates[step.product] / gpu.processors)
