"""Documents by the structure of their headings and lines.

The authors compare trees of a document's lines: each heading (`#`) is a child of the root, and each
other line a child of the last heading with that text. Replacing one line by another costs nothing
unless one is blank, so that the score is one of structure, not of text.
"""

from __future__ import annotations

import re

from ..tree_distance import Tree, tree_distance

_ROOT, _TITLE = "ROOT", "TITLE"
_CLEANING = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"<bos>|<eos>|<pad>|<unk>", ""),
        (r"\s##(\S)", r"\1"),
        (r"\\\s", r"\\"),
        (r"\s\*\s\*\s", "**"),
        (r"{\s", "{"),
        (r"\s}", "}"),
        (r"\s}", "}"),
        (r"\\begin\s", r"\\begin"),
        (r"\\end\s", r"\\end"),
        (r"\\end{table}", r"\\end{table} \n\n"),
        (r"[\n*_]", " "),
    )
]


def document_score(answers: list[object], prediction: str) -> float:
    """Return 1 - distance / nodes of the larger tree, or 0 if that is negative."""
    trees = [_read(text) for text in (prediction, str(answers[0]))]
    distance = tree_distance(trees[0], trees[1], _rename)
    return max(1 - distance / max(map(_count, trees)), 0.0)


def _rename(first: str, second: str) -> float:
    return float(not first.strip() or not second.strip())


def _read(text: str) -> Tree[str]:
    root = Tree(_ROOT, [Tree(_TITLE)])
    heading = ""
    for line in map(_clean, text.split("\n")):
        if line.startswith("#"):
            heading = line.replace("#", "")
            root.children.append(Tree(heading))
        else:
            parent = _find(root, heading or _TITLE)
            parent.children.append(Tree(line))
    return root


def _clean(line: str) -> str:
    for pattern, replacement in _CLEANING:
        line = pattern.sub(replacement, line)
    return line


def _find(root: Tree[str], label: str) -> Tree[str]:
    """Return the first node with a label, a parent before its children."""
    pending = [root]
    while pending:
        node = pending.pop()
        if node.label == label:
            return node
        pending += reversed(node.children)
    raise AssertionError(f"no node {label!r}")


def _count(tree: Tree[str]) -> int:
    count, pending = 0, [tree]
    while pending:
        node = pending.pop()
        count += 1
        pending += node.children
    return count
