"""Return free heap memory to the operating system."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def trim_heap() -> None:
    """Return free pages to the operating system (`malloc_trim`); does nothing without glibc.

    Activations of one sample are smaller than the blocks that glibc returns by itself. Freed ones
    leave holes between longer-lived tensors, which would add to the peak memory of large matrices.
    """
    if (trim := _trim()) is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return trim
