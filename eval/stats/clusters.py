"""Clusters of dependent units: questions about one image, or one question in two languages.

Such units are not independent samples, so an interval that assumes independence is too narrow. The
score interval is widened by the design effect: the variance of the difference with clusters as
samples, divided by that with single units (Rao and Scott, "A simple method for the analysis of
clustered binary data", Biometrics 48, 1992). In simulations (`benchmarks/coverage.py`)
it kept its coverage with few differences, unlike a bootstrap over clusters.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


def components(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """Connected components of units that share a key, by union-find.

    Args:
        keys: the keys of each unit, such as its images; a unit without keys is its own cluster.

    Returns:
        The cluster of each unit, numbered by the index of its first unit.

    Example:
        >>> components(["ab", "c", "bd", "", "d"])
        [0, 1, 0, 3, 0]
    """
    parent = list(range(len(keys)))

    def root(unit: int) -> int:
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]  # path halving
            unit = parent[unit]
        return unit

    first: dict[Hashable, int] = {}
    for unit, unit_keys in enumerate(keys):
        for key in unit_keys:
            a, b = root(first.setdefault(key, unit)), root(unit)
            parent[max(a, b)] = min(a, b)
    return [root(unit) for unit in range(len(keys))]


def design_effect(differences: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Number of dependent units with the information of one independent unit.

    Args:
        differences: candidate minus base of each unit, in [-1, 1].
        clusters: the cluster of each unit.

    Returns:
        The design effect, at least 1; exactly 1 if no two units share a cluster. If all differences
        are equal, the correlation within clusters cannot be estimated; the result is then the
        mean number of units per cluster, its value for perfect correlation.

    Raises:
        ValueError: different numbers of differences and clusters.
    """
    sums, sizes = _per_cluster(differences, clusters)
    units, count = int(sizes.sum()), len(sizes)
    if count == units:
        return 1.0
    values = np.asarray(differences, dtype=np.float64)
    mean = values.mean()
    # Sums of squares with units and with clusters as samples; n / (n - 1) corrects the bias of the
    # latter, as there may be few clusters.
    single = float(((values - mean) ** 2).sum())
    if single == 0 or count < 2:
        return units / count
    whole = float(((sums - sizes * mean) ** 2).sum()) * count / (count - 1)
    return max(1.0, whole / single)


def _per_cluster(
    values: Sequence[float], clusters: Sequence[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum of values and number of units of each cluster."""
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values and {len(clusters)} clusters; both need the same")
    numbers: dict[Hashable, int] = {}
    indices = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    sums, sizes = np.zeros(len(numbers)), np.zeros(len(numbers))
    np.add.at(sums, indices, np.asarray(values, dtype=np.float64))
    np.add.at(sizes, indices, 1.0)
    return sums, sizes
