from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.report.pareto import pareto_front

COSTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


def test_known_points() -> None:
    assert pareto_front([(2, 1), (1, 3), (3, 1), (2, 2), (4, 0.5)]) == [1, 0, 4]
    assert pareto_front([(1, 1), (1, 1), (1, 2)]) == [0, 1]
    assert pareto_front([(5, 5)]) == [0]
    assert pareto_front([]) == []


@given(COSTS)
def test_front_is_what_nothing_dominates(costs: list[tuple[float, float]]) -> None:
    def beaten(place: int) -> bool:
        a, b = costs[place]
        return any(x <= a and y <= b and (x, y) != (a, b) for x, y in costs)

    front = pareto_front(costs)
    assert sorted(front) == [place for place in range(len(costs)) if not beaten(place)]
    assert [costs[place][0] for place in front] == sorted(costs[place][0] for place in front)
