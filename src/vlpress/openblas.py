"""How OpenBLAS works, which numpy and scipy bring along and the solver calls.

It reads environment variables when it is loaded, so they must be set before scipy is imported. What
the user has set stays.
"""

from __future__ import annotations

import os
from pathlib import Path

KERNELS, WAITING = "OPENBLAS_CORETYPE", "OPENBLAS_THREAD_TIMEOUT"
PROCESSOR = Path("/proc/cpuinfo")
NEEDED = {"AuthenticAMD", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}


def tune() -> None:
    """Set what is slow by default.

    OpenBLAS 0.3.31 takes AMD's newest processors for older ones without AVX-512, which halves the
    speed of its products. And its threads keep their cores busy for some 2**26 cycles behind every
    call, in case another one comes, while torch's threads need them.
    """
    os.environ.setdefault(WAITING, "10")
    try:
        words = set(PROCESSOR.read_text().split())
    except OSError:
        return  # not Linux
    if words >= NEEDED:
        os.environ.setdefault(KERNELS, "SkylakeX")
