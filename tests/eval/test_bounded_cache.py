from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.bounded_cache import PINNED_SHARE, BoundedCache


def scan(cache: BoundedCache[int, int], keys: range) -> int:
    """Look all keys up in order, adding those that are missing; return the number of hits."""
    hits = 0
    for key in keys:
        if cache.get(key) is None:
            cache.add(key, -key, 1)
        else:
            hits += 1
    return hits


def test_everything_stays_within_the_budget() -> None:
    cache: BoundedCache[int, int] = BoundedCache(8)
    assert [scan(cache, range(8)) for _ in range(3)] == [0, 8, 8]


def test_repeated_scans_over_more_than_the_budget_keep_their_hits() -> None:
    cache: BoundedCache[int, int] = BoundedCache(8)
    pinned = int(8 * PINNED_SHARE)
    assert [scan(cache, range(100)) for _ in range(3)] == [0, pinned, pinned]


def test_keys_that_recur_within_a_pass_are_hits() -> None:
    cache: BoundedCache[int, int] = BoundedCache(8)
    scan(cache, range(50))
    for key in range(50, 60):
        cache.add(key, key, 1)
        assert cache.get(key) == key


def test_value_over_the_budget_is_not_stored() -> None:
    cache: BoundedCache[str, str] = BoundedCache(10)
    cache.add("a", "a", 2)
    cache.add("b", "b", 11)
    assert (cache.get("a"), cache.get("b"), cache.nbytes) == ("a", None, 2)
    none: BoundedCache[str, str] = BoundedCache(0)
    none.add("a", "a", 1)
    assert none.get("a") is None


def test_clear_drops_all_values() -> None:
    cache: BoundedCache[int, int] = BoundedCache(8)
    scan(cache, range(20))
    cache.clear()
    assert (len(cache), cache.nbytes, cache.get(0)) == (0, 0, None)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6))), st.integers(0, 20))
def test_size_is_the_sum_of_the_stored_values(adds: list[tuple[int, int]], budget: int) -> None:
    cache: BoundedCache[int, int] = BoundedCache(budget)
    sizes: dict[int, int] = {}
    for key, size in adds:
        if cache.get(key) is None:
            sizes[key] = size
            cache.add(key, size, size)
        assert cache.nbytes <= budget
        assert cache.nbytes == sum(sizes[k] for k in sizes if cache.get(k) is not None)
