"""The figures: their numbers, and that they can be embedded in any page."""

from __future__ import annotations

import functools
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from vlpress.eval.report.html import plots
from vlpress.eval.report.html.expert_map import expert_map, few_tokens, levels
from vlpress.eval.report.html.plots import IntervalRow, LayerError, ParetoPoint
from vlpress.eval.report.html.svg import WIDTH, plain

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "a $x_$ <script>alert(1)</script> & \x00\ud800 字\n" + "y" * 90
KL = st.lists(st.lists(st.floats(0, 20), max_size=40), min_size=1, max_size=30)


def intervals(label: str = "ocr") -> Markup:
    rows = [IntervalRow(label, 60, -1.5, -9.0, 4.5, True), IntervalRow("b", 3, 20, 5, 40)]
    return plots.interval_plot("p", "Intervals & more", rows, 2.0)


NAMES = ("intervals", "histogram", "zeros", "position", "layers", "pareto", "one point", "experts")


@functools.cache
def figures() -> dict[str, Markup]:
    kl = [[0.1, 0.0, 3.0], [1e-12, 0.2]]
    return {
        "intervals": intervals(),
        "histogram": plots.divergence_histogram("p", "t", [v for answer in kl for v in answer]),
        "zeros": plots.divergence_histogram("p", "t", [0.0, 0.0]),
        "position": plots.position_plot("p", "t", plots.by_position(kl)),
        "layers": plots.layer_plot(
            "p", "t", [LayerError("model.layers", i, k, 0.01 * i) for i in range(3) for k in "qkvo"]
        ),
        "pareto": plots.pareto_plot(
            "p",
            "t",
            [
                ParetoPoint("a", 1e6, 90, True),
                ParetoPoint("b", 2e6, 80, False),
                ParetoPoint("c", 3e6, 91, False, True),
            ],
            "score",
        ),
        "one point": plots.pareto_plot("p", "t", [ParetoPoint("a", 1e6, 0, True)], "KL", log=True),
        "experts": expert_map("p", "t", {"layers.0": [0, 64, 900], "layers.1": [70, 63, 70]}, 64),
    }


def test_every_figure_is_tested() -> None:
    assert tuple(figures()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_valid_xml_with_the_colours_of_the_page(name: str) -> None:
    svg = figures()[name]
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    width, height = (float(side) for side in root.attrib["viewBox"].split()[2:])
    assert (round(width), "width" in root.attrib) == (WIDTH, False) and height > 50
    assert root.attrib["role"] == "img" and root.attrib["aria-label"]
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg), "a colour that dark pages do not change"
    assert "var(--ink)" in svg and "font-family" not in svg and "<style" not in svg
    identifiers = re.findall(r'\bid="([^"]*)"', svg)
    assert len(set(identifiers)) == len(identifiers)
    assert all(identifier.startswith("p-") for identifier in identifiers)
    used = re.findall(r'href="#([^"]*)"', svg) + re.findall(r"url\(#([^)]*)\)", svg)
    assert set(used) == set(identifiers)


def test_figures_are_the_same_bytes_each_time() -> None:
    assert intervals() == intervals()


def test_hostile_labels_are_text() -> None:
    svg = intervals(HOSTILE)
    texts = [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]
    (label,) = [text for text in texts if text.startswith("a $x_$ <script>")]
    assert label.endswith("… (60)") and "\n" not in label
    assert "<script" not in svg


def test_labels_are_one_bounded_line() -> None:
    assert plain("a\nb\x07  c") == "a b c"
    assert plain("x" * 41) == "x" * 39 + "…"
    assert plain("x" * 40) == "x" * 40


def test_losses_and_gains_are_coloured_by_their_interval() -> None:
    def colours(low: float, high: float) -> set[str]:
        svg = plots.interval_plot("p", "t", [IntervalRow("a", 9, 0.0, low, high)], 2.0)
        return set(re.findall(r"stroke: var\(--(good|bad|accent)\); stroke-width: 1\.6", svg))

    assert colours(-9, -1) == {"bad"}
    assert colours(1, 9) == {"good"}
    assert colours(-1, 1) == {"accent"}


@given(KL)
def test_every_token_is_in_one_position(answers: list[list[float]]) -> None:
    points = plots.by_position(answers)
    assert sum(point.tokens for point in points) == sum(map(len, answers))
    assert [p.first for p in points[1:]] == [p.last + 1 for p in points[:-1]]
    if points:
        assert (points[0].first, points[-1].last) == (1, max(map(len, answers)))
    if len(points) > 1:
        assert min(point.tokens for point in points) >= plots.TOKENS_PER_POINT


def test_positions_hold_their_own_tokens() -> None:
    answers = [[0.1, 0.5]] * 19 + [[0.3, 0.5, 0.9]]
    first, rest = plots.by_position(answers)
    assert (first.first, first.last, first.tokens) == (1, 1, 20)
    assert first.mean == pytest.approx(0.11) and first.median == 0.1
    assert (rest.first, rest.last, rest.tokens) == (2, 3, 21)
    assert rest.mean == pytest.approx((20 * 0.5 + 0.9) / 21)
    assert plots.by_position([[], []]) == []


def test_layers_are_distinguished_by_stage_block_and_kind() -> None:
    names = {
        "model.layers.3.self_attn.q_proj": ("model.layers", 3, "q_proj"),
        "visual.blocks.11.mlp.up_proj": ("visual.blocks", 11, "up_proj"),
        "visual.blocks.0.attn.qkv": ("visual.blocks", 0, "qkv"),
    }
    layers: list[dict[str, Any]] = [{"name": name, "final_error": 0.25} for name in names]
    unplaced: list[dict[str, Any]] = [
        {"name": "lm_head", "final_error": 0.1},
        {"name": "visual.merger.mlp.0", "final_error": 0.1},
        {"name": "model.layers.0.mlp.up_proj"},  # rounded without calibration
    ]
    errors = plots.layer_errors(layers + unplaced)
    assert [(e.stage, e.block, e.kind) for e in errors] == list(names.values())
    assert {e.error for e in errors} == {0.25}


def test_levels_of_experts_cover_every_number_once() -> None:
    tokens = {"a": [0, 100, 300], "b": [400, 200, 200]}
    scale = levels(tokens, 64)
    assert [level.least for level in scale] == [0, 64, 100, 200, 400]
    assert [level.label for level in scale] == [
        "fewer than 64",
        "64 to 99",
        "100 to 199",
        "200 to 399",
        "400 and more",
    ]
    few = levels({"a": [1, 2]}, 64)  # all below the floor
    assert [level.label for level in few] == ["fewer than 64", "64 and more"]


def test_experts_below_the_floor_are_named() -> None:
    tokens = {"model.layers.0.mlp.experts": [63, 64, 0], "model.layers.1.mlp.experts": [64, 64, 70]}
    assert few_tokens(tokens, 64) == ["model.layers.0.mlp.experts: 0 (63), 2 (0)"]


def test_errors_of_experts_are_averaged() -> None:
    layers = [
        {"name": f"model.layers.2.mlp.experts.{expert}.up_proj", "final_error": error}
        for expert, error in enumerate((0.1, 0.3))
    ]
    assert plots.layer_errors(layers) == [LayerError("model.layers", 2, "up_proj", 0.2)]
