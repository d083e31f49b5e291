"""Capture the inputs of modules with forward pre-hooks.

The hooks live in a context manager and are removed after errors too; the model is neither traced
nor changed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Watcher = Callable[[Tensor], None]


@contextmanager
def watch_inputs(watchers: Mapping[nn.Module, Watcher]) -> Iterator[None]:
    """Call each watcher with the first argument of its module whenever the module runs.

    Args:
        watchers: a function per module. Of several modules that share an input, one is enough.

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
