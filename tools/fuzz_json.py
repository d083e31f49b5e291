"""Damage that keeps a file valid JSON: values of other types, missing or renamed keys.

Random bytes rarely pass a JSON parser, so that the code after it, which handles unexpected values,
would not be tested.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    7,
    2**31,
    2**64,
    10**400,
    0.5,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x",
    "1",
    "<|im_end|>",
    "{{ messages }}",
    "\ud800",
    "\x00",
    "../x",
    "x" * 1000,
    [],
    {},
    [None],
    ["x"],
    [1, 2, 3],
    [[]],
    {"x": 1},
    {"content": "x"},
    {"default": None},
)
DEEP = 200
"""Nesting depth that Rust parsers reject and Python parsers accept."""


def damage_json(data: bytes, seed: int) -> bytes | None:
    """Change one to three values of a JSON document; None if it is not JSON or nested too deeply.

    Args:
        data: the document.
        seed: determines positions and changes.
    """
    rng = random.Random(seed)
    try:
        root = [json.loads(data)]
        for _ in range(rng.randint(1, 3)):
            _change(root, rng)
        return json.dumps(root[0] if root else None).encode()
    except (ValueError, RecursionError):  # not JSON, or too deep to copy or write
        return None


def _change(root: list[Any], rng: random.Random) -> None:
    positions = list(_positions(root))
    holder, key = rng.choice(positions)
    kind = rng.choice(("value", "value", "value", "other", "drop", "rename", "wrap"))
    if kind == "other":
        other, index = rng.choice(positions)
        holder[key] = copy.deepcopy(other[index])
    elif kind == "drop" and isinstance(holder, dict):
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[rng.choice(("x", "", "0", "-1", "default"))] = holder.pop(key)
    elif kind == "wrap":
        for _ in range(rng.choice((1, 1, 1, DEEP))):
            holder[key] = [holder[key]]
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))


def _positions(holder: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a document with each of its keys or indices, without recursion."""
    pending = [holder]
    while pending:
        container = pending.pop()
        for key in list(container) if isinstance(container, dict) else range(len(container)):
            yield container, key
            if isinstance(container[key], list | dict):
                pending.append(container[key])
