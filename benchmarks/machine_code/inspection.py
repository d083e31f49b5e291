"""Compile a Triton kernel for a GPU that is not present, and read its machine code.

Triton compiles for any target of its backend; ptxas, cuobjdump and nvdisasm are part of its
package. Facts are read from the PTX (loads, copies, tensor-core instructions), from the resources
of the cubin (registers, stack, shared memory) and from its SASS (instructions of the main loop).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_DIVISIBLE = 16
_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}
_TENSOR_CORES = re.compile(r"[HIQ]G?MMA|UTC[A-Z]*MMA")


@dataclass(frozen=True)
class Launch:
    """Arguments with which a kernel was launched."""

    kernel: Any
    arguments: Sequence[Any]
    keywords: Mapping[str, Any]
    programs: tuple[int, ...]


class Recorder:
    """Takes the place of a kernel in a module and records its launches."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        """Append launches of `kernel` to `launches`."""
        self._kernel, self._launches = kernel, launches

    def __getitem__(self, programs: tuple[int, ...]) -> Any:
        """Return a function that records its arguments."""

        def record(*arguments: Any, **keywords: Any) -> None:
            self._launches.append(Launch(self._kernel, arguments, keywords, programs))

        return record


@dataclass(frozen=True)
class Code:
    """Facts of a compiled kernel."""

    loads: Counter[int]
    """Instructions that load from global memory to registers, by bytes per thread."""
    copies: Counter[int]
    """Asynchronous copies (`cp.async`) from global to shared memory, by bytes per thread."""
    bulk_copies: int
    """Copies by the tensor memory accelerator."""
    products: Counter[str]
    """Tensor-core instructions."""
    registers: int
    spilled: int
    """Bytes of local memory per thread."""
    shared: int
    """Bytes of shared memory per program."""
    tensor_memory: int
    """Columns of tensor memory per program (sm_100)."""
    loop: Counter[str]
    """Instructions of the main loop, by their name without modifiers."""
    loop_products: int
    """Tensor-core instructions in the main loop."""

    @property
    def widest(self) -> int:
        """Bytes of the widest access to global memory."""
        return max([*self.loads, *self.copies, 16 if self.bulk_copies else 0])


def compile_launch(launch: Launch, capability: int) -> Code:
    """Compile a kernel for a compute capability (80, 90, 100) as a launch would.

    Args:
        launch: recorded; tensors may be on `meta`. Pointers count as aligned to 16 bytes.
        capability: ten times the major plus the minor version.
    """
    source, options = _source(launch)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx: str = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        resources = _run("cuobjdump", "--dump-resource-usage", file.name)
        sass = _run("nvdisasm", "-c", file.name)
    loop = main_loop(sass)
    return Code(
        load_widths(ptx),
        copy_widths(ptx),
        len(re.findall(r"cp\.async\.bulk", ptx)),
        product_names(ptx),
        _resource(resources, "REG"),
        max(_resource(resources, "STACK"), _resource(resources, "LOCAL")),
        compiled.metadata.shared,
        compiled.metadata.tmem_size or 0,
        loop,
        _products(loop),
    )


def _source(launch: Launch) -> tuple[ASTSource, dict[str, int]]:
    """Specialize arguments as Triton's launcher does: equal to 1, divisible by 16, constant."""
    names = launch.kernel.arg_names
    values = dict(zip(names, launch.arguments, strict=False))
    options: dict[str, Any] = {}
    for name, value in launch.keywords.items():
        (values if name in names else options)[name] = value
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = values[parameter.name]
        plain = parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (_is_one(value) and not plain):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        divisible = isinstance(value, Tensor) or value % _DIVISIBLE == 0
        if divisible and not plain:
            attributes[(index,)] = [["tt.divisibility", _DIVISIBLE]]
        signature[parameter.name] = _POINTERS[value.dtype] if isinstance(value, Tensor) else "i32"
    return ASTSource(launch.kernel, signature, constants, attributes), options


def _is_one(value: object) -> bool:
    return type(value) is int and value == 1


def load_widths(ptx: str) -> Counter[int]:
    """Count loads from global memory by bytes per thread."""
    widths: Counter[int] = Counter()
    for match in re.finditer(
        r"\bld(?:\.relaxed|\.acquire|\.volatile)?(?:\.gpu)?\.global(\S*)", ptx
    ):
        parts = match[1].split(".")
        vector = next((int(p[1:]) for p in parts if re.fullmatch(r"v\d", p)), 1)
        bits = next((int(p[1:]) for p in parts if re.fullmatch(r"[bsuf]\d+", p)), 0)
        widths[vector * bits // 8] += 1
    return widths


def copy_widths(ptx: str) -> Counter[int]:
    """Count asynchronous copies by bytes per thread."""
    pattern = r"cp\.async\.c[ag]\.shared\.global\S*\s*\[[^\]]*\],\s*\[[^\]]*\],\s*(0x\w+|\d+)"
    return Counter(int(match[1], 0) for match in re.finditer(pattern, ptx))


def product_names(ptx: str) -> Counter[str]:
    """Count tensor-core instructions by their shape and types."""
    pattern = r"\b((?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)[\w.:]*)"
    return Counter(
        re.sub(r"\.(?:sync|aligned|row|col|mma_async|cta_group::\d)\b", "", match[1])
        for match in re.finditer(pattern, ptx)
    )


def main_loop(sass: str) -> Counter[str]:
    """Count the instructions of the innermost loop with most tensor-core instructions, if any."""
    labels: dict[str, int] = {}
    code: list[tuple[str, str]] = []
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif match := re.search(
            r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(.*)", line
        ):
            code.append((match[1], match[2]))
    loops = []
    for index, (name, rest) in enumerate(code):
        target = re.search(r"\.L_x_\d+", rest)
        if name == "BRA" and target is not None and labels.get(target[0], index + 1) <= index:
            body = Counter(name for name, _ in code[labels[target[0]] : index + 1])
            if _products(body):
                loops.append((labels[target[0]], index, body))
    innermost = [
        body
        for first, last, body in loops
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b, _ in loops)
    ]
    return max(innermost, key=lambda body: (_products(body), -body.total()), default=Counter())


def _products(body: Counter[str]) -> int:
    return sum(count for name, count in body.items() if _TENSOR_CORES.fullmatch(name))


def _resource(usage: str, name: str) -> int:
    match = re.search(rf"\b{name}:(\d+)", usage)
    if match is None:
        raise ValueError(f"cuobjdump printed no {name}; its output was {usage!r}")
    return int(match[1])


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run(
        [TOOLS / tool, *arguments], capture_output=True, text=True, check=True
    ).stdout
