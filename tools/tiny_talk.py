"""Text about a scene: conversations of several questions, looking drills, letter drills.

A conversation is a prefix (system turn and images) followed by several questions. Each question
attends to the prefix and itself only, and its positions continue those of the prefix: it equals a
single-turn prompt, but the prefix is computed once for all questions.

With a tokenizer that has the tags of a reasoning, most answers follow one, and the others an empty
one, as in prompts with a given answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from tiny_reasoning import STRINGS, derivation
from tiny_truth import PATCH
from tokenizers import Tokenizer

from vlpress.model.processing.reasoning_tags import BEGIN, END
from vlpress.synthetic import wording, words
from vlpress.synthetic.canvas import INKS, SHAPES, AnnotatedImage
from vlpress.synthetic.phrases import translate
from vlpress.synthetic.scene import DIRECTIONS, PLACES, Question, Scene

IGNORE = -100
# A short cue for every skill: a drill has the image, the cue, then the answer.
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
    "same_colour": " same {a} {b}", "beside": " {b} {direction}", "quality": " sharp",
}  # fmt: skip
FACTS = 10  # questions about an image in a drill, at most
# Most questions about one scene, by scene: asking for a string twice teaches little.
SCENE_QUESTIONS = {"text": 2, "formula": 2, "signs": 4, "lines": 5, "form": 5, "album": 6}
DULL = {
    "kind": 0.15,
    "background": 0.15,
    "quality": 0.5,
    "list": 1.5,
}  # learned quickly, so rarer
STRING_DRILLS = 0.7  # share of drills by first glyph, of a model that reasons
EMPTY_REASONING = 0.15  # share of answers after an empty reasoning


@dataclass
class Conversation:
    """Token lists of one packed conversation.

    `flag` is 1 / 0 at the end of correct / wrong options and -1 elsewhere, `segment` is 0 for the
    prefix.
    """

    images: list[AnnotatedImage]
    ids: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    flag: list[int] = field(default_factory=list)
    segment: list[int] = field(default_factory=list)
    position: list[tuple[int, int, int]] = field(default_factory=list)
    kind: list[int] = field(
        default_factory=list
    )  # 1: letter answer, 2: read string, 3: other, 4: reasoning


class Writer:
    """Turns scenes into conversations with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, closed: float = 1.0) -> None:
        self.closed = closed  # factor on the share of multiple choice
        self.tokenizer = tokenizer
        self.thinks = tokenizer.token_to_id(BEGIN) is not None
        self.image_pad: int = tokenizer.encode("<|image_pad|>").ids[0]
        self.encode = lru_cache(maxsize=200_000)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text).ids)

    def lines(self, text: str) -> list[int]:
        """Token ids; lines are encoded separately, because a newline is always one token."""
        out: list[int] = []
        for line in text.splitlines(keepends=True):
            out += self.encode(line)
        return out

    def conversation(
        self, scene: Scene, rng: random.Random, questions: int, skills: Sequence[str] = ()
    ) -> Conversation:
        """A scene with at most `questions` questions, those of the given skills first."""
        out = Conversation(list(scene.images))
        bare = rng.random() < 0.2  # the layout with the question before the image
        start = self._prefix(out, bare=bare)
        candidates = scene.questions
        weights = [DULL.get(q.skill, 3.0 if q.skill in STRINGS else 1.0) for q in candidates]
        count = min(questions, SCENE_QUESTIONS.get(scene.kind, questions))
        comm = [rng.random() ** (1 / w) for w in weights]  # weighted, without repetition
        comm = [r + (q.skill in skills) for r, q in zip(comm, candidates, strict=True)]
        order = sorted(range(len(comm)), key=comm.__getitem__, reverse=True)
        chosen = [candidates[i] for i in order[:count]]
        chosen += [_repeat(rng) for _ in range(count) if rng.random() < 0.12]
        for index, question in enumerate(chosen, 1):
            self._ask(out, scene, question, rng, start, index, bare=bare)
        return out

    def drill(self, rng: random.Random, pairs: int) -> Conversation:
        """Letters and words, then every word followed by its letter; no image.

        A model that reasons looks for most words by their first glyph, see `derivation`.
        """
        out = Conversation([])
        pool = rng.choice((INKS, SHAPES, tuple("123456789"), PLACES, INKS + SHAPES))
        chosen = rng.sample(pool, min(4, len(pool)))
        by_glyph = self.thinks and rng.random() < STRING_DRILLS
        if by_glyph:
            chosen = _strings(rng, 4)
        letters = wording.LETTERS[: len(chosen)]
        text = "".join(f"{letter}. {word}\n" for letter, word in zip(letters, chosen, strict=True))
        self._append(out, self.lines(text), 0, 0)
        for _ in range(pairs):
            index = rng.randrange(len(chosen))
            sought = f"first {chosen[index][0]}\n{END}\n\n" if by_glyph else chosen[index]
            question = self.lines(f" {sought}")
            self._append(out, question, 0, len(out.ids))
            answer = list(self.encode(letters[index]))
            self._append(out, answer, 0, len(out.ids), loss=1)
        return out

    def look(self, scene: Scene, rng: random.Random, skills: Sequence[str] = ()) -> Conversation:
        """Cues and answers about one scene: many lookups for few tokens."""
        out = Conversation(list(scene.images))
        start = self._prefix(out, bare=rng.random() < 0.2)
        facts = [q for q in scene.questions if q.skill in CUES]
        rng.shuffle(facts)
        facts.sort(key=lambda q: q.skill not in skills)  # the given skills first
        for index, question in enumerate(facts[:FACTS], 1):
            cue = list(self.encode(CUES[question.skill].format(**question.slots)))
            self._append(out, cue, index, start)
            kind = 2 if question.skill in STRINGS else 3
            space = "" if kind == 2 or question.answer.isdigit() else " "
            answer = [*self.encode(space + question.answer), *self.encode("<|im_end|>")]
            self._append(out, answer, index, start + len(cue), loss=kind)
        return out

    def _prefix(self, out: Conversation, *, bare: bool) -> int:
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        self._append(out, self.lines(system + ("Question: " if bare else "")), 0, 0)
        start = len(out.ids)
        vision = self.encode("<|vision_start|>"), self.encode("<|vision_end|>")
        for i, annotated in enumerate(out.images):
            if bare and i:
                self._append(out, list(self.encode(" ")), 0, start)
                start += 1
            self._append(out, list(vision[0]), 0, start)
            rows, columns = (
                s // (2 * PATCH) for s in (annotated.image.height, annotated.image.width)
            )
            for row in range(rows):
                for column in range(columns):
                    position = (start + 1, start + 1 + row, start + 1 + column)
                    self._token(out, self.image_pad, 0, position)
            start += 1 + max(rows, columns)
            self._append(out, list(vision[1]), 0, start)
            start += 1
        return start

    def _ask(
        self, out: Conversation, scene: Scene, question: Question, rng: random.Random, start: int,
        index: int, *, bare: bool,
    ) -> None:  # fmt: skip
        language = "zh" if rng.random() < 0.12 else "en"
        closed = self.closed * (0.35 if question.skill in STRINGS else 0.75)
        options = rng.choices((4, 3, 5, 2), (0.8, 0.08, 0.06, 0.06))[0]
        if question.skill != "repeat" and rng.random() > closed:
            options = 0
        listed = wording.choose_options(question, rng, options) if options else ()
        worded = wording.word_question(question, listed, rng, language=language)
        body = worded.body(language=language if rng.random() < 0.3 else "en", bare=bare)
        body = f" {body}" if bare else body
        if not worded.options:
            body += "\n" if bare else ""
            if rng.random() < 0.15:
                body += f"\n{wording.SHORT_ANSWER_SUFFIX}"
        right = wording.LETTERS.find(worded.answer) if worded.options else -1
        seen = -1
        for line in body.splitlines(keepends=True):
            ids = list(self.encode(line))
            letter = line[:1]
            is_option = bool(worded.options) and line[1:3] == ". " and letter.isupper()
            if is_option:
                seen += 1
            flag_at = len(ids) - 2 if is_option else -1
            first = len(out.ids)
            self._append(out, ids, index, self._next(out, start, index))
            if is_option:
                out.flag[first + flag_at] = int(seen == right)
        turn = "<|im_end|>\n<|im_start|>assistant\n"
        self._append(out, self.lines(turn), index, self._next(out, start, index))
        if self.thinks:
            is_listed = bool(worded.options)
            text = derivation(scene, question, among_options=is_listed)
            self._think(out, "" if rng.random() < EMPTY_REASONING else text)
        kind = 1 if worded.options else 2 if question.skill in STRINGS else 3
        answer = [*self.encode(worded.answer), *self.encode("<|im_end|>")]
        self._append(out, answer, index, self._next(out, start, index), loss=kind)

    def _think(self, out: Conversation, text: str) -> None:
        index = out.segment[-1]
        self._append(out, self.lines(f"{BEGIN}\n"), index, out.position[-1][0] + 1)
        rest = self.lines(f"{text}\n{END}\n\n")
        self._append(out, rest, index, out.position[-1][0] + 1, loss=4 if text else 0)

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
        out: Conversation,
        token: int,
        segment: int,
        position: tuple[int, int, int],
        *,
        loss: int = 0,
    ) -> None:
        if loss:
            out.target[-1], out.kind[-1] = token, loss  # the token before predicts this one
        out.ids.append(token)
        out.target.append(IGNORE)
        out.flag.append(-1)
        out.kind.append(0)
        out.segment.append(segment)
        out.position.append(position)


def _strings(rng: random.Random, count: int) -> list[str]:
    """Draw words and numbers that begin with different glyphs."""
    out: dict[str, str] = {}
    while len(out) < count:
        string = words.word(rng) if rng.random() < 0.6 else words.number(rng, rng.randint(2, 4))
        out.setdefault(string[0], string)
    return list(out.values())


def _repeat(rng: random.Random) -> Question:
    """A question that contains its answer: the drill in the form of the benchmark."""
    pool = rng.choice((INKS, SHAPES, PLACES, DIRECTIONS, tuple("123456789")))
    answer = rng.choice(pool)
    wrong = tuple(w for w in pool if w != answer)
    return Question("repeat", answer, wrong, {"word": translate(answer, "en")})
