"""The vision tower: segments, windows, and independence of the batch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, RandomModel, make_random_model

from vlpress.model.config import ModelConfig
from vlpress.model.vision import segment_groups, vision_layout

Grids = list[tuple[int, int, int]]
sides = st.integers(1, 7).map(lambda n: 2 * n)
grids = st.lists(st.tuples(st.integers(1, 3), sides, sides), min_size=1, max_size=4)


def patches_for(config: ModelConfig, grid: Grids, seed: int = 0) -> torch.Tensor:
    count = sum(t * h * w for t, h, w in grid)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, config.vision.patch_dim, generator=generator)


@pytest.fixture(scope="module")
def windowed() -> ModelConfig:
    vision = {"hidden_size": 64, "num_heads": 4, "out_hidden_size": 128}
    text = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    rope = {"rope_scaling": {"mrope_section": [4, 6, 6]}}
    return ModelConfig.from_dict(
        {"model_type": "qwen2_5_vl", "vision_config": vision, **text, **rope}
    )


@given(grid=grids)
def test_windows_hold_neighbours_of_one_frame_only(windowed: ModelConfig, grid: Grids) -> None:
    layout = vision_layout(torch.tensor(grid), windowed.vision)
    coordinates = [
        (visual, frame, row // 4, column // 4)
        for visual, (t, h, w) in enumerate(grid)
        for frame in range(t)
        for row in range(h // 2)
        for column in range(w // 2)
    ]
    order = layout["window_index"].tolist()
    assert sorted(order) == list(range(len(coordinates)))
    bounds = (layout["cu_window_seqlens"] // 4).tolist()
    windows = [
        {coordinates[i] for i in order[start:end]} for start, end in itertools.pairwise(bounds)
    ]
    assert all(len(window) == 1 for window in windows)
    assert len({next(iter(window)) for window in windows}) == len(windows)
    assert len(windows) == len(set(coordinates))
    assert layout["cu_seqlens"].diff().tolist() == [h * w for t, h, w in grid for _ in range(t)]


@given(grid=grids)
def test_coordinates_list_the_four_merged_patches_together(
    windowed: ModelConfig, grid: Grids
) -> None:
    coordinates = vision_layout(torch.tensor(grid), windowed.vision)["coordinates"]
    squares = coordinates.view(-1, 4, 2)
    assert bool((squares // 2 == squares[:, :1] // 2).all())
    assert torch.unique(squares % 2, dim=0).tolist() == [[[0, 0], [0, 1], [1, 0], [1, 1]]]


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_groups_cover_every_row_once_in_segments_of_one_length(lengths: list[int]) -> None:
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    groups = segment_groups(bounds)
    assert len(groups) == len(set(lengths))
    assert sorted(torch.cat([g.flatten() for g in groups]).tolist()) == list(range(sum(lengths)))
    starts = set(bounds[:-1].tolist())
    assert all(rows[0] in starts for group in groups for rows in group.tolist())


@settings(max_examples=10)
@given(grid=grids)
def test_visuals_do_not_see_each_other(grid: Grids) -> None:
    for family in FAMILIES:
        model = make_random_model(family)
        patches = patches_for(model.config, grid)
        together = model.visual(patches, torch.tensor(grid))["hidden"]
        sizes = [t * h * w for t, h, w in grid]
        alone = [
            model.visual(part, torch.tensor([one]))["hidden"]
            for part, one in zip(torch.split(patches, sizes), grid, strict=True)
        ]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_equal_images_take_one_attention_call(
    random_model: RandomModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model("qwen2_5_vl")
    calls: list[tuple[int, ...]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(q.shape))
        return attend(q, k, v)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    grid: Grids = [(1, 16, 16)] * 3
    model.visual(patches_for(model.config, grid), torch.tensor(grid))
    window, full = (12, 4, 64, 16), (3, 4, 256, 16)
    assert calls == [window, full, window, full]


def test_block_seams_reproduce_forward(random_model: RandomModel, family: str) -> None:
    tower: Any = random_model(family).visual
    grid: Grids = [(1, 10, 6), (2, 4, 12)]
    patches = patches_for_tower(tower, grid)
    state = tower.prepare(patches, torch.tensor(grid))
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    hidden = state["hidden"]
    for index, block in enumerate(tower.blocks):
        hidden = block(hidden, state["cos"], state["sin"], state[tower.segments(index)])
        state = tower.step(index, state)
        assert torch.equal(state["hidden"], hidden)
    for number in range(tower.kept):
        state = tower.merge_kept(number, state)
    features = tower.finish(tower.merge(state))
    whole = tower(patches, torch.tensor(grid))
    assert list(features) == list(whole)
    assert len(features) == 1 + len(tower.config.deepstack_visual_indexes)
    assert all(torch.equal(features[key], whole[key]) for key in whole)


def patches_for_tower(tower: Any, grid: Grids) -> torch.Tensor:
    count = sum(t * h * w for t, h, w in grid)
    return torch.randn(count, tower.config.patch_dim, generator=torch.Generator().manual_seed(1))


def test_patch_embedding_equals_the_convolution(random_model: RandomModel) -> None:
    embed = random_model().visual.patch_embed
    patches = torch.randn(7, 1176, generator=torch.Generator().manual_seed(0))
    expected = embed.proj(patches.view(-1, 3, 2, 14, 14)).flatten(1)
    torch.testing.assert_close(embed(patches), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(1, 3, 4), (1, 4, 0), (0, 4, 4)])
def test_refuses_grids_that_do_not_merge(
    random_model: RandomModel, grid: tuple[int, int, int]
) -> None:
    with pytest.raises(ValueError, match="multiples of 2"):
        random_model().visual(torch.zeros(12, 1176), torch.tensor([grid]))
