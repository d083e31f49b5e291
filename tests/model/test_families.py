"""The tables must describe exactly the modules that exist, and bindings that really commute."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from tiny_models import RandomModel, TinyConfig
from torch import nn

from vlpress.model.config import ModelConfig
from vlpress.model.config_readers import READERS
from vlpress.model.expert_linear import ExpertLinear
from vlpress.model.families import (
    FAMILIES,
    NormBinding,
    PairBinding,
    Stage,
    family_of,
    widths,
)
from vlpress.model.loading import build_model
from vlpress.model.qwen_vl import QwenVL


@pytest.mark.parametrize("tied", [False, True])
def test_linears_are_the_modules_of_the_model(
    tiny_config: TinyConfig, family: str, tied: bool
) -> None:
    config = tiny_config(family, tied=tied)
    modules = {
        name: module
        for name, module in build_model(config).named_modules()
        if isinstance(module, nn.Linear | ExpertLinear)
    }
    for spec, _ in family_of(config).kept(config):
        module = modules.pop(spec.name)
        assert (spec.out_features, spec.in_features) == tuple(module.weight.shape)
    specs = family_of(config).linears(config)
    assert sorted(spec.name for spec in specs) == sorted(modules)
    for spec in specs:
        module = modules[spec.name]
        assert (spec.out_features, spec.in_features) == tuple(module.weight.shape)
        assert spec.bias == (module.bias is not None)
        assert spec.weights == module.weight.numel()
    assert any(spec.name == "lm_head" for spec in specs) != tied


def test_every_weight_belongs_to_one_block_or_entry(tiny_config: TinyConfig, family: str) -> None:
    config = tiny_config(family)
    stages = family_of(config).stages
    homes = [path for stage in stages for path in stage.blocks(config)]
    homes += [path for stage in stages for path in stage.entry]
    for name, _ in build_model(config).named_parameters():
        owners = [home for home in homes if name.startswith(home + ".")]
        assert len(owners) == 1, name


def test_split_inputs_follow_split_outputs(tiny_config: TinyConfig, family: str) -> None:
    """Engines split the outputs of one layer and the inputs of the next over their devices."""
    linears = family_of(tiny_config(family)).linears(tiny_config(family))
    split = {spec.tap for spec in linears if spec.input_split}
    down = {"qwen3_vl_moe": {"expert_down"}, "qwen3_5_moe": {"expert_down", "shared_down"}}
    split_in_tower = {"merger_out", *(() if family == "qwen2_5_vl" else ("fc2",))}
    assert split == {"o"} | split_in_tower | down.get(family, {"down"})
    assert split.isdisjoint(spec.tap for spec in linears if not spec.input_split)


def test_linears_of_one_tap_read_one_tensor(random_model: RandomModel, family: str) -> None:
    model = random_model(family)
    seen: dict[tuple[object, ...], list[torch.Tensor]] = {}
    hooks = []
    for spec in family_of(model.config).linears(model.config):
        key = (spec.stage, spec.block, spec.tap, spec.expert)

        def record(
            module: nn.Module,
            args: tuple[torch.Tensor, ...],
            key: tuple[object, ...] = key,
        ) -> None:
            seen.setdefault(key, []).append(args[0])

        hooks.append(model.get_submodule(spec.name).register_forward_pre_hook(record))
    width = model.config.vision.patch_dim
    patches = torch.randn(32, width, generator=torch.Generator().manual_seed(0))
    embeds = model.visual(patches, torch.tensor([[1, 4, 8]]))["hidden"][None]
    model.logits(model.model(embeds, torch.arange(8).expand(3, 1, 8)))
    for hook in hooks:
        hook.remove()
    taps = {key: [id(tensor) for tensor in tensors] for key, tensors in seen.items()}
    assert all(len(set(ids)) == 1 for ids in taps.values())
    assert len({ids[0] for ids in taps.values()}) == len(taps)


def stage_output(model: QwenVL, stage: Stage) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if stage.part == "tower":
        patches = torch.randn(48, model.config.vision.patch_dim, generator=generator)
        features = model.visual(patches, torch.tensor([[1, 4, 12]]))
        return torch.cat(list(features.values()))
    embeds = torch.randn(1, 6, 128, generator=generator)
    hidden: torch.Tensor = model.model(embeds, torch.arange(6).expand(3, 1, 6))
    return hidden


def linear(block: nn.Module, name: str) -> nn.Linear | ExpertLinear:
    module = block.get_submodule(name)
    assert isinstance(module, nn.Linear | ExpertLinear)
    return module


def bindings_of_kinds(
    stage: Stage, config: ModelConfig
) -> Iterator[tuple[int, NormBinding | PairBinding]]:
    """The first block of each kind with each of its bindings."""
    kinds: dict[frozenset[str], int] = {}
    for index in range(stage.count(config)):
        kinds.setdefault(frozenset(stage.members(config, index)), index)
    for index in kinds.values():
        yield from ((index, binding) for binding in stage.bindings(config, index))


def powers_of_two(count: int) -> torch.Tensor:
    return 2.0 ** torch.randint(-2, 3, (count,), generator=torch.Generator().manual_seed(2))


def test_norm_bindings_leave_the_function_unchanged(random_model: RandomModel, family: str) -> None:
    model = random_model(family)
    tested = 0
    for stage in family_of(model.config).stages:
        for index, binding in bindings_of_kinds(stage, model.config):
            if not isinstance(binding, NormBinding):
                continue
            scaled = copy.deepcopy(model)
            block = scaled.get_submodule(stage.block_path(index))
            parameters = list(block.get_submodule(binding.norm).parameters())
            scale = powers_of_two(parameters[0].shape[0])
            for parameter in parameters:
                parameter.add_(binding.offset).div_(scale).sub_(binding.offset)
            for name in binding.linears:
                linear(block, name).weight.mul_(scale.repeat(binding.tiles))
            torch.testing.assert_close(
                stage_output(scaled, stage), stage_output(model, stage), atol=1e-4, rtol=1e-4
            )
            tested += 1
    expected = {"qwen3_vl": 6, "qwen3_vl_moe": 6, "qwen3_5": 8, "qwen3_5_moe": 8}
    assert tested == expected.get(family, 5)


def test_pair_bindings_leave_the_function_unchanged(random_model: RandomModel, family: str) -> None:
    model = random_model(family)
    text = model.config.text
    tested = 0
    for stage in family_of(model.config).stages:
        for block_index, pair in bindings_of_kinds(stage, model.config):
            if not isinstance(pair, PairBinding):
                continue
            scaled = copy.deepcopy(model)
            block = scaled.get_submodule(stage.block_path(block_index))
            source, target = linear(block, pair.source), linear(block, pair.target)
            index, count = pair.part
            rows = source.weight.chunk(count)[index]
            scale = powers_of_two(rows.shape[0])
            rows.div_(scale[:, None])
            if source.bias is not None:
                source.bias.chunk(count)[index].div_(scale)
            if pair.grouped_heads:
                shared = text.num_attention_heads // text.num_key_value_heads
                heads = scale.view(-1, text.head_dim)
                scale = heads.repeat_interleave(shared, 0).flatten()
            target.weight.mul_(scale)
            torch.testing.assert_close(
                stage_output(scaled, stage), stage_output(model, stage), atol=1e-4, rtol=1e-4
            )
            tested += 1
    # The experts of Qwen3.5's two kinds of layers, each with a shared one; values in one of them.
    expected = {"qwen2_5_vl": 4, "qwen3_vl_moe": 2 + 6, "qwen3_5": 4, "qwen3_5_moe": 2 + 2 * 7}
    assert tested == expected.get(family, 3)


def zeros_added(parameter: torch.Tensor, amounts: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(nn.functional.pad(parameter, amounts), requires_grad=False)


def test_padded_widths_leave_the_function_unchanged(random_model: RandomModel, family: str) -> None:
    model = random_model(family)
    for stage in family_of(model.config).stages:
        for padded in stage.padded:
            grown = copy.deepcopy(model)
            block = grown.get_submodule(stage.block_path(0))
            more = 36
            for name in padded.outputs:
                wide = linear(block, name)
                assert isinstance(wide, nn.Linear)
                wide.weight = zeros_added(wide.weight, (0, 0, 0, more))
                if wide.bias is not None:
                    wide.bias = zeros_added(wide.bias, (0, more))
            for name in padded.inputs:
                narrow = linear(block, name)
                assert isinstance(narrow, nn.Linear)
                assert narrow.weight.shape[1] == widths(model.config)[padded.width]
                narrow.weight = zeros_added(narrow.weight, (0, more))
            torch.testing.assert_close(
                stage_output(grown, stage), stage_output(model, stage), atol=1e-5, rtol=1e-5
            )


def test_fused_linears_share_their_tap(tiny_config: TinyConfig, family: str) -> None:
    for stage in FAMILIES[family].stages:
        taps = {linear.name: linear.tap for linear in stage.linears}
        for group in stage.fused:
            assert len({taps[name] for name in group}) == 1


def test_stage_by_name(family: str) -> None:
    table = FAMILIES[family]
    assert table.stage("decoder").block_path(3) == "model.layers.3"
    with pytest.raises(ValueError, match=r"'audio'.*vision, .*merger, decoder"):
        table.stage("audio")


def test_every_family_has_a_reader_of_its_config() -> None:
    assert READERS.keys() == FAMILIES.keys()
