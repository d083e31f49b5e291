"""CPU threads: their number, and the time that idle ones spin.

Worker threads of OpenMP (torch and the CPU kernels) and OpenBLAS (scipy, used by the solver) spin
at the end of a parallel region in case another one follows. The defaults of several milliseconds
exceed a scheduler slice: on a machine with other processes, a spinning thread occupies the core
that the last worker of the same region needs, and every region takes a slice or more. A spin of a
few microseconds costs little on an idle machine (benchmarks/busy_machine.py).

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
    # Iterations of a pause instruction (40 to 140 cycles each): about 5 microseconds. Without any,
    # an idle machine loses a quarter of its speed; with ten times as many, single runs in
    # competition with two busy processes were many times slower again (docs/log.md).
    GNU_SPINS: "100",
    # Milliseconds; for the OpenMP runtime of Intel and LLVM, used by torch on macOS and with MKL.
    LLVM_BLOCKTIME: "0",
    # 2**10 cycles instead of 2**26.
    OPENBLAS_TIMEOUT: "10",
}


def limit_spinning() -> None:
    """Bound the time that idle worker threads spin, unless the user has chosen a policy.

    Sets the environment variables `DEFAULTS`. The command line does this itself; `import vlpress`
    does not. In a Python program, call it before torch, numpy or scipy is imported:

        from vlpress.common.threads import limit_spinning

        limit_spinning()
        import torch
    """
    for name, value in DEFAULTS.items():
        if name == OPENBLAS_TIMEOUT or OPENMP_POLICY not in os.environ:
            os.environ.setdefault(name, value)


def use_threads(count: int | None) -> None:
    """Set the number of CPU threads of this process: torch, the kernels and the solver's BLAS.

    Args:
        count: at least 1; None keeps the libraries' choice (OMP_NUM_THREADS, or the number of
            cores).

    Raises:
        ValueError: `count` is not positive.
    """
    if count is None:
        return
    if count < 1:
        raise ValueError(f"{count} threads; allowed: 1 or more")
    import torch
    from threadpoolctl import threadpool_limits

    os.environ[OPENBLAS_THREADS] = str(count)  # for scipy if it is loaded later
    threadpool_limits(count, user_api="blas")  # and if it is loaded already
    torch.set_num_threads(count)
