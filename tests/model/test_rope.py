"""Position ids against the original implementation, and the rotation by its properties."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import paths
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import TinyConfig, make_tiny_config

from vlpress.model.families import FAMILIES
from vlpress.model.loading import build_model
from vlpress.model.rope import (
    check_mrope_layout,
    mrope_ids,
    rotate,
    text_rotary,
    vision_rotary,
)

GOLDEN = json.loads((paths.GOLDEN / "mrope_ids.json").read_text())


def config_for(tiny_config: TinyConfig, case: dict[str, Any]) -> Any:
    vision = {}
    if case["family"] == "qwen2_5_vl":
        vision = {"tokens_per_second": case["tokens_per_second"]}
    raw = dict(tiny_config(case["family"], vision=vision).raw)
    raw |= {f"{name}_token_id": token for name, token in GOLDEN["tokens"].items()}
    raw["vocab_size"] = 1 + max(GOLDEN["tokens"].values())
    return type(tiny_config()).from_dict(raw)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['family']}: {c['name']}")
def test_ids_equal_the_original_implementation(
    tiny_config: TinyConfig, case: dict[str, Any]
) -> None:
    ids = mrope_ids(
        torch.tensor(case["input_ids"]),
        [tuple(grid) for grid in case["grids"]],
        case["seconds_per_grid"],
        config_for(tiny_config, case),
    )
    assert ids.dtype == torch.int64
    assert ids.tolist() == case["position_ids"]


def test_golden_cases_include_a_long_video() -> None:
    cases = {(case["family"], case["name"]): case for case in GOLDEN["cases"]}
    assert len(cases) == 28
    # After a video longer than tall, text ids exceed its height and width.
    ids = torch.tensor(cases["qwen2_5_vl", "video longer than tall"]["position_ids"])
    assert ids[0].max() > 20


def test_refuses_tokens_that_do_not_fit_the_grids(tiny_config: TinyConfig) -> None:
    config = tiny_config()
    image = config.image_token_id
    with pytest.raises(ValueError, match=r"\b3\b.* 1 visuals .*\b4\b"):
        mrope_ids(torch.tensor([1, image, image, image]), [(1, 4, 4)], [0.0], config)
    with pytest.raises(ValueError, match=r"4 tokens .* token 1"):
        ids = torch.tensor([1, image, image, 5, image, image])
        mrope_ids(ids, [(1, 4, 4)], [0.0], config)


@given(shift=st.integers(0, 1000), positions=st.lists(st.integers(0, 500), min_size=2, max_size=2))
def test_scores_depend_on_distance_only(shift: int, positions: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 32, generator=generator, dtype=torch.float64)

    def score(offset: int) -> torch.Tensor:
        ids = (torch.tensor(positions) + offset).expand(3, 1, 2)
        cos, sin = text_rotary(ids, make_tiny_config().text, "sectioned")
        turned = rotate(torch.stack((q, k))[None], cos.double(), sin.double())[0]
        return turned[0] @ turned[1]

    # Angles are float32: their error grows with the position.
    torch.testing.assert_close(score(0), score(shift), atol=2e-3, rtol=0)


def test_sections_follow_their_own_axis() -> None:
    ids = torch.tensor([[[3]], [[50]], [[700]]])
    cos, _ = text_rotary(ids, make_tiny_config().text, "sectioned")
    frequencies = 10000.0 ** (-torch.arange(16) / 16)
    expected = torch.cat((3 * frequencies[:4], 50 * frequencies[4:10], 700 * frequencies[10:]))
    torch.testing.assert_close(cos[0, 0], expected.cos(), atol=1e-4, rtol=0)


def test_a_layout_without_code_is_refused_when_the_model_is_built(
    tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    layout: Any = "alternating"
    table = replace(FAMILIES[config.family], mrope_layout=layout)
    monkeypatch.setitem(FAMILIES, config.family, table)
    with pytest.raises(ValueError, match=r"'alternating'.*sectioned") as error:
        build_model(config)
    assert "\n" not in str(error.value)
    ids = torch.zeros(3, 1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="'alternating'"):
        text_rotary(ids, config.text, layout)


def test_every_family_has_a_layout_that_is_implemented() -> None:
    for family in FAMILIES.values():
        check_mrope_layout(family.mrope_layout)


def test_vision_angles_are_rows_then_columns() -> None:
    cos, sin = vision_rotary(torch.tensor([[2, 7]]), 16)
    frequencies = 10000.0 ** (-torch.arange(4) / 4)
    expected = torch.cat((2 * frequencies, 7 * frequencies))
    torch.testing.assert_close(cos[0], expected.cos())
    torch.testing.assert_close(sin[0], expected.sin())


def test_rotation_pairs_channels_at_half_a_head() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 2.0])
    angle = torch.tensor([torch.pi / 2, torch.pi])
    turned = rotate(x, angle.cos(), angle.sin())
    torch.testing.assert_close(turned, torch.tensor([0.0, 0.0, 1.0, -2.0]), atol=1e-6, rtol=0)


def test_interleaved_axes_alternate() -> None:
    text = replace(make_tiny_config().text, mrope_section=(6, 5, 5))
    ids = torch.tensor([[[3]], [[50]], [[700]]])
    cos, sin = text_rotary(ids, text, "interleaved")
    axes = torch.tensor([3, 50, 700] * 5 + [3])
    angles = axes * 10000.0 ** (-torch.arange(16) / 16)
    torch.testing.assert_close(cos[0, 0], angles.cos(), atol=1e-4, rtol=0)
    torch.testing.assert_close(sin[0, 0], angles.sin(), atol=1e-4, rtol=0)


def test_frames_with_times_between_them_are_numbered_as_images(tiny_config: TinyConfig) -> None:
    config = tiny_config("qwen2_vl")
    config = replace(config, vision=replace(config.vision, separate_frames=True))
    frame = [config.video_token_id] * 6
    ids = mrope_ids(torch.tensor([1, *frame, 1, 1, *frame, 1]), [(2, 4, 6)], [1.0], config)
    assert ids[:, 0].tolist() == [0, 0, 0]
    assert ids[:, 1:7].tolist() == [[1] * 6, [1, 1, 1, 2, 2, 2], [1, 2, 3] * 2]
    assert ids[:, 7:9].tolist() == [[4, 5]] * 3
    assert ids[:, 9:15].tolist() == [[6] * 6, [6, 6, 6, 7, 7, 7], [6, 7, 8] * 2]
    assert ids[:, 15].tolist() == [9, 9, 9]
