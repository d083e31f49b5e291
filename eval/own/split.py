"""Split a file of questions into calibration samples and evaluation questions, by image.

Questions with a common image form a group, and each group is in one of the two files: an image that
the quantization has seen would make the evaluation too favourable. Images are compared by their
decoded pixels, as by the leak check of `run`, so that copies of a file count as one image.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...calib.samples.sample import image_digest
from ...common.atomic import write_text
from ...common.options import verb
from ...common.progress import reporting
from ..config import MARGIN, SplitOptions
from ..planning.checks import check_question_file
from ..tasks.benchmarks import custom
from ..tasks.broken import find_text_faults
from ..tasks.files.jsonl import read_questions
from ..tasks.files.rows import BenchmarkTable, Row, accept_faults, find_image_faults
from ..tasks.matching.choices import fold
from ..tasks.prompts import QWEN2, SELECT, question_block
from ..tasks.task import sample_units
from .advice import advise
from .question_file import QuestionFile

CALIBRATION = "calib.jsonl"


@verb(SplitOptions)
def split(options: SplitOptions) -> dict[str, Any]:
    """Split a file of questions into a calibration file and an evaluation file, by image.

    No image is in both files, and equal images count as one. The draw is spread over the
    categories, or over the answers if there are no categories; the same file, number and seed give
    the same two files. Calibration samples have the text that the evaluation would ask.

    Returns:
        `calib` and `eval`: the two paths; `images` and `questions`: their numbers in each;
        `spread`: "category" or "answer"; `broken`: notes on rows that cannot be used, which are in
        the evaluation file; `advice`: what the remaining questions can decide; `bench`: a name for
        them.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not one of questions, has too few images, or the folder holds other
            files of these names.
    """
    file = Path(options.file)
    check_question_file(file)
    with reporting(options.progress) as reporter, reporter.step(f"reading {file} and its images"):
        table = read_questions(file)
        notes = _check(table)
        groups = _group_rows(table)
    chosen = _choose(file, groups, options.calib, options.seed)
    out = Path(options.out) if options.out is not None else file.parent / f"{file.stem}-split"
    paths = {"calib": out / CALIBRATION, "eval": out / f"eval{file.suffix.lower()}"}
    if paths["eval"].resolve() == file.resolve():
        raise ValueError(f"the evaluation file would replace {file}; give another folder with -o")
    rows = {row for group in chosen for row in group.rows}
    others = [number for number in range(len(table.rows)) if number not in rows]
    source = QuestionFile(file)
    contents = {
        "calib": _samples(table, source, sorted(rows), out),
        "eval": source.subset(others, out),
    }
    _write(paths, contents, overwrite=options.overwrite)
    images = len({digest for group in groups for digest in group.images})
    in_calib = sum(len(group.images) for group in chosen)
    return {
        **{name: str(path) for name, path in paths.items()},
        "images": {"calib": in_calib, "eval": images - in_calib},
        "questions": {"calib": len(rows), "eval": len(others)},
        "spread": _spread(table),
        "seed": options.seed,
        "broken": notes,
        "advice": advise(len(others), MARGIN),
        "bench": re.sub(r"[^\w.-]+", "-", file.stem).lstrip("-.") or "own",
    }


@dataclass(frozen=True)
class _Group:
    """Questions that share images."""

    rows: tuple[int, ...]  # positions in the table
    images: frozenset[str]  # digests of pixels
    stratum: str


def _check(table: BenchmarkTable) -> list[str]:
    """Return notes on broken rows.

    Raises:
        ValueError: too many rows are broken, see `accept_faults`.
    """
    faults = {**custom.check(table, published=False).faults, **table.faults}
    sound = [row for row in table.rows if row.index not in faults]
    faults |= find_text_faults(sound, custom.content, QWEN2)
    faults |= find_image_faults(sound)
    return accept_faults(
        table.path.name, {str(index): fault for index, fault in faults.items()}, len(table.rows)
    )


def _group_rows(table: BenchmarkTable) -> list[_Group]:
    """Group rows that are connected by common images, in the order of their first row."""
    strata = _strata(table)
    digests: dict[str, str] = {}  # of encoded bytes -> of pixels
    images = [frozenset(_pixels(row, digests)) for row in table.rows]
    parent = list(range(len(table.rows)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[str, int] = {}
    for number, of_row in enumerate(images):
        for digest in of_row:
            a, b = root(first.setdefault(digest, number)), root(number)
            parent[max(a, b)] = min(a, b)
    members: dict[int, list[int]] = defaultdict(list)
    for number in range(len(images)):
        members[root(number)].append(number)
    return [
        _Group(tuple(rows), frozenset().union(*(images[row] for row in rows)), strata[head])
        for head, rows in members.items()
    ]


def _pixels(row: Row, known: dict[str, str]) -> set[str]:
    """Return the digests of a row's images; none for those that do not decode."""
    digests = set()
    for image in row.images:
        if image.digest not in known:
            try:
                known[image.digest] = image_digest(image.open())
            except ValueError:  # a broken row, which is named
                continue
        digests.add(known[image.digest])
    return digests


def _spread(table: BenchmarkTable) -> str:
    return "category" if any(row.get("category") for row in table.rows) else "answer"


def _strata(table: BenchmarkTable) -> list[str]:
    """Return what the draw is spread over: the category of each row, or its answer."""
    if _spread(table) == "category":
        return [row.get("category") for row in table.rows]
    return [fold(_answer(row)) for row in table.rows]


def _answer(row: Row) -> str:
    """Return the first accepted answer; of an option its text; empty for a broken row."""
    answers: Sequence[str] = json.loads(row.get("answers", "[]"))
    return row.options.get(answers[0], answers[0]) if answers else ""


def _choose(file: Path, groups: Sequence[_Group], images: int, seed: int) -> list[_Group]:
    """Draw groups with at least this number of images, spread over the strata.

    Raises:
        ValueError: there are not more images than these, or too few groups.
    """
    total = len({digest for group in groups for digest in group.images})
    if total <= images:
        raise ValueError(
            f"{file} has {total} different images; --calib {images} needs at least {images + 1}, "
            "because one has to remain for the evaluation: add images, or give a smaller number"
        )
    with_images = {str(n): group for n, group in enumerate(groups) if group.images}
    strata = {key: group.stratum for key, group in with_images.items()}
    largest = max(len(group.images) for group in with_images.values())
    for count in range(max(1, images // largest), len(with_images)):
        drawn = sample_units(strata, count, seed)
        chosen = [group for key, group in with_images.items() if key in drawn]
        if sum(len(group.images) for group in chosen) >= images:
            return chosen
    raise ValueError(
        f"{file}: its {total} images are in {len(with_images)} groups of questions with common "
        f"images, which cannot be split so that {images} images are for calibration and any remain "
        "for the evaluation; give a smaller --calib"
    )


def _samples(table: BenchmarkTable, source: QuestionFile, rows: Sequence[int], out: Path) -> str:
    """Return calibration samples as JSON lines, with the text that the evaluation would ask."""
    lines = []
    for number in rows:
        row = table.rows[number]
        answers: Sequence[str] = json.loads(row.get("answers", "[]"))
        has_letter = bool(row.options) and row.get("metric") == "choice"
        text = (question_block(row) + SELECT).rstrip() if row.options else row["question"]
        images = source.images(number, out)
        sample: Mapping[str, Any] = {
            "id": f"{table.path.name}:{row.line}",
            **({"image": images[0]} if len(images) == 1 else {"images": images} if images else {}),
            "question": text,
            "answer": answers[0] if has_letter else _answer(row),
        }
        lines.append(json.dumps(sample, ensure_ascii=False) + "\n")
    return "".join(lines)


def _write(paths: Mapping[str, Path], contents: Mapping[str, str], *, overwrite: bool) -> None:
    """Write both files, unless other ones are there.

    Raises:
        ValueError: see above.
    """
    for name, path in paths.items():
        is_other = path.exists() and path.read_bytes() != contents[name].encode()
        if is_other and not overwrite:
            raise ValueError(
                f"{path} exists with other content; give another folder with -o, or --overwrite"
            )
    for name, path in paths.items():
        os.makedirs(path.parent, exist_ok=True)
        write_text(path, contents[name])
