from __future__ import annotations

import pytest

from vlpress.eval.config import EvaluateOptions
from vlpress.eval.tasks.generated.answer_limits import (
    check_limits,
    default_limit,
    find_limit,
    parse_limits,
)
from vlpress.eval.tasks.generated.reasoning import NONE, OPENED, TAGS
from vlpress.eval.tasks.registry import Benchmark

MMMU = Benchmark("MMMU_DEV_VAL", "mmmu", "file", "tsv")
PHOTOS = Benchmark("photos", "own", "file", "custom")


def test_models_that_reason_may_write_more() -> None:
    published = [default_limit(rule, synthetic=False) for rule in (NONE, TAGS, OPENED)]
    assert published == [2048, 8192, 8192]
    assert [default_limit(rule, synthetic=True) for rule in (NONE, OPENED)] == [64, 1024]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], (None, None)),
        (["4096"], (4096, 4096)),
        (["mmmu=16384"], (16384, None)),
        (["4096", "mmmu=16384"], (16384, 4096)),
        (["mmmu=16384", "MMMU_dev_val=5", "own=6", "7"], (5, 6)),
    ],
)
def test_name_is_preferred_to_kind_and_kind_to_all(
    words: list[str], expected: tuple[int | None, int | None]
) -> None:
    limits = parse_limits(words)
    check_limits(limits, [MMMU, PHOTOS])
    assert (find_limit(limits, MMMU), find_limit(limits, PHOTOS)) == expected


def test_limits_of_other_benchmarks_and_repeated_ones_are_refused() -> None:
    with pytest.raises(ValueError, match=r"docvqa=5.*MMMU_DEV_VAL, mmmu, photos, own"):
        check_limits(parse_limits(["docvqa=5"]), [MMMU, PHOTOS])
    with pytest.raises(ValueError, match="MMMU=N twice"):
        parse_limits(["mmmu=1", "MMMU=2"])
    with pytest.raises(ValueError, match="N for all benchmarks twice"):
        parse_limits(["1", "2"])


def test_option_takes_numbers_and_named_numbers() -> None:
    assert EvaluateOptions("m", max_new_tokens=4096).max_new_tokens == ("4096",)
    given = EvaluateOptions("m", max_new_tokens=[4096, "mmmu=16384"]).max_new_tokens
    assert given == ("4096", "mmmu=16384")
    for wrong in ("0", "mmmu=", "mmmu=-1", "many", 0):
        with pytest.raises(ValueError, match=r"--max-new-tokens.*N or NAME=N"):
            EvaluateOptions("m", max_new_tokens=wrong)
