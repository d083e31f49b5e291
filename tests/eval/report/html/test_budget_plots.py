"""The figures of visual-token budgets."""

from __future__ import annotations

from typing import Any

import pytest

from vlpress.eval.report.html import budget_plots
from vlpress.eval.report.html.svg import SvgFigure


def entry(tokens: float, delta: float, affected: int = 5) -> dict[str, Any]:
    ends = [delta - 2, delta + 1]
    values = {"visual_tokens": tokens, "delta": delta, "ci95": ends, "kl_mean": -delta / 10}
    return {**values, "affected": affected}


def seconds(own: float, at_budget: float) -> dict[str, Any]:
    kinds = ("vision_seconds", "prefill_seconds", "first_token_seconds")
    return {kind: {"base": own, "candidate": at_budget} for kind in kinds}


RESULT: dict[str, Any] = {
    "margin": 2.0,
    "base": {
        "visual_tokens": 16.0,
        "benchmarks": {"letters": {"visual_tokens": 16.0}, "small": {"visual_tokens": 4.0}},
    },
    "budgets": [
        {
            "visual_tokens": tokens,
            "seconds": seconds(0.016, tokens / 1000),
            "benchmarks": {"letters": entry(tokens, delta), "small": entry(4.0, 0.0, affected=0)},
        }
        for tokens, delta in ((9.0, -5.0), (4.0, -30.0))
    ],
}


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of the figures that are rendered."""
    rendered: list[Any] = []
    render = SvgFigure.svg

    def capture(self: SvgFigure, title: str) -> Any:
        rendered.append(self.axes)
        return render(self, title)

    monkeypatch.setattr(SvgFigure, "svg", capture)
    return rendered


def test_differences_lead_from_the_own_setting_to_the_smallest_budget(axes: list[Any]) -> None:
    svg = budget_plots.difference_plot("d", "title", RESULT)
    line, *_ = axes[0].lines
    assert list(line.get_xdata()) == [16.0, 9.0, 4.0]
    assert list(line.get_ydata()) == [0.0, -5.0, -30.0]
    margin = axes[0].lines[-1]
    assert set(margin.get_ydata()) == {-2.0}
    # A benchmark that no budget affects is not drawn.
    assert "letters" in svg and "small" not in svg


def test_divergences_and_times_have_a_point_per_setting(axes: list[Any]) -> None:
    budget_plots.divergence_plot("k", "title", RESULT)
    budget_plots.time_plot("t", "title", RESULT)
    divergence, time = axes
    assert list(divergence.lines[0].get_ydata()) == [0.5, 3.0]
    assert list(time.lines[0].get_xdata()) == [16.0, 9.0, 4.0]
    assert list(time.lines[0].get_ydata()) == pytest.approx([16.0, 9.0, 4.0])
