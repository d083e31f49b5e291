"""Reading PTX and SASS of compiled kernels, and the estimates from them."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("triton")

from machine_code.inspection import copy_widths, load_widths, main_loop, product_names
from machine_code.roofline import GPUS, Step, memory_share, product_share, resident

PTX = """
	@%p1 cp.async.cg.shared.global [ %r30 + 0 ], [ %rd2 + 0 ], 0x10, %r31;
	cp.async.ca.shared.global [ %r32 + 0 ], [ %rd3 + 0 ], 0x4, 0x4;
	@%p9 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd5 + 0 ];
	ld.global.L1::evict_last.b16 { %rs1 }, [ %rd6 + 0 ];
	ld.param.b64 %rd1, [kernel_param_0];
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %f1 }, { %r5 }, { %r6 }, { %f1 };
	wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%f1}, {%r1}, %rd8, p, 1, 1, 0;
	@%p2 tcgen05.mma.cta_group::1.kind::f16 [ %r1 + 0 ], %rd1, %rd2, %r3, %p1;
"""
SASS = """
.L_x_0:
        /*0000*/                   IMAD R1, R1, R2, R3 ;
.L_x_1:
        /*0010*/                   LDS R1, [R2] ;
        /*0020*/              @P0  HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0030*/             @!P1  BRA `(.L_x_1) ;
        /*0040*/                   STG.E R1, [R2] ;
        /*0050*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0060*/              @P2  BRA `(.L_x_0) ;
        /*0070*/                   EXIT ;
"""


def test_widths_and_instructions_of_ptx() -> None:
    assert copy_widths(PTX) == {16: 1, 4: 1}
    assert load_widths(PTX) == {16: 1, 2: 1}
    assert product_names(PTX) == {
        "mma.m16n8k16.f32.bf16.bf16.f32": 1,
        "wgmma.m64n16k16.f32.bf16.bf16": 1,
        "tcgen05.mma.kind::f16": 1,
    }


def test_the_main_loop_is_the_innermost_one() -> None:
    assert main_loop(SASS) == Counter({"LDS": 1, "HMMA": 1, "BRA": 1})
    assert not main_loop("/*0000*/ EXIT ;")


def test_estimates_are_the_smallest_bound() -> None:
    gpu = GPUS[80]
    # 8 KiB of weights per step take 612 clocks at the published bandwidth, 400 instructions of
    # four warps take 400 clocks.
    step = Step(8192, 4096, 2 * 16 * 128 * 128, 400, 4, 4, "bf16")
    assert memory_share(gpu, step, 4) == 1.0
    slow = Step(8192, 4096, 2 * 16 * 128 * 128, 1224, 4, 4, "bf16")
    assert memory_share(gpu, slow, 4) == pytest.approx(0.5, abs=0.01)
    # One program with two stages has 8 KiB in flight where 15 KiB are needed.
    shallow = Step(8192, 4096, 2 * 16 * 128 * 128, 400, 4, 2, "bf16")
    assert memory_share(gpu, shallow, 1) == pytest.approx(8192 / (2.039e12 / 108 * 800e-9))
    wide = Step(4096, 8192, 2 * 64 * 128 * 64, 475, 4, 3, "bf16")
    assert product_share(gpu, wide) == pytest.approx(1.0)
    assert product_share(gpu, Step(4096, 8192, 2 * 64 * 128 * 64, 1024, 4, 3, "bf16")) < 0.6


def test_resident_programs_share_registers_and_memory() -> None:
    gpu = GPUS[80]
    assert resident(gpu, 255, 1024, 4) == 2 and resident(gpu, 64, 80 * 1024, 4) == 2
    assert resident(gpu, 32, 0, 8) == 8
