from __future__ import annotations

import itertools
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlpress.eval.tasks.matching.tree_distance import Tree, tree_distance

Nested = tuple[str, tuple["Nested", ...]]
TREES = st.recursive(
    st.tuples(st.sampled_from("ab"), st.just(())),
    lambda children: st.tuples(st.sampled_from("ab"), st.lists(children, max_size=3).map(tuple)),
    max_leaves=5,
)


def build(nested: Nested) -> Tree[str]:
    return Tree(nested[0], [build(child) for child in nested[1]])


def unequal(first: str, second: str) -> float:
    return float(first != second)


@cache
def forest_distance(first: tuple[Nested, ...], second: tuple[Nested, ...]) -> float:
    """The recursive definition: delete, insert or match the last roots."""
    if not first and not second:
        return 0.0
    results = []
    if first:
        *rest, (_, children) = first
        results.append(forest_distance((*rest, *children), second) + 1)
    if second:
        *other, (_, below) = second
        results.append(forest_distance(first, (*other, *below)) + 1)
    if first and second:
        *rest, (label, children) = first
        *other, (name, below) = second
        matched = forest_distance(tuple(rest), tuple(other)) + forest_distance(children, below)
        results.append(matched + unequal(label, name))
    return min(results)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # The example of Zhang and Shasha, figure 4.
        (
            ("f", (("d", (("a", ()), ("c", (("b", ()),)))), ("e", ()))),
            ("f", (("c", (("d", (("a", ()), ("b", ()))),)), ("e", ()))),
            2,
        ),
        (("a", ()), ("b", ()), 1),
        (("a", (("b", ()), ("c", ()))), ("a", ()), 2),
        (("a", (("b", ()),)), ("a", (("b", ()), ("b", ()))), 1),
    ],
)
def test_known_distances(first: Nested, second: Nested, expected: float) -> None:
    assert tree_distance(build(first), build(second), unequal) == expected


@settings(deadline=None)
@given(TREES, TREES)
def test_distance_is_that_of_the_definition(first: Nested, second: Nested) -> None:
    distance = tree_distance(build(first), build(second), unequal)
    assert distance == forest_distance((first,), (second,))
    assert distance == tree_distance(build(second), build(first), unequal)


def test_deep_trees_need_no_recursion() -> None:
    chain = Tree("a")
    for _ in itertools.repeat(None, 3000):
        chain = Tree("a", [chain])
    assert tree_distance(chain, Tree("a"), unequal) == 3000
