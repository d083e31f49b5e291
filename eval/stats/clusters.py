"""Units that hang together: questions about one picture, or one question in two languages.

Such units are no independent samples, and an interval that takes them for independent is too
narrow. The score interval is widened by the design effect: the variance of the difference with
whole clusters as samples, over that with single units (Rao and Scott, "A simple method for the
analysis of clustered binary data", Biometrics 48, 1992). In simulations it kept its coverage with
few differences, where a bootstrap over clusters did not.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


def components(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """Cluster units that share a key, directly or through others.

    Args:
        keys: of each unit, such as its pictures; a unit without any is a cluster of its own.

    Returns:
        The number of each unit's cluster: the place of its first unit.

    Example:
        >>> components(["ab", "c", "bd", "", "d"])
        [0, 1, 0, 3, 0]
    """
    parent = list(range(len(keys)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    first: dict[Hashable, int] = {}
    for place, of_unit in enumerate(keys):
        for key in of_unit:
            a, b = root(first.setdefault(key, place)), root(place)
            parent[max(a, b)] = min(a, b)
    return [root(place) for place in range(len(keys))]


def design_effect(differences: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """How many units say as much as one independent unit; at least 1.

    Args:
        differences: candidate minus base of each unit.
        clusters: which cluster each unit belongs to.

    Returns:
        1 if no two units share a cluster. Without any difference the data do not tell how alike
        the units of a cluster are: then the mean number of units per cluster, as if wholly alike.
    """
    sums, sizes = _per_cluster(differences, clusters)
    units, count = int(sizes.sum()), len(sizes)
    if count == units:
        return 1.0
    values = np.asarray(differences, dtype=np.float64)
    mean = values.mean()
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
    places: dict[Hashable, int] = {}
    where = [places.setdefault(cluster, len(places)) for cluster in clusters]
    sums, sizes = np.zeros(len(places)), np.zeros(len(places))
    np.add.at(sums, where, np.asarray(values, dtype=np.float64))
    np.add.at(sizes, where, 1.0)
    return sums, sizes
