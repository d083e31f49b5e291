"""Write the built-in benchmark files, in the exact formats of the published ones.

MMBench (with circular rows and a Chinese twin), OCRBench and MMMU_DEV_VAL as VLMEvalKit reads them:
UTF-8 TSV, base64 images. The images come from a stream of seeds that neither training nor
calibration uses.

    python tools/make_benchmarks.py eval/data
"""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from vlpress.synthetic import scenes, text_scenes, wording
from vlpress.synthetic.scene import Question, Scene

QUESTIONS_PER_CATEGORY = 33
ROLL = 1_000_000  # index distance between the rolled rows of one question

# category: (l2-category, skills, scenes with such questions)
MMBENCH: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "image_scene": ("coarse_perception", ("kind",), ("text", "shapes", "chart", "form", "formula")),
    "image_style": ("coarse_perception", ("background",), ("shapes", "lines", "chart", "odd")),
    "image_quality": ("coarse_perception", ("quality",), ("shapes",)),
    "object_localization": (
        "finegrained_perception (instance-level)",
        ("where", "count", "count_shape", "count_colour"), ("shapes", "odd"),
    ),
    "attribute_recognition": (
        "finegrained_perception (instance-level)", ("colour_of", "shape_of"), ("shapes", "frame"),
    ),
    "ocr": (
        "finegrained_perception (instance-level)", ("read", "number", "ink", "sign"),
        ("text", "signs"),
    ),
    "spatial_relationship": (
        "finegrained_perception (cross-instance)", ("direction", "beside"), ("pair", "shapes"),
    ),
    "attribute_comparison": (
        "finegrained_perception (cross-instance)", ("same_colour", "largest", "smallest"),
        ("pair", "shapes"),
    ),
    "physical_relation": ("relation_reasoning", ("inside",), ("frame",)),
    "identity_reasoning": ("attribute_reasoning", ("odd_shape", "odd_colour"), ("odd",)),
    "physical_property_reasoning": ("attribute_reasoning", ("most_colour",), ("odd",)),
    "structuralized_imagetext_understanding": (
        "logic_reasoning", ("value", "tallest", "shortest", "bar_value"), ("form", "chart"),
    ),
    "future_prediction": ("logic_reasoning", ("next_colour",), ("row",)),
}  # fmt: skip

# category: (number of items, scene, kind of text)
OCRBENCH: dict[str, tuple[int, str, str]] = {
    "Regular Text Recognition": (26, "text", "regular"),
    "Irregular Text Recognition": (26, "text", "irregular"),
    "Artistic Text Recognition": (26, "text", "artistic"),
    "Handwriting Recognition": (26, "text", "handwriting"),
    "Digit String Recognition": (26, "text", "digits"),
    "Non-Semantic Text Recognition": (26, "text", "non_semantic"),
    "Scene Text-centric VQA": (100, "signs", ""),
    "Doc-oriented VQA": (100, "lines", ""),
    "Key Information Extraction": (100, "form", ""),
    "Handwritten Mathematical Expression Recognition": (52, "formula", ""),
}

# discipline: (subjects, scenes)
MMMU: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Art & Design": (("Art", "Art_Theory", "Design", "Music"), ("shapes", "odd", "frame", "row")),
    "Business": (
        ("Accounting", "Economics", "Finance", "Manage", "Marketing"), ("chart", "form", "album"),
    ),
    "Science": (
        ("Biology", "Chemistry", "Geography", "Math", "Physics"),
        ("formula", "shapes", "row", "chart", "album"),
    ),
    "Health & Medicine": (
        ("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine",
         "Pharmacy", "Public_Health"),
        ("form", "chart", "album", "odd"),
    ),
    "Humanities & Social Science": (
        ("History", "Literature", "Sociology", "Psychology"), ("text", "lines", "signs", "album"),
    ),
    "Tech & Engineering": (
        ("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics",
         "Energy_and_Power", "Materials", "Mechanical_Engineering"),
        ("pair", "frame", "shapes", "chart", "album"),
    ),
}  # fmt: skip
MMMU_ROWS_PER_SUBJECT = 7
EASY = ("kind", "background", "quality", "list")  # only for categories about them
COUNTING = ("count", "count_shape", "count_colour", "bar_count")


def encode(image: Image.Image) -> str:
    """An image as base64 of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


class Picker:
    """Generates scenes until one has the required question, with balanced answers.

    Without the balance a model could score without the image: most counts are 1, for instance.
    """

    def __init__(self, seed: int) -> None:
        self.rng = scenes.stream_random(scenes.Stream.BENCHMARK, seed)
        self._turn: dict[str, int] = {}

    def pick(self, skill: str, kinds: Sequence[str]) -> tuple[Scene, Question]:
        """A scene of one of `kinds` with its question of `skill`; possible answers alternate."""
        answer = self._next_answer(skill)
        for _ in range(10_000):
            scene = scenes.draw_scene(self.rng, kinds)
            fitting = [q for q in scene.questions if q.skill == skill]
            if answer is not None:
                fitting = [q for q in fitting if q.answer == answer]
            if fitting:
                return scene, self.rng.choice(fitting)
        raise ValueError(f"no scene of {list(kinds)} asks {skill!r} with the answer {answer!r}")

    def _next_answer(self, skill: str) -> str | None:
        answers = {
            "same_colour": ("yes", "no"), "background": ("light", "dark"),
            "quality": ("sharp", "blurred"), "count": ("3", "4", "5", "6"),
            "count_shape": ("1", "2", "3"), "count_colour": ("1", "2", "3"),
            "bar_count": ("2", "3", "4"),
        }.get(skill)  # fmt: skip
        if answers is None:
            return None
        turn = self._turn[skill] = self._turn.get(skill, -1) + 1
        return answers[turn % len(answers)]


def mmbench() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of the English file and of its Chinese twin."""
    picker = Picker(1)
    english: list[dict[str, str]] = []
    chinese: list[dict[str, str]] = []
    index = 0
    for number in range(QUESTIONS_PER_CATEGORY):
        for category, (group, skills, kinds) in MMBENCH.items():
            scene, question = picker.pick(skills[number % len(skills)], kinds)
            options = wording.choose_options(question, picker.rng, 4)
            image = encode(scene.images[0].image)
            for rows, language in ((english, "en"), (chinese, "zh")):
                worded = wording.word_question(question, options, picker.rng, language=language)
                rows += _rolled(index, worded, image, category, group)
            index += 1
    return english, chinese


def _rolled(
    index: int, worded: wording.WordedQuestion, image: str, category: str, group: str
) -> Iterable[dict[str, str]]:
    """The base row, and one row for each other rotation of the options."""
    count = len(worded.options)
    right = wording.LETTERS.index(worded.answer)
    for roll in range(count):
        shifted = worded.options[roll:] + worded.options[:roll]
        yield {
            "index": str(index + roll * ROLL),
            "question": worded.question,
            "hint": "",
            **{
                letter: shifted[i] if i < count else ""
                for i, letter in enumerate("ABCD")
            },
            "answer": wording.LETTERS[(right - roll) % count],
            "category": category,
            "image": str(index) if roll else image,
            "l2-category": group,
            "split": "dev",
        }  # fmt: skip


def ocrbench() -> list[dict[str, str]]:
    """Rows of the OCRBench file; recognition questions have the original wording."""
    rng = scenes.stream_random(scenes.Stream.BENCHMARK, 2)
    rows: list[dict[str, str]] = []
    for category, (count, kind, manner) in OCRBENCH.items():
        for _ in range(count):
            scene = text_scenes.text(rng, manner) if manner else scenes.SCENES[kind](rng)
            question = rng.choice([q for q in scene.questions if q.skill not in EASY])
            worded = wording.word_question(question, (), rng)
            fixed = {
                "read": "what is written in the image?",
                "number": "what is the number in the image?",
                "formula": (
                    "Please write out the expression of the formula in the image "
                    "using LaTeX format."
                ),
            }
            rows.append(
                {
                    "index": str(len(rows)),
                    "image": encode(scene.images[0].image),
                    "question": fixed.get(question.skill, worded.question),
                    "answer": repr([worded.answer]),
                    "category": category,
                }
            )
    return rows


def mmmu() -> list[dict[str, str]]:
    """Rows of the MMMU_DEV_VAL file: one dev row and six validation rows per subject."""
    picker = Picker(3)
    rng = picker.rng
    rows: list[dict[str, str]] = []
    for discipline, (subjects, kinds) in MMMU.items():
        for subject in subjects:
            for number in range(MMMU_ROWS_PER_SUBJECT):
                split = "dev" if number == 0 else "validation"
                name = f"{split}_{subject}_{number or 1}"
                kind = kinds[(number + len(rows)) % len(kinds)]
                scene = scenes.SCENES[kind](rng)
                suitable = [q for q in scene.questions if q.skill not in (*EASY, *COUNTING)]
                skill = rng.choice(suitable or [q for q in scene.questions]).skill
                scene, question = picker.pick(skill, (kind,))
                is_open = number == 3 and len(rows) % 2 == 0
                rows.append(_mmmu_row(len(rows), name, scene, question, rng, is_open=is_open))
                rows[-1] |= {"category": subject, "l2-category": discipline, "split": split}
    return rows


def _mmmu_row(
    index: int, name: str, scene: Scene, question: Question, rng: random.Random, *, is_open: bool
) -> dict[str, str]:
    options = () if is_open else wording.choose_options(question, rng, 5 if index % 5 == 0 else 4)
    worded = wording.word_question(question, options, rng)
    images = [encode(p.image) for p in scene.images]
    paths = [f"{name}_{i + 1}.png" for i in range(len(images))]
    tokens = " ".join(f"<image {i + 1}>" for i in range(len(images)))
    return {
        "index": str(index),
        "id": name,
        "question": f"{tokens} {worded.question}",
        "image": images[0] if len(images) == 1 else repr(images),
        "image_path": repr(paths),
        **{
            letter: worded.options[i] if i < len(worded.options) else ""
            for i, letter in enumerate(wording.LETTERS)
        },
        "answer": worded.answer,
    }


def tsv(rows: Sequence[dict[str, str]]) -> bytes:
    """The rows as a tab-separated file with a header."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def main(folder: Path) -> None:
    """Write the compressed files and `md5s.json` (of the uncompressed content)."""
    folder.mkdir(parents=True, exist_ok=True)
    english, chinese = mmbench()
    files = {
        "builtin_mmbench.tsv": tsv(english),
        "builtin_mmbench_cn.tsv": tsv(chinese),
        "builtin_ocrbench.tsv": tsv(ocrbench()),
        "builtin_mmmu.tsv": tsv(mmmu()),
    }
    for name, content in files.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, 9, mtime=0))
    md5s = {f"{name}.gz": hashlib.md5(content).hexdigest() for name, content in files.items()}
    (folder / "md5s.json").write_text(json.dumps(md5s, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
