"""Threads: how long idle ones wait for work, and how many there are.

Worker threads of OpenMP (torch and the CPU kernels) and OpenBLAS (scipy, used by the solver) spin
at the end of a parallel region in case another one follows. By default they do so for several
milliseconds: longer than a scheduler slice. On a machine that runs anything else, a spinning thread
then occupies the core that the last worker of the same region is waiting for, and every region
takes a slice or more. A wait of some microseconds costs little on an idle machine
(benchmarks/busy_machine.py).

The runtimes read these variables once, when they are loaded, so they must be set before torch,
numpy and scipy are imported. Values that the user has set are kept.
"""

from __future__ import annotations

import os

OPENMP_POLICY = "OMP_WAIT_POLICY"
GNU_SPINS = "GOMP_SPINCOUNT"
LLVM_BLOCKTIME = "KMP_BLOCKTIME"
OPENBLAS_TIMEOUT = "OPENBLAS_THREAD_TIMEOUT"
OPENBLAS_THREADS = "OPENBLAS_NUM_THREADS"

DEFAULTS = {
    # Iterations with a pause instruction each (40 to 140 cycles): about 5 microseconds. None at
    # all costs a quarter of the speed on an idle machine; ten times as many brought back single
    # runs beside two busy processes that were many times slower (docs/log.md).
    GNU_SPINS: "100",
    # Milliseconds; the runtime of Intel and LLVM, which torch uses on macOS and with MKL.
    LLVM_BLOCKTIME: "0",
    # 2**10 cycles instead of 2**26.
    OPENBLAS_TIMEOUT: "10",
}


def limit_spinning() -> None:
    """Bound how long idle worker threads spin, unless the user has chosen a policy."""
    for name, value in DEFAULTS.items():
        if name == OPENBLAS_TIMEOUT or OPENMP_POLICY not in os.environ:
            os.environ.setdefault(name, value)


def use_threads(count: int | None) -> None:
    """Compute with `count` threads from here on: torch, the CPU kernels and the solver's BLAS.

    Args:
        count: at least 1; None keeps what the libraries have chosen (OMP_NUM_THREADS, or the
            number of cores).

    Raises:
        ValueError: `count` is not positive.
    """
    if count is None:
        return
    if count < 1:
        raise ValueError(f"{count} threads; allowed: 1 or more")
    import torch
    from threadpoolctl import threadpool_limits

    os.environ[OPENBLAS_THREADS] = str(count)  # where scipy is not loaded yet
    threadpool_limits(count, user_api="blas")  # where it is
    torch.set_num_threads(count)
