"""Machine code of all kernels in their tuned shapes, compiled without a GPU; see `make aot`."""

from __future__ import annotations

import os
import re

import pytest

pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing; make aot", allow_module_level=True)

from machine_code.cases import Case, cases
from machine_code.inspection import compile_launch
from machine_code.roofline import GPUS, REGISTERS

pytestmark = pytest.mark.aot
INSTRUCTIONS = {
    (80, "bf16"): r"mma\.m16n8k16\.f32\.bf16\.bf16\.f32",
    (80, "int8"): r"mma\.m16n8k32.*\.s32\.s8\.s8\.s32",
    (90, "bf16"): r"wgmma\.m64n\d+k16\.f32\.bf16\.bf16",
    (90, "int8"): r"wgmma\.m64n\d+k32\.s32\.s8\.s8",
    (90, "fp8"): r"wgmma\.m64n\d+k32\.f32\.e4m3\.e4m3",
    (100, "bf16"): r"tcgen05\.mma\.kind::f16",
    (100, "int8"): r"tcgen05\.mma\.kind::i8",
    (100, "fp8"): r"tcgen05\.mma\.kind::f8f6f4",
}
"""Tensor-core instruction by compute capability and type."""
ALL = [
    pytest.param(capability, case, id=f"sm_{capability}-{case.name}-{case.tokens}")
    for capability in GPUS
    for case in cases(capability)
]


@pytest.mark.parametrize(("capability", "case"), ALL)
def test_machine_code(capability: int, case: Case) -> None:
    code, gpu = compile_launch(case.launch, capability), GPUS[capability]
    assert code.spilled == 0
    assert code.shared <= gpu.shared
    assert 2 * code.registers * 32 * case.launch.keywords["num_warps"] <= REGISTERS
    assert code.widest == 16
    if case.product:
        assert code.copies[16] or code.bulk_copies
        # Scales are read by 4 bytes per row; nothing is narrower.
        assert min([*code.loads, *code.copies]) >= 4
        pattern = INSTRUCTIONS[capability, case.product]
        assert any(re.search(pattern, name) for name in code.products)
