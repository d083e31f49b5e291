"""Sources and documents keep to the field's terms."""

from __future__ import annotations

from pathlib import Path

import language
import paths
import pytest


def test_rates_are_within_their_limits() -> None:
    exceeded = [
        f"{name}: {rate:.1f}, limit {limit:g}"
        for name, rate, limit in language.counts(paths.ROOT)
        if rate > limit
    ]
    assert not exceeded, "; ".join(exceeded)  # docs/glossary.md has the terms


def test_counts_of_a_small_tree(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "README.md").write_text("A picture. `picture` Nobody goes on.\n")
    (tmp_path / "model" / "a.py").write_text(
        '"""Doc."""\ndef f():\n    found = 1  # what the model is\n    return found\n'
    )
    rates = {name: rate for name, rate, _ in language.counts(tmp_path)}
    assert rates["local `found` per 1,000 functions"] == 1000
    # Doc, what the model is, A picture, Nobody goes on
    assert rates["picture per 10,000 words"] == pytest.approx(1e4 / 10)
    assert rates["what a/the/it/is as a noun per 10,000 words"] == pytest.approx(1e4 / 10)
    assert rates["who, whoever, nobody per 10,000 words"] == pytest.approx(1e4 / 10)
