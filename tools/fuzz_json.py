"""Damage that leaves a file JSON: values of other types, keys that are gone or there under others.

Random bytes seldom get past a JSON parser; what comes after it is where a reader meets values that
it does not expect.
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
"""Levels of a list that no parser of Rust takes and every parser of Python does."""


def damage_json(data: bytes, seed: int) -> bytes | None:
    """Change one to three places of a JSON document; None if it is none, or nested too deeply.

    Args:
        data: the document.
        seed: decides about places and changes.
    """
    rng = random.Random(seed)
    try:
        root = [json.loads(data)]
        for _ in range(rng.randint(1, 3)):
            _change(root, rng)
        return json.dumps(root[0] if root else None).encode()
    except (ValueError, RecursionError):  # no JSON, or too deep to be copied or written
        return None


def _change(root: list[Any], rng: random.Random) -> None:
    places = list(_places(root))
    holder, key = rng.choice(places)
    kind = rng.choice(("value", "value", "value", "other", "drop", "rename", "wrap"))
    if kind == "other":
        other, index = rng.choice(places)
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


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a document with each of its keys or indices, without recursion."""
    waiting = [holder]
    while waiting:
        found = waiting.pop()
        for key in list(found) if isinstance(found, dict) else range(len(found)):
            yield found, key
            if isinstance(found[key], list | dict):
                waiting.append(found[key])
