from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.report.comparison import pareto_front

COSTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


def test_known_points() -> None:
    assert pareto_front([(2, 1), (1, 3), (3, 1), (2, 2), (4, 0.5)]) == [1, 0, 4]
    assert pareto_front([(1, 1), (1, 1), (1, 2)]) == [0, 1]
    assert pareto_front([(5, 5)]) == [0]
    assert pareto_front([]) == []


@given(COSTS)
def test_front_is_the_points_that_none_dominates(costs: list[tuple[float, float]]) -> None:
    def dominated(index: int) -> bool:
        a, b = costs[index]
        return any(x <= a and y <= b and (x, y) != (a, b) for x, y in costs)

    front = pareto_front(costs)
    assert sorted(front) == [index for index in range(len(costs)) if not dominated(index)]
    assert [costs[index][0] for index in front] == sorted(costs[index][0] for index in front)
