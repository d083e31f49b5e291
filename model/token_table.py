"""Token embeddings that are not stored as floats."""

from __future__ import annotations

from abc import ABC

from torch import Tensor, nn


class TokenTable(nn.Module, ABC):
    """Takes the place of an `nn.Embedding`: token ids `[...]` to rows `[..., hidden]`."""

    like: Tensor
    """Empty tensor with the dtype and device of the rows."""


def rows_like(embedding: nn.Module) -> Tensor:
    """Return a tensor with the dtype and device of an embedding's rows."""
    if isinstance(embedding, TokenTable):
        return embedding.like
    assert isinstance(embedding, nn.Embedding)
    return embedding.weight
