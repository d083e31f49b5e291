from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from eval_files import mmbench_rows
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.tasks.benchmarks import mmbench
from vlpress.eval.tasks.files.rows import Row
from vlpress.eval.tasks.generated.samples import combine_samples
from vlpress.eval.tasks.task import TaskScore, Unit


def score(units: Sequence[Unit], *, failures: int = 0) -> TaskScore:
    table = {"dev": {"Overall": sum(unit.value for unit in units) / len(units)}}
    extra = {"more": 100 * table["dev"]["Overall"]}
    return TaskScore("accuracy", tuple(units), len(units), 0, failures, 1, extra, table)


def unit(key: str, correct: bool, answer: str = "", points: float | None = None) -> Unit:
    return Unit(key, correct, "c", "g", (key,), (answer,), points)


def test_a_unit_has_the_mean_of_its_samples() -> None:
    samples = [
        score([unit("1", True, "b"), unit("2", False, "x")], failures=1),
        score([unit("1", False, "a"), unit("2", False, "y")], failures=2),
        score([unit("1", True, "b"), unit("2", True, "y")]),
    ]
    combined = combine_samples(samples)
    first, second = combined.units
    assert first.value == pytest.approx(2 / 3) and first.correct and first.answers == ("b",)
    assert second.value == pytest.approx(1 / 3) and not second.correct
    assert second.answers == ("y",) and second.shown == 1  # wrong with the usual answer
    assert second.hits == (False, False, True)
    assert second.right_share == pytest.approx(1 / 3)
    assert combined.percent == pytest.approx(50)
    assert combined.extra == {"more": pytest.approx(50)}
    assert combined.table == {"dev": {"Overall": pytest.approx(0.5)}}
    assert (combined.n_rows, combined.parse_failures, combined.refusals) == (2, 3, 3)


def test_half_of_the_samples_are_not_enough_to_be_right() -> None:
    [tied] = combine_samples([score([unit("1", right)]) for right in (True, False)]).units
    assert tied.value == 0.5 and not tied.correct and tied.shown == 1


def test_points_are_averaged() -> None:
    samples = [score([unit("1", points > 0, points=points)]) for points in (0.75, 0.0, 0.6)]
    [mean] = combine_samples(samples).units
    assert mean.value == pytest.approx(0.45) and mean.correct
    assert mean.right_share == pytest.approx(2 / 3)


def test_a_circular_group_counts_within_each_sample() -> None:
    cells = [{key: str(value) for key, value in row.items()} for row in mmbench_rows(1)]
    fields = [mmbench.fields(Row(int(row["index"]), row, ())) for row in cells]
    right = {f["id"]: f["answer"] for f in fields}
    slip = {**right, fields[1]["id"]: "no idea"}
    other = {**right, fields[2]["id"]: "no idea"}
    scores = [mmbench.score(fields, answers, "2025-08") for answers in (right, slip, other)]
    combined = combine_samples(scores)
    # 11 of 12 rows of 3 samples would be 10/12; the group is right in one sample of three.
    assert combined.percent == pytest.approx(100 / 3)
    assert combined.extra["vanilla_all"] == pytest.approx(100 * 10 / 12)
    assert len(combined.units[0].rows) == 4 and combined.parse_failures == 2


units = st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), min_size=3, max_size=3)


@given(st.lists(units, min_size=1, max_size=6), st.randoms())
def test_the_order_of_samples_changes_nothing(
    drawn: list[list[tuple[bool, str]]], random: object
) -> None:
    samples = [score([unit(str(i), *each) for i, each in enumerate(part)]) for part in drawn]
    shuffled = list(samples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    def plain(combined: TaskScore) -> TaskScore:
        same = tuple(replace(u, hits=tuple(sorted(u.hits)), shown=0) for u in combined.units)
        extra = {key: round(value, 9) for key, value in combined.extra.items()}
        table = {"dev": {"Overall": round(combined.table["dev"]["Overall"], 9)}}
        return replace(combined, units=same, extra=extra, table=table)

    assert plain(combine_samples(samples)) == plain(combine_samples(shuffled))


@given(units, st.integers(1, 9))
def test_equal_samples_give_the_score_of_one(drawn: list[tuple[bool, str]], times: int) -> None:
    one = score([unit(str(i), *each) for i, each in enumerate(drawn)])
    combined = combine_samples([one] * times)
    assert combined.percent == one.percent and combined.extra == one.extra
    assert json.dumps(combined.table) == json.dumps(one.table)
    for each, single in zip(combined.units, one.units, strict=True):
        assert (each.value, each.correct, each.answers) == (
            single.value,
            single.correct,
            single.answers,
        )
