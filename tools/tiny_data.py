"""Training data of the built-in model: batches of conversations with labels per patch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tiny_talk import CUES, IGNORE, Conversation, Writer
from tiny_truth import LABELS, PATCH, patch_labels, patches
from torch import Tensor

from vlpress.synthetic import scenes, text_scenes
from vlpress.synthetic.canvas import AnnotatedImage
from vlpress.synthetic.scene import Scene

TOKENS = 280  # tokens of a conversation, for the size of a batch
POOL = 8  # batches generated together and sorted by length: a third less padding
# Every conversation has a scene with a question of one skill: the skill's share, and its scenes.
# Without the shares, questions of the harder skills would be rare.
SHARES: dict[str, tuple[float, tuple[str, ...]]] = {
    "read": (8.0, ("text",)), "number": (2.5, ("text",)), "formula": (4.0, ("formula",)),
    "ink": (2.0, ("signs",)), "sign": (3.0, ("signs",)), "line": (2.5, ("lines",)),
    "value": (2.0, ("form",)), "nth_read": (0.3, ("album",)),
    "tallest": (0.3, ("chart",)), "shortest": (0.3, ("chart",)), "bar_value": (0.4, ("chart",)),
    "bar_count": (0.3, ("chart",)), "which_image": (0.4, ("album",)),
    "which_colour_image": (0.4, ("album",)), "nth_colour": (0.3, ("album",)),
    "nth_shape": (0.3, ("album",)), "colour_of": (0.6, ("shapes", "frame")),
    "shape_of": (0.6, ("shapes", "frame")), "count": (1.5, ("shapes", "odd", "row")),
    "count_shape": (1.1, ("shapes", "odd")), "count_colour": (1.1, ("shapes", "odd")),
    "where": (0.7, ("shapes",)), "direction": (0.7, ("shapes", "pair")),
    "beside": (0.5, ("shapes", "pair")), "same_colour": (2.0, ("shapes", "pair")),
    "largest": (0.8, ("shapes",)), "smallest": (1.0, ("shapes",)), "quality": (2.2, ("shapes",)),
    "inside": (0.5, ("frame",)), "odd_colour": (0.7, ("odd",)), "odd_shape": (0.7, ("odd",)),
    "most_colour": (0.5, ("odd",)), "next_colour": (2.0, ("row",)),
    "kind": (0.2, tuple(scenes.SCENES)), "background": (0.2, tuple(scenes.SCENES)),
}  # fmt: skip
HARD_TEXT = {"digits": 1.5, "non_semantic": 2.0}  # weights of kinds of text, 1 for the others


@dataclass
class PackedBatch:
    """Conversations padded on the right to `[B, T]`; visual parts are concatenated."""

    ids: Tensor  # int64 [B, T]
    target: Tensor  # int64 [B, T], IGNORE outside answers
    flag: Tensor  # int64 [B, T]
    kind: Tensor  # int64 [B, T]
    position: Tensor  # int64 [3, B, T]
    segment: Tensor  # int64 [B, T], -1 for padding
    patches: Tensor  # float32 [N, 1176]
    grid: Tensor  # int64 [images, 3]
    labels: Tensor  # float32 [N / 4, 4 * LABELS]

    def mask(self) -> Tensor:
        """Causal attention mask, bool `[B, 1, T, T]`: the prefix and the token's own question."""
        row, column = self.segment[:, :, None], self.segment[:, None, :]
        order = torch.arange(self.ids.shape[1], device=self.ids.device)
        seen = (column == 0) | (row == column)
        return (seen & (order[:, None] >= order))[:, None]

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on another device."""
        return PackedBatch(**{k: v.to(device) for k, v in vars(self).items()})


def pack(conversations: list[Conversation], family: str, *, draw: bool = True) -> PackedBatch:
    """Pad conversations to one length; without `draw` the family's patches are left out."""
    longest = max(len(c.ids) for c in conversations)

    def padded(name: str, fill: int) -> Tensor:
        rows = [getattr(c, name) + [fill] * (longest - len(c.ids)) for c in conversations]
        return torch.tensor(rows)

    position = torch.tensor(
        [c.position + [(0, 0, 0)] * (longest - len(c.ids)) for c in conversations]
    ).permute(2, 0, 1)
    images = [p for c in conversations for p in c.images]
    empty = [np.zeros((0, 1176), np.float32)]
    cut = [patches(image, family) for image in images] if draw and images else empty
    labels = [patch_labels(p) for p in images] or [np.zeros((0, 4 * LABELS), np.float32)]
    grid = [(1, p.image.height // PATCH, p.image.width // PATCH) for p in images]
    return PackedBatch(
        ids=padded("ids", 0),
        target=padded("target", IGNORE),
        flag=padded("flag", -1),
        kind=padded("kind", 0),
        position=position,
        segment=padded("segment", -1),
        patches=torch.from_numpy(np.concatenate(cut)),
        grid=torch.tensor(grid, dtype=torch.int64).reshape(-1, 3),
        labels=torch.from_numpy(np.concatenate(labels)),
    )


def by_length(conversations: list[Conversation], tokens: int) -> list[list[Conversation]]:
    """Groups of similar length, of at most `tokens` tokens each, including padding."""
    groups: list[list[Conversation]] = []
    for one in sorted(conversations, key=lambda c: len(c.ids), reverse=True):
        if groups and len(groups[-1][0].ids) * (len(groups[-1]) + 1) <= tokens:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def draw(rng: random.Random, skill: str) -> Scene:
    """Generate a scene with a question of `skill`."""
    while True:
        kind = rng.choice(SHARES[skill][1])
        if kind == "text":
            chances = [HARD_TEXT.get(name, 1.0) for name in text_scenes.TEXT_KINDS]
            scene = text_scenes.text(rng, rng.choices(text_scenes.TEXT_KINDS, chances)[0])
        else:
            scene = scenes.SCENES[kind](rng)
        if any(q.skill == skill for q in scene.questions):
            return scene


def random_skill(rng: random.Random) -> str:
    """Draw a skill by its share of the conversations."""
    return rng.choices(tuple(SHARES), [share for share, _ in SHARES.values()])[0]


def random_images(rng: random.Random, count: int) -> list[AnnotatedImage]:
    """Images for the training of the vision tower alone."""
    out: list[AnnotatedImage] = []
    while len(out) < count:
        out += draw(rng, random_skill(rng)).images
    return out[:count]


def unasked(images: list[AnnotatedImage]) -> Conversation:
    """Images without a question, in the form of a conversation."""
    return Conversation(images, [0], [IGNORE], [-1], [0], [(0, 0, 0)], [0])


def batches(
    writer: Writer,
    stage: str,
    seed: int,
    size: int,
    questions: int,
    *,
    family: str,
    drills: float = 0.0,
    looks: float = 0.0,
    focus: Sequence[str] = (),
) -> Iterator[PackedBatch]:
    """An endless stream of training batches, the same for the same seed.

    Args:
        writer: makes the conversations.
        stage: `vision` (images only), `drill`, `look`, `decoder`, `joint` or `draft`.
        seed: seed of the stream.
        size: conversations per batch, or images in the `vision` stage.
        questions: questions per conversation.
        family: family of the model, which normalizes pixels in its way.
        drills: share of letter drills among the conversations.
        looks: share of looking drills among the others.
        focus: skills of half of the conversations; empty for the distribution of `SHARES`.
    """
    rng = scenes.stream_random(scenes.Stream.TRAINING, seed)
    while True:
        if stage == "vision":
            yield pack([unasked(random_images(rng, size))], family)
            continue
        conversations = []
        for _ in range(size * POOL):
            if stage == "drill" or rng.random() < drills:
                conversations.append(writer.drill(rng, 8))
                continue
            skill = random_skill(rng)
            if focus and rng.random() < 0.5:
                skill = rng.choice(focus)
            preferred = focus if skill in focus else (skill,)
            scene = draw(rng, skill)
            if skill in CUES and (stage == "look" or rng.random() < looks):
                conversations.append(writer.look(scene, rng, preferred))
            else:
                conversations.append(writer.conversation(scene, rng, questions, preferred))
        groups = by_length(conversations, size * TOKENS)
        rng.shuffle(groups)
        for group in groups:
            yield pack(group, family, draw=stage in ("joint", "draft"))
