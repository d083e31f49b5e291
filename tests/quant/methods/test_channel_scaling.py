from collections.abc import Iterator
from functools import cache

import pytest
import torch
from tiny_models import FAMILIES, prompts, small_config, small_model
from torch import Tensor

from vlpress.model.families import NormBinding, PairBinding, family_of
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.methods.channel_scaling import (
    ChannelGroup,
    channel_index,
    count_channels,
    reader_names,
    readers_of,
    reduce_columns,
    rescale_,
    source_names,
    source_of,
)
from vlpress.quant.targets import weight_of


def tensors_of(model: QwenVL) -> dict[str, Tensor]:
    parameters = {name: parameter.data for name, parameter in model.named_parameters()}
    specs = family_of(model.config).linears(model.config)
    return parameters | {
        f"{spec.name}.weight": weight_of(model, spec) for spec in specs if spec.expert is not None
    }


def groups_of(family: str) -> Iterator[tuple[str, ChannelGroup]]:
    """The last block of each stage and kind with each of its channel groups."""
    config = small_model(small_config(family)).config
    for stage in family_of(config).stages:
        last = {
            frozenset(stage.members(config, index)): index for index in range(stage.count(config))
        }
        for index in last.values():
            for group in stage.bindings(config, index):
                yield stage.block_path(index), group


def random_factors(count: int, seed: int = 0) -> Tensor:
    """Between 1/8 and 8."""
    return torch.exp2(6 * torch.rand(count, generator=torch.Generator().manual_seed(seed)) - 3)


def logits(model: QwenVL) -> Tensor:
    with torch.no_grad():
        return torch.cat(model(prompts(model.config)))


@cache
def unscaled(family: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of a model before it is scaled, and its logits."""
    model = small_model(small_config(family), dtype=dtype)
    return tensors_of(model), logits(model)


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


CASES = [
    pytest.param(family, block, group, id=f"{family}-{block}-{source_of(group)}")
    for family in FAMILIES
    for block, group in groups_of(family)
]


@pytest.mark.parametrize(("family", "block", "group"), CASES)
def test_the_float_function_stays(family: str, block: str, group: ChannelGroup) -> None:
    """In float64, so that only a wrong group could show; then in float32."""
    for dtype, bound in ((torch.float64, 1e-7), (torch.float32, 1e-5)):
        base, expected = unscaled(family, dtype)
        scaled = small_model(small_config(family), dtype=dtype)
        tensors = tensors_of(scaled)
        factors = random_factors(count_channels(tensors, block, group))
        rescale_(tensors, block, group, factors, scaled.config)
        for name in source_names(tensors, block, group) + reader_names(block, group):
            assert not torch.equal(tensors[name], base[name])
        assert distance(logits(scaled), expected) < bound


@pytest.mark.parametrize(("family", "block", "group"), CASES)
def test_readers_see_their_input_scaled(family: str, block: str, group: ChannelGroup) -> None:
    model = small_model(small_config(family), dtype=torch.float64)
    inputs: list[Tensor] = []
    reader = model.get_submodule(f"{block}.{readers_of(group)[0]}")
    handle = reader.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    logits(model)
    tensors = tensors_of(model)
    channels = count_channels(tensors, block, group)
    factors = random_factors(channels)
    rescale_(tensors, block, group, factors, model.config)
    logits(model)
    handle.remove()
    before, after = inputs[: len(inputs) // 2], inputs[len(inputs) // 2 :]
    columns = factors[channel_index(group, channels, model.config)].double()
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old * columns, rtol=1e-6, atol=1e-9)


def test_every_kind_of_group_is_covered() -> None:
    kinds = {
        (b.tiles if isinstance(b, NormBinding) else b.part)
        for _, b in (case for family in FAMILIES for case in groups_of(family))
    }
    assert kinds == {1, 2, 4, (0, 1), (2, 3)}


def test_channels_by_hand() -> None:
    config = small_model().config  # 4 query heads of 16 share 2 key/value heads
    pair = PairBinding("self_attn.v_proj", "self_attn.o_proj", grouped_heads=True)
    heads = torch.arange(32).reshape(2, 16)
    expected = torch.cat([heads[0], heads[0], heads[1], heads[1]])
    assert torch.equal(channel_index(pair, 32, config), expected)
    tiled = NormBinding("ln_q", ("mlp.0",), tiles=4)
    assert channel_index(tiled, 3, config).tolist() == [0, 1, 2] * 4
    values = torch.tensor([1.0, 2.0, 3.0, 9.0, 1.0, 0.0])
    index = torch.tensor([0, 1, 2, 0, 1, 2])
    assert reduce_columns(values, index, 3, "amax").tolist() == [9.0, 2.0, 3.0]
    assert reduce_columns(values, index, 3, "mean").tolist() == [5.0, 1.5, 1.5]


NORM = NormBinding("norm", ("a", "b"))


def small(dtype: torch.dtype = torch.float32, *, bias: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    tensors = {"x.norm.weight": 1 + randn(6) / 4, "x.a.weight": randn(5, 6)}
    tensors["x.b.weight"] = randn(3, 6)
    if bias:
        tensors["x.norm.bias"] = randn(6) / 4
    return tensors


def outputs(tensors: dict[str, Tensor]) -> Tensor:
    """What the readers make of a fixed normalized input, in float64."""
    z = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).double()
    x = z * tensors["x.norm.weight"].double() + tensors.get("x.norm.bias", torch.zeros(6)).double()
    return torch.cat([x @ tensors[f"x.{name}.weight"].double().t() for name in "ab"], dim=1)


def rescale_small(tensors: dict[str, Tensor], factors: Tensor, **options: object) -> Tensor:
    config = small_model().config
    return rescale_(tensors, "x", NORM, factors, config, **options)  # type: ignore[arg-type]


def test_rounding_of_a_stored_norm_is_compensated() -> None:
    """A norm stored in bf16: dividing by its rounded factors keeps the output."""
    stored = {"x.norm.weight": torch.bfloat16}
    base = small(bias=False)
    base["x.norm.weight"] = base["x.norm.weight"].bfloat16().float()
    expected, factors = outputs(base), random_factors(6)

    rescaled = {name: value.clone() for name, value in base.items()}
    realized = rescale_small(rescaled, factors, stored=stored)
    assert torch.equal(rescaled["x.norm.weight"], rescaled["x.norm.weight"].bfloat16().float())
    torch.testing.assert_close(realized, factors, rtol=2**-8, atol=0)
    assert not torch.equal(realized, factors)

    naive = {name: value.clone() for name, value in base.items()}
    naive["x.norm.weight"] = (naive["x.norm.weight"] * factors).bfloat16().float()
    for name in ("x.a.weight", "x.b.weight"):
        naive[name] /= factors
    assert distance(outputs(naive), expected) > 5e-4
    assert distance(outputs(rescaled), expected) < 1e-6


def test_all_in_half_precision_loses_only_rounding() -> None:
    base = small(torch.bfloat16)
    rescaled = {name: value.clone() for name, value in base.items()}
    rescale_small(rescaled, random_factors(6))
    assert all(value.dtype == torch.bfloat16 for value in rescaled.values())
    assert distance(outputs(rescaled), outputs(base)) < 2**-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_powers_of_two_are_exact(dtype: torch.dtype) -> None:
    base = small(dtype)
    rescaled = {name: value.clone() for name, value in base.items()}
    factors = torch.tensor([1.0, 2.0, 0.25, 16.0, 1.0, 0.5])
    assert torch.equal(rescale_small(rescaled, factors), factors)
    assert torch.equal(outputs(rescaled), outputs(base))


def test_silent_channels_keep_one() -> None:
    tensors = small()
    tensors["x.norm.weight"][[1, 2]] = 0
    tensors["x.norm.bias"][1] = 0
    base = {name: value.clone() for name, value in tensors.items()}
    realized = rescale_small(tensors, torch.full((6,), 3.0))
    assert float(realized[1]) == 1.0  # weight and bias are zero
    assert float(realized[2]) == pytest.approx(3.0)  # told by the bias
    assert distance(outputs(tensors), outputs(base)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("factor", [2.0**-40, 2.0**40])
def test_huge_factors_are_held_where_numbers_are_normal(dtype: torch.dtype, factor: float) -> None:
    base = small(dtype)
    tensors = {name: value.clone() for name, value in base.items()}
    factors = torch.ones(6)
    factors[0] = factor
    realized = rescale_small(tensors, factors)
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())
    largest = max(float(value.abs().max()) for value in tensors.values())
    assert largest <= 65504
    assert float(realized[0]) != 1
    assert distance(outputs(tensors), outputs(base)) < 10 * torch.finfo(dtype).eps


def test_zero_columns_bear_any_factor() -> None:
    tensors = small()
    for name in ("x.a.weight", "x.b.weight"):
        tensors[name][:, 3] = 0
    base = {name: value.clone() for name, value in tensors.items()}
    realized = rescale_small(tensors, random_factors(6))
    assert bool(torch.isfinite(realized).all())
    assert distance(outputs(tensors), outputs(base)) < 1e-6


ZERO_CENTRED = NormBinding("norm", ("a", "b"), offset=1.0)


def zero_centred(weights: list[float], dtype: torch.dtype) -> dict[str, Tensor]:
    """A norm that multiplies by one plus its weight, and its readers."""
    columns = len(weights)
    generator = torch.Generator().manual_seed(0)
    readers = {f"x.{name}.weight": torch.randn(4, columns, generator=generator) for name in "ab"}
    norm = torch.tensor(weights, dtype=torch.float64).to(dtype)
    return {"x.norm.weight": norm.float(), **readers}


def zero_centred_outputs(tensors: dict[str, Tensor]) -> Tensor:
    """Outputs for the unit inputs, in float64: `[columns, rows]`."""
    scale = 1 + tensors["x.norm.weight"].double()
    return torch.cat([tensors[f"x.{name}.weight"].double() for name in "ab"]).t() * scale[:, None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("factor", [2.0**-30, 2.0**-5, 0.3, 3.7, 2.0**5, 2.0**30])
def test_zero_centred_norms_near_minus_one(dtype: torch.dtype, factor: float) -> None:
    """A stored weight next to -1 has a fixed spacing, so that small factors are held."""
    spacing = torch.finfo(dtype).eps / 2  # of numbers from -1 to -1/2
    near = [spacing, 2 * spacing, 3 * spacing, -4 * spacing, 0.25, 1.0, -1.0, 40.0, 0.0]
    base = zero_centred([w - 1 for w in near], dtype)
    # The first ones are exact in the dtype: the difference is what the function sees.
    assert (1 + base["x.norm.weight"].double())[:3].tolist() == near[:3]
    tensors = {name: value.clone() for name, value in base.items()}
    factors = torch.full((len(near),), factor)
    realized = rescale_(
        tensors,
        "x",
        ZERO_CENTRED,
        factors,
        small_model().config,
        stored={"x.norm.weight": dtype},
    )
    norm = tensors["x.norm.weight"]
    assert torch.equal(norm, norm.to(dtype).float())
    after = 1 + norm.double()
    assert bool((after[:-1] != 0).all())  # no channel is switched off
    assert float(after[-1]) == 0  # the silent channel stays silent
    assert float(realized[-1]) == 1
    assert bool((realized > 0).all())
    assert float(norm.abs().max()) <= 65504
    # What the factors could not be is made up for in the columns, in float32.
    expected = zero_centred_outputs(base)
    error = (zero_centred_outputs(tensors) - expected).abs() / expected.abs().clamp_min(1e-30)
    assert float(error[:-1].max()) < 1e-6
    if factor == 2.0**-30 and dtype != torch.float32:  # there the columns overflow first
        # Two spacings, the smallest that is allowed, unless the channel was smaller before.
        assert after[:2].abs().tolist() == [near[0], near[1]]
        assert after[2:8].abs().tolist() == pytest.approx([2 * spacing] * 6, rel=0.5)
