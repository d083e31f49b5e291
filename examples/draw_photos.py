"""Draw images with questions about them, in place of a user's own photos.

    python examples/draw_photos.py FOLDER NUMBER [--first N]

writes FOLDER/photos/*.png and FOLDER/photos.csv with the columns image, question, options, answer
and category. A further call with --first adds images and rows to FOLDER/more.csv.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

from vlpress.synthetic.scenes import SCENES
from vlpress.synthetic.wording import choose_options, word_question

SINGLE = [kind for kind in SCENES if kind != "album"]  # kinds of one image


def draw(folder: Path, number: int) -> dict[str, str]:
    """Write image `number` and return its row of the table."""
    rng = random.Random(f"photo {number}")
    scene = SCENES[SINGLE[number % len(SINGLE)]](rng)
    question = rng.choice(scene.questions)
    is_choice = question.wrong and rng.random() < 0.5
    options = choose_options(question, rng, 4) if is_choice else ()
    worded = word_question(question, options, rng)
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    name = f"photos/{number:04}.png"
    scene.images[0].image.save(folder / name)
    return {
        "image": name,
        "question": worded.question,
        "options": " | ".join(worded.options),
        "answer": worded.answer,
        "category": scene.kind,
    }


def main() -> None:
    """Draw the images of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("number", type=int)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    rows = [draw(arguments.folder, arguments.first + n) for n in range(arguments.number)]
    name = "more.csv" if arguments.first else "photos.csv"
    with (arguments.folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
