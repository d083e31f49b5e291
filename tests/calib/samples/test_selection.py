from __future__ import annotations

import random
from collections.abc import Collection

import pytest

from vlpress.calib.samples.selection import Source, draw


def source(count: int, bad: Collection[int] = (), missing: Collection[int] = ()) -> Source[int]:
    """Entries that are their own index."""

    def read(index: int) -> int:
        if index in bad:
            raise ValueError(f"entry {index}\nis bad")
        if index in missing:
            raise FileNotFoundError(f"{index}.png: no such file")
        return index

    return Source("s.jsonl", count, read, lambda index: f"s.jsonl:{index + 1}")


def test_seed_alone_decides_a_draw_of_usable_entries() -> None:
    expected = sorted(random.Random(3).sample(range(50), 10))
    assert draw(source(50), 10, 3).samples == expected
    assert draw(source(50), 10, 3, skip_bad=4).samples == expected
    assert draw(source(50), 10, 4).samples != expected
    assert draw(source(5), 10, 3).samples == [0, 1, 2, 3, 4]


def test_every_unusable_drawn_entry_is_counted() -> None:
    with pytest.raises(ValueError, match=r"^s\.jsonl:3: entry 2 is bad; .*bad-samples 1$"):
        draw(source(9, bad=[2]), 9, 0)
    with pytest.raises(ValueError, match=r" 8 of the 9 .*bad-samples 8$") as error:
        draw(source(9, bad=range(2, 9), missing=[1]), 9, 0)
    listed = ["s.jsonl:2: 1.png", *(f"s.jsonl:{line}: entry {line - 1}" for line in range(3, 7))]
    assert all(entry in str(error.value) for entry in listed)
    assert "s.jsonl:7" not in str(error.value) and "and 3 more" in str(error.value)
    assert "\n" not in str(error.value)


def test_skipped_entries_are_named_and_replaced() -> None:
    plain = draw(source(50), 10, 3).samples
    bad = [plain[0], plain[4]]
    drawn = draw(source(50, bad=bad[:1], missing=bad[1:]), 10, 3, skip_bad=2)
    assert len(drawn.samples) == len(set(drawn.samples)) == 10
    assert drawn.samples == sorted(drawn.samples)
    assert set(plain) - set(bad) < set(drawn.samples)
    assert drawn.skipped == (
        f"s.jsonl:{bad[0] + 1}: entry {bad[0]} is bad",
        f"s.jsonl:{bad[1] + 1}: {bad[1]}.png: no such file",
    )
    assert drawn == draw(source(50, bad=bad[:1], missing=bad[1:]), 10, 3, skip_bad=9)


def test_replacements_count_as_well() -> None:
    plain = draw(source(50), 10, 3).samples
    bad = set(range(50)) - set(plain[1:])  # all others, too
    with pytest.raises(ValueError, match=r"3 of the 12 .*\(allowed: 2\)"):
        draw(source(50, bad=bad), 10, 3, skip_bad=2)
    rest = draw(source(50, bad=bad), 10, 3, skip_bad=41)
    assert rest.samples == plain[1:] and len(rest.skipped) == 41


def test_a_small_source_is_used_up(caplog: pytest.LogCaptureFixture) -> None:
    assert draw(source(3, bad=[1]), 3, 0, skip_bad=1).samples == [0, 2]
    assert "only 2 usable samples of 3" in caplog.text
    with pytest.raises(ValueError, match="no usable sample"):
        draw(source(2, bad=[0, 1]), 2, 0, skip_bad=2)


def test_samples_that_cannot_be_measured_are_unusable() -> None:
    def measure(sample: int) -> int:
        if sample == 2:
            raise ValueError("too long")
        return 100 + sample

    assert draw(source(2), 2, 0).tokens == []
    drawn = draw(source(4), 4, 0, measure=measure, skip_bad=1)
    assert (drawn.samples, drawn.tokens) == ([0, 1, 3], [100, 101, 103])
    assert drawn.skipped == ("s.jsonl:3: too long",)
