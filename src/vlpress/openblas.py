"""How OpenBLAS works, which numpy and scipy bring along and the solver calls."""

from __future__ import annotations

import os

WAITING = "OPENBLAS_THREAD_TIMEOUT"


def tune() -> None:
    """Have its threads give up their cores behind a call; what the user has set stays.

    By default they keep them busy for 2**26 cycles, in case another call comes, while torch's
    threads need them. OpenBLAS reads this when it is loaded: before numpy and scipy are imported.
    """
    os.environ.setdefault(WAITING, "10")
