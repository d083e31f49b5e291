"""Figures of reports, each drawn once."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

DRAWING = ("_plot", "_histogram", "byte_bars", "expert_map")
"""Ends of the names of functions that draw: from plain data, with the same bytes each time."""


@contextmanager
def drawn_once(html: ModuleType) -> Iterator[None]:
    """Let the pages of reports take equal figures from memory; other callers draw anew.

    Args:
        html: `vlpress.eval.report.html`.
    """
    with pytest.MonkeyPatch.context() as patch:
        plots = SimpleNamespace(**{k: _stored(k, v) for k, v in vars(html.page.plots).items()})
        for page in (html.page, html.overview):
            for name, value in list(vars(page).items()):
                patch.setattr(page, name, plots if name == "plots" else _stored(name, value))
        yield


def _stored(name: str, value: Any) -> Any:
    """Wrap a function that draws; everything else is returned as it is."""
    if not name.endswith(DRAWING) or not callable(value):
        return value
    draw: Callable[..., Any] = value
    figures: dict[bytes, Any] = {}

    @functools.wraps(draw)
    def stored(*arguments: Any, **options: Any) -> Any:
        key = pickle.dumps((arguments, options))
        if key not in figures:
            figures[key] = draw(*arguments, **options)
        return figures[key]

    return stored
