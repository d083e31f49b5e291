"""The compiled kernels against `reference.py`, for every instruction set that runs here."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlpress.quant.kernels import cpu, cpu_layout, library, reference

AVAILABLE = [name for name in library.NAMES if not isinstance(library.find_kernels(name), str)]
# CI builds the kernels and sets this variable, so that the tests cannot be skipped unnoticed.
if not AVAILABLE and os.environ.get("VLPRESS_NEED_KERNELS") != "1":
    pytest.skip(f"{library.find_kernels()}", allow_module_level=True)
# bf16 has 8 bits: half a unit in the last place of the largest output, plus the rounding of sums.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}
SHAPES = [(64, 64, 32), (96, 128, 64), (100, 256, 128), (17, 72, -1), (1, 8, -1), (130, 2048, -1)]
SHAPES += [(70, 2048, 1024), (66, 2560, 640)]  # several groups wider than a panel


def kernels(name: str) -> library.Kernels:
    table = library.find_kernels(name)
    assert not isinstance(table, str)
    return table


class Weight:
    """A random weight for the kernels and the reference."""

    def __init__(
        self,
        rows: int,
        columns: int,
        group: int,
        bits: int,
        *,
        symmetric: bool = True,
        ordered: bool = False,
        seed: int = 0,
    ) -> None:
        random = torch.Generator().manual_seed(seed)
        groups = 1 if group == -1 else columns // group
        self.bits = bits
        self.integers = torch.randint(
            0, 2**bits, (rows, columns), dtype=torch.uint8, generator=random
        )
        signs = 1 - 2 * torch.randint(0, 2, (rows, groups), generator=random)
        self.scales = (torch.rand(rows, groups, generator=random) + 0.1).bfloat16().float() * signs
        self.zeros = torch.full((rows, groups), 1 << (bits - 1), dtype=torch.uint8)
        if not symmetric:
            self.zeros = torch.randint(
                0, 2**bits, (rows, groups), dtype=torch.uint8, generator=random
            )
        self.index = None
        if ordered:
            order = torch.randperm(columns, generator=random)
            self.index = (order % groups).int()
        self.bias = None if symmetric else torch.randn(rows, generator=random)

    def tiles(self) -> cpu_layout.TiledWeight:
        return cpu_layout.prepack(self.integers, self.scales, self.zeros, self.bits, self.index)

    def product(self, name: str) -> cpu.CpuLinear:
        return cpu.CpuLinear([self.tiles()], [self.bias], kernels(name))

    def floats(self, x: Tensor) -> Tensor:
        """The weight-only product of the reference in float32."""
        packed = reference.prepack(self.integers, self.bits)
        grid = (packed, self.scales, self.zeros, self.bits, self.bias, self.index)
        return reference.weight_only_linear(x.float(), *grid)

    def integer(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """The product with int8 activations of the reference."""
        packed = reference.prepack(self.integers, self.bits)
        grid = (packed, self.scales, self.zeros, self.bits, self.bias, self.index)
        return reference.integer_linear(x, *grid, scale)


def inputs(rows: int, columns: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype == dtype
    error = (actual.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert float(error) < TOLERANCE[dtype]


def test_the_kernels_are_built_here() -> None:
    assert library.NAMES[-1] in AVAILABLE


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
def test_unprepack_inverts_prepack(bits: int, symmetric: bool, ordered: bool) -> None:
    weight = Weight(70, 128, 32, bits, symmetric=symmetric, ordered=ordered)
    integers, scales, zeros = cpu_layout.unprepack(weight.tiles())
    assert torch.equal(integers, weight.integers)
    assert torch.equal(scales, weight.scales)
    assert torch.equal(zeros, weight.zeros)


def test_layout_by_hand() -> None:
    integers = torch.zeros(64, 8, dtype=torch.uint8)
    integers[1] = torch.arange(1, 9)
    scales, zeros = torch.ones(64, 1), torch.full((64, 1), 8, dtype=torch.uint8)
    four = cpu_layout.prepack(integers, scales, zeros, 4, None).packed
    assert four.shape == (1, 1, 256)
    # Column 1 is the second lane; its nibbles are k0 k2 k4 k6, k1 k3 k5 k7.
    assert four[0, 0, 4:8].tolist() == [0x31, 0x75, 0x42, 0x86]
    assert int(four.count_nonzero()) == 4
    eight = cpu_layout.prepack(integers, scales, zeros, 8, None).packed
    assert eight[0, :, 4:8].tolist() == [[1, 3, 2, 4], [5, 7, 6, 8]]


STATIC_SCALE = 0.0125  # some inputs saturate


@dataclass(frozen=True)
class ReferenceCase:
    """A weight with inputs `x` and the reference's outputs: float, dynamic and static int8."""

    tiles: cpu_layout.TiledWeight
    bias: Tensor | None
    outputs: list[tuple[Tensor, Tensor, Tensor, Tensor]]


@lru_cache(maxsize=2)  # consecutive cases of the tests below differ in the kernel only
def reference_cases(dtype: torch.dtype, bits: int) -> list[ReferenceCase]:
    cases = []
    for shape, symmetric, ordered in itertools.product(SHAPES, (True, False), (True, False)):
        if ordered and shape[2] == -1:
            continue
        weight = Weight(*shape, bits, symmetric=symmetric, ordered=ordered)
        batches = [inputs(n, shape[1], dtype) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 60)]
        scale = torch.tensor(STATIC_SCALE)
        outputs = [
            (x, weight.floats(x), weight.integer(x), weight.integer(x, scale)) for x in batches
        ]
        cases.append(ReferenceCase(weight.tiles(), weight.bias, outputs))
    return cases


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_matches_the_reference(name: str, dtype: torch.dtype, bits: int) -> None:
    for case in reference_cases(dtype, bits):
        product = cpu.CpuLinear([case.tiles], [case.bias], kernels(name))
        for x, floats, dynamic, static in case.outputs:
            check(product(x)[0], floats, dtype)
            check(product(x, 0.0)[0], dynamic, dtype)
            check(product(x, STATIC_SCALE)[0], static, dtype)


@pytest.fixture(params=[1, 4])
def memory_streams(request: pytest.FixtureRequest) -> Iterator[int]:
    """Number of streams in which the AVX2 kernels read, whatever this processor reads best."""
    loaded = library.load_library()
    assert not isinstance(loaded, str)
    before = loaded.vlpress_set_memory_streams(request.param)
    yield request.param
    loaded.vlpress_set_memory_streams(before)


@pytest.mark.skipif("avx2" not in AVAILABLE, reason="the order belongs to AVX2")
@pytest.mark.parametrize("bits", [4, 8])
def test_orders_of_reading_match_the_reference(memory_streams: int, bits: int) -> None:
    test_matches_the_reference("avx2", torch.float32, bits)
    test_sums_of_integers_are_exact("avx2", bits, 128, 11)


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [-1, 128, 2048])
@pytest.mark.parametrize("rows", [11, 45])
def test_sums_of_integers_are_exact(name: str, bits: int, group: int, rows: int) -> None:
    """With whole inputs whose largest is 127, and scales of 1, everything is an integer."""
    weight = Weight(80, 4096, group, bits, symmetric=False, seed=3)
    weight.scales, weight.bias = torch.ones_like(weight.scales), None
    levels = torch.randint(-127, 128, (rows, 4096), generator=torch.Generator().manual_seed(4))
    levels[:, 0] = 127
    zeros = weight.zeros.long().repeat_interleave(4096 // weight.zeros.shape[1], 1)
    expected = levels @ (weight.integers.long() - zeros).t()
    assert int(expected.abs().max()) < 2**24  # float32 holds them
    assert torch.equal(weight.product(name)(levels.float(), 0.0)[0].long(), expected)


@pytest.mark.parametrize("name", AVAILABLE)
def test_sums_of_whole_inputs_are_exact(name: str) -> None:
    """Weight-only, with scales of 1, for groups of few inputs and odd numbers of groups."""
    random = torch.Generator().manual_seed(2)
    for group, groups in itertools.product((8, 16, 24, 32, 48), (1, 2, 3, 4, 7)):
        weight = Weight(70, group * groups, group, 4, symmetric=False)
        weight.scales.fill_(1.0)
        weight.bias = None
        x = torch.randint(-127, 128, (3, group * groups), generator=random).bfloat16()
        # Much larger inputs, of every other group, which zeros are multiplied with.
        weight.integers[:, :: 2 * group] = weight.zeros[:, ::2]
        x[1:, :: 2 * group] = 2.0**14
        exact = weight.floats(x).bfloat16()
        assert torch.equal(weight.product(name)(x)[0], exact)
        for row in range(3):
            assert torch.equal(weight.product(name)(x[row : row + 1])[0], exact[row : row + 1])


@pytest.mark.parametrize("name", AVAILABLE)
def test_extreme_levels_do_not_overflow(name: str) -> None:
    weight = Weight(64, 2048, -1, 8)
    weight.integers.fill_(255)
    weight.zeros.fill_(0)
    weight.scales.fill_(1.0)
    x = torch.full((2, 2048), 127.0)
    actual = weight.product(name)(torch.cat((x, -x)), 0.0)[0]
    assert torch.equal(actual[0], torch.full((64,), 127.0 * 255 * 2048))
    assert torch.equal(actual[2], -actual[0])


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_written_outside_the_output(name: str, dtype: torch.dtype) -> None:
    """Sentinels around the output; widths that are no multiple of a tile would reach them."""
    for rows, columns in itertools.product((1, 9), (1, 63, 65, 100)):
        weight = Weight(columns, 64, 32, 4)
        product = weight.product(name)
        memory = torch.full((rows * columns + 128,), 7.0, dtype=dtype)
        output = memory[64:-64].view(rows, columns)
        x = inputs(rows, 64, dtype)
        product.compute_into(x, [output])
        check(output, weight.floats(x), dtype)
        assert bool((memory[:64] == 7).all()) and bool((memory[-64:] == 7).all())


@pytest.mark.parametrize("name", AVAILABLE)
def test_views_and_unaligned_addresses(name: str) -> None:
    weight = Weight(70, 128, 32, 4)
    product = weight.product(name)
    whole = inputs(6, 300, torch.bfloat16)
    for x in (whole[:, 3:131], whole[::2, 100:228], whole.t()[:128].t(), whole[:, :128][None]):
        check(product(x)[0], weight.floats(x), torch.bfloat16)
        check(product(x, 0.0)[0], weight.integer(x), torch.bfloat16)
    assert product(whole[:0, :128])[0].shape == (0, 70)
    assert product(whole[0, :128])[0].shape == (70,)


@pytest.mark.parametrize("name", AVAILABLE)
def test_more_rows_than_a_block(name: str) -> None:
    weight = Weight(70, 64, 32, 4)
    x = inputs(1100, 64, torch.bfloat16)
    check(weight.product(name)(x)[0], weight.floats(x), torch.bfloat16)
    check(weight.product(name)(x, 0.0)[0], weight.integer(x), torch.bfloat16)


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("integers", [True, False])
def test_several_weights_in_one_call(name: str, integers: bool) -> None:
    scale = 0.0 if integers else None
    weights = [Weight(n, 128, 32, 4, symmetric=n == 64, seed=n) for n in (64, 17, 200)]
    fused = cpu.CpuLinear([w.tiles() for w in weights], [w.bias for w in weights], kernels(name))
    for rows in (1, 40):
        x = inputs(rows, 128, torch.bfloat16)
        for weight, actual in zip(weights, fused(x, scale), strict=True):
            assert torch.equal(actual, weight.product(name)(x, scale)[0])


@pytest.mark.parametrize("name", AVAILABLE)
def test_results_are_independent_of_the_number_of_threads(name: str) -> None:
    weight = Weight(300, 256, 64, 4)
    product, x = weight.product(name), inputs(33, 256, torch.bfloat16)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((product(x)[0], product(x[:1])[0], product(x, 0.0)[0]))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", AVAILABLE)
def test_nan_affects_only_its_row(name: str) -> None:
    weight = Weight(64, 64, 32, 8)
    product = weight.product(name)
    x = inputs(3, 64, torch.float32)
    x[1, 5] = float("nan")
    for actual in (product(x)[0], product(x, 0.0)[0]):
        assert bool(actual[1].isnan().all())
        assert bool(actual[[0, 2]].isfinite().all())
    levels = weight.integer(x, torch.tensor(0.01))
    assert torch.allclose(product(x, 0.01)[0], levels, rtol=1e-4, atol=1e-3)
    zero = product(torch.zeros(1, 64), 0.0)[0]
    assert bool((zero == 0).all())


@settings(max_examples=60)
@given(
    st.integers(1, 150),
    st.integers(1, 6),
    st.sampled_from([8, 24, 32, 40]),
    st.integers(1, 12),
    st.sampled_from([2, 4, 6, 8]),
    st.booleans(),
    st.integers(0, 2**20),
)
def test_any_shape(
    rows: int, groups: int, group: int, tokens: int, bits: int, symmetric: bool, seed: int
) -> None:
    weight = Weight(rows, groups * group, group, bits, symmetric=symmetric, seed=seed)
    x = inputs(tokens, groups * group, torch.float32, seed)
    for name in AVAILABLE:
        product = weight.product(name)
        # Sums may cancel: the error is relative to the size of the terms.
        size = float(weight.scales.abs().max()) * 2**bits * float(x.abs().sum(-1).max())
        assert float((product(x)[0] - weight.floats(x)).abs().max()) < 1e-6 * size
        assert float((product(x, 0.0)[0] - weight.integer(x)).abs().max()) < 1e-6 * size


def test_fp16_is_computed_in_float32() -> None:
    weight = Weight(64, 64, 32, 4)
    x = inputs(2, 64, torch.float16)
    actual = weight.product("portable")(x)[0]
    assert actual.dtype == torch.float16
    assert torch.allclose(actual.float(), weight.floats(x), rtol=1e-3, atol=1e-2)


def test_inexact_fp16_scales_stay_float32() -> None:
    weight = Weight(64, 64, 32, 4)
    assert weight.tiles().scales.dtype == torch.float16
    weight.scales *= 1 + 2.0**-20
    assert weight.tiles().scales.dtype == torch.float32
    x = inputs(3, 64, torch.float32)
    for name in AVAILABLE:
        check(weight.product(name)(x)[0], weight.floats(x), torch.float32)


def test_a_gradient_is_refused() -> None:
    product = Weight(64, 64, 32, 4).product("portable")
    x = inputs(1, 64, torch.float32).requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient"):
        product(x)
    with torch.no_grad():
        assert product(x)[0].shape == (1, 64)


def test_reasons_for_unsupported_widths() -> None:
    assert cpu_layout.why_not(64, 4, 2) is None
    assert cpu_layout.why_not(60, 8, 1) is None
    assert cpu_layout.why_not(60, 4, 1) == (
        "groups of 60 of 60 inputs; the CPU kernels take multiples of 8"
    )
    uneven = torch.tensor([0] * 40 + [1] * 24, dtype=torch.int32)
    assert (
        cpu_layout.why_not(64, 4, 2, uneven) == "the groups of its group index are of unequal size"
    )


def test_environment_variable_selects_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "portable")
    chosen = library.chosen_kernels()
    assert not isinstance(chosen, str) and chosen.name == "portable"
    monkeypatch.setenv(library.VARIABLE, "reference")
    assert library.chosen_kernels() == "VLPRESS_KERNEL is reference"
    monkeypatch.setenv(library.VARIABLE, "avx1024")
    with pytest.raises(
        ValueError, match=r"'avx1024'.*avx512, avx512_vnni, avx2, portable or reference"
    ):
        library.chosen_kernels()
    monkeypatch.delenv(library.VARIABLE)
    best = library.chosen_kernels()
    assert not isinstance(best, str) and best.name == AVAILABLE[0]


ONE_POOL = """
import os, torch
from vlpress.quant.kernels import cpu, cpu_layout, library
torch.set_num_threads(2)
torch.randn(500, 500) @ torch.randn(500, 500)
torch.randn(1 << 20).exp_()  # creates torch's thread pool
before = len(os.listdir("/proc/self/task"))
weight = cpu_layout.prepack(
    torch.zeros(512, 512, dtype=torch.uint8), torch.ones(512, 1),
    torch.full((512, 1), 8, dtype=torch.uint8), 4, None)
product = cpu.CpuLinear([weight], [None], library.find_kernels())
for _ in range(10):
    product(torch.randn(64, 512))
maps = open("/proc/self/maps").read()
runtimes = {l.split()[-1] for l in maps.splitlines() if "omp" in l.rsplit("/", 1)[-1]}
print(len(os.listdir("/proc/self/task")) - before, len(runtimes), library.has_threads())
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_one_thread_pool() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_POOL],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stdout.split() == ["0", "1", "True"]


def test_a_layer_is_thread_safe() -> None:
    weight = Weight(200, 256, 64, 4)
    product = weight.product(AVAILABLE[0])
    batches = [inputs(5, 256, torch.float32, seed) for seed in range(4)]
    expected = [product(x)[0] for x in batches]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            if not torch.equal(product(batches[number])[0], expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
