"""Memory that the C library keeps though nobody uses it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def trim_heap() -> None:
    """Return free pages to the system, where the C library is glibc; elsewhere nothing happens.

    Activations of a sample are smaller than what glibc gives back by itself. What many of them
    leave behind between longer-lived tensors would count beside the largest matrices.
    """
    if (trim := _trim()) is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return found
