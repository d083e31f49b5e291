"""Start of a verb: its arguments are checked, then its modules are imported, often torch too."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..common.environment import is_distributed
from ..common.imports import without_collections
from ..common.options import Options
from ..common.progress import Reporter


@contextmanager
def starting(options: Options, *, needs_torch: bool = True) -> Iterator[None]:
    """Check a verb's arguments, then show that its modules are being imported in the body.

    Nothing is shown if these do not need torch, or it is loaded already. Processes of a distributed
    run check the arguments in the verb itself, so that one line is printed instead of one per
    process.

    Args:
        options: the verb's arguments.
        needs_torch: whether the modules import torch, which takes seconds.

    Raises:
        FileNotFoundError: a model, recipe or benchmark does not exist, see `check_arguments`.
        ValueError: an argument is unusable.
    """
    if is_distributed():
        yield
        return
    with without_collections():
        from .preflight import check_arguments  # a fifth of a second, which --help does not need
    check_arguments(options)
    if not needs_torch or "torch" in sys.modules:
        yield
        return
    with Reporter().step("loading torch"), without_collections():
        yield
    gc.freeze()  # later collections leave out what was imported
