"""Training data of the built-in model: conversations about one scene, with the truth per patch.

A conversation is a prefix (system turn and pictures) followed by several questions. Each question
sees the prefix and itself only, and its positions go on where the prefix ends: it is exactly what
a single-turn prompt looks like, but the prefix is computed once for all of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from vlpress.calib import scenes, synthetic
from vlpress.calib.draw import INKS, SHAPES, Picture
from vlpress.calib.glyphs import GLYPHS
from vlpress.calib.phrases import translate
from vlpress.calib.scene import DIRECTIONS, PLACES, Question, Scene

PATCH = 14
IGNORE = -100
TOKENS = 280  # of a conversation, for the size of a batch
POOL = 8  # batches that are drawn together and sorted by length: a third less padding
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)

# What a patch is labelled with: the mark whose centre lies in it. Where a glyph stands in its
# string, and in which line, is what reading needs and what rotary positions alone teach slowly.
MARKS = (*SHAPES, "bar")
RANKS, LINES = 7, 4
GROUPS = {
    "glyph": len(GLYPHS), "shape": len(MARKS), "colour": len(INKS), "size": 2,  # large, framed
    "rank": RANKS, "line": LINES,
}  # fmt: skip
LABELS = sum(GROUPS.values())
THINGS = LABELS - RANKS - LINES  # labels that say what something is, not where it stands
FIRST = dict(zip(GROUPS, np.cumsum([0, *GROUPS.values()]).tolist(), strict=False))
# A short cue for every skill: a drill writes it behind the picture, and the answer behind it.
CUES = {
    "read": "\n", "number": "\n", "formula": "\n", "ink": " {colour}", "sign": " {colour}",
    "line": " {ordinal}", "value": "{key}:", "colour_of": " {shape}", "shape_of": " {colour}",
    "bar_value": " {colour}", "tallest": " tallest", "shortest": " shortest",
    "largest": " largest", "smallest": " smallest", "inside": " inside",
    "odd_colour": " odd colour",
    "odd_shape": " odd shape", "next_colour": " next", "count": " shapes", "bar_count": " bars",
    "where": " where {shape}", "direction": " {a} side {b}", "most_colour": " most",
    "nth_colour": " {ordinal} colour", "nth_shape": " {ordinal} shape",
    "nth_read": " {ordinal} text",
    "which_image": " image {shape}", "which_colour_image": " image {colour}",
    "count_colour": " number {colour}", "count_shape": " number {shape}",
    "same_colour": " same {a} {b}", "beside": " {b} {direction}",
}  # fmt: skip
FACTS = 10  # of a picture in a drill, at most
SCENE_WEIGHTS = {
    "text": 8.0, "signs": 3.0, "lines": 2.5, "form": 2.5, "formula": 4.0, "shapes": 2.5,
    "pair": 2.0, "odd": 1.2, "row": 0.8, "frame": 0.8, "chart": 1.5, "album": 1.7,
}  # fmt: skip
# Questions asked about one scene, at most: asking twice for the same string teaches little.
SCENE_QUESTIONS = {"text": 2, "formula": 2, "signs": 4, "lines": 5, "form": 5, "album": 6}
DULL = {
    "kind": 0.15,
    "background": 0.15,
    "quality": 0.5,
    "list": 1.5,
}  # quickly learned: asked less
READING = ("read", "number", "formula", "ink", "sign", "line", "value", "nth_read")


def patch_labels(picture: Picture) -> np.ndarray:
    """Labels of every merged token, float32 ``[tokens, 4 * LABELS]`` of 0 and 1."""
    columns, rows = picture.image.width // PATCH, picture.image.height // PATCH
    grid = np.zeros((rows, columns, LABELS), dtype=np.float32)
    for mark in picture.marks:
        row = min(rows - 1, max(0, int(mark.y // PATCH)))
        column = min(columns - 1, max(0, int(mark.x // PATCH)))
        here = grid[row, column]
        here[:] = 0
        if mark.glyph:
            here[FIRST["glyph"] + GLYPHS.index(mark.glyph)] = 1
            here[FIRST["line"] + min(mark.line, LINES) - 1] = 1
        if mark.rank:
            here[FIRST["rank"] + min(mark.rank, RANKS) - 1] = 1
        if mark.shape:
            here[FIRST["shape"] + MARKS.index(mark.shape)] = 1
        if mark.colour in INKS:
            here[FIRST["colour"] + INKS.index(mark.colour)] = 1
        if mark.size in ("large", "framed"):
            here[FIRST["size"] + (mark.size == "framed")] = 1
    tiles = grid.reshape(rows // 2, 2, columns // 2, 2, LABELS).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(rows * columns // 4, 4 * LABELS)


def patches(picture: Picture) -> np.ndarray:
    """Normalized patches in merge order, float32 ``[patches, 1176]``."""
    pixels = (np.asarray(picture.image, dtype=np.float32) / 255 - MEAN) / STD
    rows, columns = pixels.shape[0] // (2 * PATCH), pixels.shape[1] // (2 * PATCH)
    tiles = pixels.reshape(rows, 2, PATCH, columns, 2, PATCH, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    flat = tiles.reshape(rows * columns * 4, 3, 1, PATCH * PATCH)
    return np.repeat(flat, 2, axis=2).reshape(rows * columns * 4, -1)


@dataclass
class Conversation:
    """Token lists of one packed conversation.

    ``flag`` is 1 / 0 at the end of right / wrong options and -1 elsewhere, ``segment`` is 0 for
    the prefix.
    """

    pictures: list[Picture]
    ids: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    flag: list[int] = field(default_factory=list)
    segment: list[int] = field(default_factory=list)
    position: list[tuple[int, int, int]] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)  # 1: letter answer, 2: read string, 3: other


class Writer:
    """Turns scenes into conversations with one tokenizer."""

    def __init__(
        self, tokenizer: Tokenizer, closed: float = 1.0, skills: Sequence[str] = ()
    ) -> None:
        self.closed = closed  # factor on the share of multiple choice
        self.skills = frozenset(skills)  # what is asked; empty: everything
        self.tokenizer = tokenizer
        self.image_pad: int = tokenizer.encode("<|image_pad|>").ids[0]
        self.encode = lru_cache(maxsize=200_000)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text).ids)

    def lines(self, text: str) -> list[int]:
        """Token ids; every line is encoded by itself, because a newline is always one token."""
        out: list[int] = []
        for line in text.splitlines(keepends=True):
            out += self.encode(line)
        return out

    def conversation(self, scene: Scene, rng: random.Random, questions: int) -> Conversation:
        """A scene with at most ``questions`` questions about it."""
        out = Conversation(list(scene.pictures))
        bare = rng.random() < 0.2  # the layout in which the question begins before the picture
        start = self._prefix(out, bare=bare)
        asked = self.asked(scene)
        weights = [DULL.get(q.skill, 3.0 if q.skill in READING else 1.0) for q in asked]
        count = min(questions, SCENE_QUESTIONS.get(scene.kind, questions))
        ranks = [rng.random() ** (1 / w) for w in weights]  # weighted, without repetition
        order = sorted(range(len(ranks)), key=ranks.__getitem__, reverse=True)
        chosen = [asked[i] for i in order[:count]]
        chosen += [_repeat(rng) for _ in range(count) if rng.random() < 0.12]
        for index, question in enumerate(chosen, 1):
            self._ask(out, question, rng, start, index, bare=bare)
        return out

    def asked(self, scene: Scene) -> list[Question]:
        """The scene's questions of the chosen skills."""
        return [q for q in scene.questions if not self.skills or q.skill in self.skills]

    def drill(self, rng: random.Random, pairs: int) -> Conversation:
        """Letters and words, then every word with its letter right behind it; no picture."""
        out = Conversation([])
        pool = rng.choice((INKS, SHAPES, tuple("123456789"), PLACES, INKS + SHAPES))
        chosen = rng.sample(pool, min(4, len(pool)))
        letters = synthetic.LETTERS[: len(chosen)]
        text = "".join(f"{letter}. {word}\n" for letter, word in zip(letters, chosen, strict=True))
        self._append(out, self.lines(text), 0, 0)
        for _ in range(pairs):
            place = rng.randrange(len(chosen))
            asked = list(self.encode(f" {chosen[place]}"))
            self._append(out, asked, 0, len(out.ids))
            answer = list(self.encode(letters[place]))
            self._append(out, answer, 0, len(out.ids), loss=1)
        return out

    def look(self, scene: Scene, rng: random.Random) -> Conversation:
        """Cues and answers about one scene: many things to look up for few tokens."""
        out = Conversation(list(scene.pictures))
        start = self._prefix(out, bare=rng.random() < 0.2)
        facts = [q for q in self.asked(scene) if q.skill in CUES]
        for index, question in enumerate(rng.sample(facts, min(FACTS, len(facts))), 1):
            cue = list(self.encode(CUES[question.skill].format(**question.slots)))
            self._append(out, cue, index, start)
            kind = 2 if question.skill in READING else 3
            space = "" if kind == 2 or question.answer.isdigit() else " "
            answer = [*self.encode(space + question.answer), *self.encode("<|im_end|>")]
            self._append(out, answer, index, start + len(cue), loss=kind)
        return out

    def _prefix(self, out: Conversation, *, bare: bool) -> int:
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        self._append(out, self.lines(system + ("Question: " if bare else "")), 0, 0)
        start = len(out.ids)
        vision = self.encode("<|vision_start|>"), self.encode("<|vision_end|>")
        for i, picture in enumerate(out.pictures):
            if bare and i:
                self._append(out, list(self.encode(" ")), 0, start)
                start += 1
            self._append(out, list(vision[0]), 0, start)
            rows, columns = (s // (2 * PATCH) for s in (picture.image.height, picture.image.width))
            for row in range(rows):
                for column in range(columns):
                    place = (start + 1, start + 1 + row, start + 1 + column)
                    self._token(out, self.image_pad, 0, place)
            start += 1 + max(rows, columns)
            self._append(out, list(vision[1]), 0, start)
            start += 1
        return start

    def _ask(
        self, out: Conversation, question: Question, rng: random.Random, start: int, index: int,
        *, bare: bool,
    ) -> None:  # fmt: skip
        language = "zh" if rng.random() < 0.12 else "en"
        closed = self.closed * (0.35 if question.skill in READING else 0.65)
        options = rng.choices((4, 3, 5, 2), (0.8, 0.08, 0.06, 0.06))[0]
        if question.skill != "repeat" and rng.random() > closed:
            options = 0
        listed = synthetic.choose_options(question, rng, options) if options else ()
        asked = synthetic.word_question(question, listed, rng, language=language)
        body = asked.body(language=language if rng.random() < 0.3 else "en", bare=bare)
        body = f" {body}" if bare else body
        if not asked.options:
            body += "\n" if bare else ""
            if rng.random() < 0.15:
                body += f"\n{synthetic.SHORT_ANSWER_SUFFIX}"
        right = synthetic.LETTERS.find(asked.answer) if asked.options else -1
        seen = -1
        for line in body.splitlines(keepends=True):
            ids = list(self.encode(line))
            letter = line[:1]
            is_option = bool(asked.options) and line[1:3] == ". " and letter.isupper()
            if is_option:
                seen += 1
            flag_at = len(ids) - 2 if is_option else -1
            first = len(out.ids)
            self._append(out, ids, index, self._next(out, start, index))
            if is_option:
                out.flag[first + flag_at] = int(seen == right)
        turn = "<|im_end|>\n<|im_start|>assistant\n"
        self._append(out, self.lines(turn), index, self._next(out, start, index))
        kind = 1 if asked.options else 2 if question.skill in READING else 3
        answer = [*self.encode(asked.answer), *self.encode("<|im_end|>")]
        self._append(out, answer, index, self._next(out, start, index), loss=kind)

    @staticmethod
    def _next(out: Conversation, start: int, index: int) -> int:
        return out.position[-1][0] + 1 if out.segment[-1] == index else start

    def _append(
        self, out: Conversation, ids: list[int], segment: int, start: int, *, loss: int = 0
    ) -> None:
        for i, token in enumerate(ids):
            self._token(out, token, segment, (start + i,) * 3, loss=loss)

    @staticmethod
    def _token(
        out: Conversation, token: int, segment: int, place: tuple[int, int, int], *, loss: int = 0
    ) -> None:
        if loss:
            out.target[-1], out.kind[-1] = token, loss  # the token before predicts this one
        out.ids.append(token)
        out.target.append(IGNORE)
        out.flag.append(-1)
        out.kind.append(0)
        out.segment.append(segment)
        out.position.append(place)


def _repeat(rng: random.Random) -> Question:
    """A question whose answer stands in it: the drill in the form of the benchmark."""
    pool = rng.choice((INKS, SHAPES, PLACES, DIRECTIONS, tuple("123456789")))
    answer = rng.choice(pool)
    wrong = tuple(w for w in pool if w != answer)
    return Question("repeat", answer, wrong, {"word": translate(answer, "en")})


@dataclass
class PackedBatch:
    """Conversations padded on the right to ``[B, T]``; visual parts are one behind the other."""

    ids: Tensor  # int64 [B, T]
    target: Tensor  # int64 [B, T], IGNORE where nothing is asked
    flag: Tensor  # int64 [B, T]
    kind: Tensor  # int64 [B, T]
    position: Tensor  # int64 [3, B, T]
    segment: Tensor  # int64 [B, T], -1 for padding
    patches: Tensor  # float32 [N, 1176]
    grid: Tensor  # int64 [pictures, 3]
    labels: Tensor  # float32 [N / 4, 4 * LABELS]

    def mask(self) -> Tensor:
        """Who sees whom, bool ``[B, 1, T, T]``: the prefix and the own question, backwards."""
        row, column = self.segment[:, :, None], self.segment[:, None, :]
        order = torch.arange(self.ids.shape[1], device=self.ids.device)
        seen = (column == 0) | (row == column)
        return (seen & (order[:, None] >= order))[:, None]

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on another device."""
        return PackedBatch(**{k: v.to(device) for k, v in vars(self).items()})


def pack(conversations: list[Conversation], *, draw: bool = True) -> PackedBatch:
    """Pad conversations to one length; ``draw`` leaves the patches out when they are not needed."""
    longest = max(len(c.ids) for c in conversations)

    def padded(name: str, fill: int) -> Tensor:
        rows = [getattr(c, name) + [fill] * (longest - len(c.ids)) for c in conversations]
        return torch.tensor(rows)

    position = torch.tensor(
        [c.position + [(0, 0, 0)] * (longest - len(c.ids)) for c in conversations]
    ).permute(2, 0, 1)
    pictures = [p for c in conversations for p in c.pictures]
    cut = [patches(p) for p in pictures] if draw and pictures else [np.zeros((0, 1176), np.float32)]
    labels = [patch_labels(p) for p in pictures] or [np.zeros((0, 4 * LABELS), np.float32)]
    grid = [(1, p.image.height // PATCH, p.image.width // PATCH) for p in pictures]
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
    """Groups of similar length, each of at most ``tokens`` tokens with its padding."""
    groups: list[list[Conversation]] = []
    for one in sorted(conversations, key=lambda c: len(c.ids), reverse=True):
        if groups and len(groups[-1][0].ids) * (len(groups[-1]) + 1) <= tokens:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def pictures(rng: random.Random, count: int) -> list[Picture]:
    """Pictures for the training of the vision tower alone: rich in glyphs."""
    kinds = tuple(SCENE_WEIGHTS)
    out: list[Picture] = []
    while len(out) < count:
        kind = rng.choices(kinds, tuple(SCENE_WEIGHTS.values()))[0]
        out += scenes.SCENES[kind](rng).pictures
    return out[:count]


def batches(
    writer: Writer,
    stage: str,
    seed: int,
    size: int,
    questions: int,
    *,
    drills: float = 0.0,
    looks: float = 0.0,
    only: Sequence[str] = (),
) -> Iterator[PackedBatch]:
    """An endless stream of training batches, the same for the same seed.

    Args:
        writer: Makes the conversations.
        stage: ``vision`` (pictures only), ``drill``, ``look``, ``decoder`` or ``joint``.
        seed: Of the stream.
        size: Conversations a batch, or pictures in the ``vision`` stage.
        questions: Questions a conversation.
        drills: Share of letter drills among the conversations.
        looks: Share of looking drills among the others.
        only: Kinds of scenes; all of them if empty.
    """
    rng = synthetic.generator(synthetic.Stream.TRAINING, seed)
    kinds = tuple(only or SCENE_WEIGHTS)
    weights = [SCENE_WEIGHTS[kind] for kind in kinds]
    while True:
        if stage == "vision":
            yield pack([Conversation(pictures(rng, size), ids=[0], target=[IGNORE], flag=[-1],
                                     segment=[0], position=[(0, 0, 0)], kind=[0])])  # fmt: skip
            continue
        conversations = []
        for _ in range(size * POOL):
            if stage == "drill" or rng.random() < drills:
                conversations.append(writer.drill(rng, 8))
                continue
            scene = scenes.SCENES[rng.choices(kinds, weights)[0]](rng)
            looking = stage == "look" or rng.random() < looks
            conversations.append(
                writer.look(scene, rng) if looking else writer.conversation(scene, rng, questions)
            )
        groups = by_length(conversations, size * TOKENS)
        rng.shuffle(groups)
        for group in groups:
            yield pack(group, draw=stage == "joint")
