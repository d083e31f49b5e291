"""The built-in source of calibration samples: drawn images and questions about them."""

from __future__ import annotations

from ...synthetic.scenes import SCENES, Stream, stream_random
from ...synthetic.wording import choose_options, user_turn, word_question
from .sample import Sample


def calibration_samples(n: int, seed: int) -> list[Sample]:
    """Draw `n` samples with answers, half of them multiple choice, one in eight in Chinese.

    Kinds of scenes alternate, so that a small set covers all of them.
    """
    rng = stream_random(Stream.CALIBRATION, seed)
    kinds = tuple(SCENES)
    samples = []
    for i in range(n):
        scene = SCENES[kinds[i % len(kinds)]](rng)
        language = "zh" if rng.random() < 0.125 else "en"
        question = rng.choice(scene.questions)
        options = choose_options(question, rng, 4) if rng.random() < 0.5 else ()
        worded = word_question(question, options, rng, language=language)
        images = [drawn.image for drawn in scene.images]
        messages = user_turn(images, worded.body(language=language))
        samples.append(Sample(messages=messages, answer=worded.answer, id=f"synthetic-{seed}-{i}"))
    return samples
