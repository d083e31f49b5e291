"""Division of samples into those that are trained on and those that are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ...calib.samples.sample import Sample, content_digest, image_digests


@dataclass(frozen=True)
class Division:
    """Indices of samples, in their order."""

    training: tuple[int, ...]
    held_out: tuple[int, ...]


def divide(samples: Sequence[Sample], share: float) -> Division:
    """Hold out about a share of the samples, at least one, by a hash of their images.

    Samples with an equal image are on the same side, so that no held-out image was trained on.

    Args:
        samples: at least two, with two different images or texts.
        share: above 0 and below 1.

    Raises:
        ValueError: all samples have the same image.
    """
    groups: dict[str, int] = {}
    parents: list[int] = []

    def root(group: int) -> int:
        while parents[group] != group:
            group = parents[group]
        return group

    for number, sample in enumerate(samples):
        parents.append(number)
        for key in image_digests([sample]) or {content_digest(sample)}:
            parents[root(groups.setdefault(key, number))] = root(number)
    members: dict[int, list[int]] = {}
    for number in range(len(samples)):
        members.setdefault(root(number), []).append(number)
    if len(members) < 2:
        raise ValueError(
            f"recover: the {len(samples)} samples share their images; allowed: at least two "
            "images, one of them for the held-out samples; give more samples"
        )
    ordered = sorted(members.values(), key=lambda group: _rank(samples[group[0]]))
    wanted = max(1, round(share * len(samples)))
    held_out: list[int] = []
    for group in ordered[:-1]:
        if len(held_out) >= wanted:
            break
        held_out += group
    chosen = set(held_out)
    rest = tuple(number for number in range(len(samples)) if number not in chosen)
    return Division(rest, tuple(sorted(chosen)))


def _rank(sample: Sample) -> str:
    return hashlib.sha256(content_digest(sample).encode()).hexdigest()
