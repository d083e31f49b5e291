"""Watch the inputs of modules while they run.

Forward pre-hooks inside a context manager: whatever happens, they are gone afterwards, and the
model is never traced or changed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Watcher = Callable[[Tensor], None]


@contextmanager
def watch_inputs(watchers: Mapping[nn.Module, Watcher]) -> Iterator[None]:
    """Call each watcher with its module's first argument whenever the module runs.

    Args:
        watchers: a function per module. Modules that share an input need one watcher between
            them, on any one of them.

    Example:
        >>> from torch import ones
        >>> layer, seen = nn.Linear(2, 1), []
        >>> with watch_inputs({layer: lambda x: seen.append(tuple(x.shape))}):
        ...     _ = layer(ones(3, 2))
        >>> seen
        [(3, 2)]
    """

    def hook(watcher: Watcher) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def call(module: nn.Module, args: tuple[Any, ...]) -> None:
            watcher(args[0])

        return call

    handles = []
    try:
        for module, watcher in watchers.items():
            handles.append(module.register_forward_pre_hook(hook(watcher)))
        yield
    finally:
        for handle in handles:
            handle.remove()
