"""Edit distance of ordered trees: the least cost of deleting, inserting and renaming nodes.

Zhang and Shasha, "Simple fast algorithms for the editing distance between trees and related
problems", SIAM Journal on Computing 18, 1989. Deleting and inserting a node cost 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Label = TypeVar("Label")


@dataclass
class Tree(Generic[Label]):
    """A node with its children in order."""

    label: Label
    children: list[Tree[Label]] = field(default_factory=list)


class _Postorder(Generic[Label]):
    """Nodes of a tree in postorder, numbered from 1.

    `leaves[i]` is the number of the leftmost leaf below node i, and the key roots are the nodes
    whose subtree is not the beginning of a larger one with the same leftmost leaf.
    """

    def __init__(self, tree: Tree[Label]) -> None:
        self.labels: list[Label] = []
        self.leaves = [0]
        pending = [(tree, False)]
        firsts: dict[int, int] = {}  # leftmost leaf of each visited node, by its identity
        while pending:
            node, is_visited = pending.pop()
            if not is_visited:
                pending.append((node, True))
                pending += [(child, False) for child in reversed(node.children)]
                continue
            self.labels.append(node.label)
            leaf = firsts[id(node.children[0])] if node.children else len(self.labels)
            firsts[id(node)] = leaf
            self.leaves.append(leaf)
        last = {leaf: number for number, leaf in enumerate(self.leaves) if number}
        self.key_roots = sorted(last.values())


def tree_distance(
    first: Tree[Label], second: Tree[Label], rename: Callable[[Label, Label], float]
) -> float:
    """Return the edit distance of two trees.

    Args:
        first: a tree.
        second: another tree.
        rename: cost of giving a node another label; called once for each pair of nodes.
    """
    left, right = _Postorder(first), _Postorder(second)
    costs = [[rename(a, b) for b in right.labels] for a in left.labels]
    distances = [[0.0] * (len(right.labels) + 1) for _ in range(len(left.labels) + 1)]
    for i in left.key_roots:
        for j in right.key_roots:
            _fill(i, j, left.leaves, right.leaves, costs, distances)
    return distances[-1][-1]


def _fill(
    i: int,
    j: int,
    left: Sequence[int],
    right: Sequence[int],
    costs: Sequence[Sequence[float]],
    distances: list[list[float]],
) -> None:
    """Compute the distances of all pairs of subtrees that begin as those of two key roots."""
    begin, start = left[i], right[j]
    above = [float(n) for n in range(j - start + 2)]  # of an empty forest
    table = [above]
    for x in range(begin, i + 1):
        row = [above[0] + 1]
        whole, back = left[x] == begin, table[left[x] - begin]
        for column, y in enumerate(range(start, j + 1), 1):
            least = min(above[column], row[-1]) + 1
            if whole and right[y] == start:
                least = min(least, above[column - 1] + costs[x - 1][y - 1])
                distances[x][y] = least
            else:
                least = min(least, back[right[y] - start] + distances[x][y])
            row.append(least)
        table.append(row)
        above = row
