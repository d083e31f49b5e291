"""Features of visuals: what the vision tower computes for the decoder.

The features of one image or video are a dict of tensors, each `[tokens, hidden]` with one row per
placeholder token, in decoder order. `hidden` replaces the embeddings of the placeholder tokens.
`deepstack.k` is added to the hidden states of these tokens after decoder layer k (DeepStack, arXiv
2406.04334).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Features = dict[str, Tensor]

HIDDEN = "hidden"
DEEPSTACK = "deepstack."
"""Start of the keys of features that are added after a decoder layer; its index follows."""
VISUAL_ROWS = "visual_rows"
"""Key of the rows of `[batch * tokens]` that belong to image and video tokens, int64."""


def split_features(features: Mapping[str, Tensor], sizes: Sequence[int]) -> list[Features]:
    """Split the features of several visuals by their numbers of tokens."""
    parts = {key: torch.split(value, list(sizes)) for key, value in features.items()}
    return [{key: parts[key][index] for key in parts} for index in range(len(sizes))]


def join_features(features: Sequence[Mapping[str, Tensor]], like: Tensor) -> Features:
    """Concatenate the features of at least one visual, on the device and in the dtype of `like`.

    Raises:
        ValueError: visuals have different keys.
    """
    keys = set(features[0])
    if other := next((set(each) for each in features if set(each) != keys), None):
        raise ValueError(
            f"features of one visual are {sorted(keys)} and of another {sorted(other)}; encode all "
            "visuals with one model"
        )
    return {
        key: torch.cat([each[key].to(like.device, like.dtype) for each in features])
        for key in features[0]
    }


def select_rows(features: Mapping[str, Tensor], rows: Tensor) -> Features:
    """Return the features of some tokens of a visual; `rows` are int64 indices `[n]`."""
    return {key: value[rows.to(value.device)] for key, value in features.items()}


def count_tokens(features: Mapping[str, Tensor]) -> int:
    """Return the number of tokens of a visual."""
    return features[HIDDEN].shape[0]


def feature_bytes(features: Mapping[str, Tensor]) -> int:
    """Return the size of all tensors in bytes."""
    return sum(tensor.nbytes for tensor in features.values())
