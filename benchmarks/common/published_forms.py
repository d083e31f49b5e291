"""The built-in benchmark files under the names and in the columns of the published ones.

They serve to try a script that needs the published files; their scores say nothing about a model.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlpress.eval.tasks.files.answer_cells import accepted_answers
from vlpress.eval.tasks.files.tsv import large_cells
from vlpress.eval.tasks.registry import BUILTIN, DATA

FORMS = {
    "MMBench_DEV_EN": "builtin-mmbench",
    "OCRBench": "builtin-ocrbench",
    "MMMU_DEV_VAL": "builtin-mmmu",
}
"""Published name -> built-in file with the same columns."""
DOCVQA, CHARTQA, TEXTVQA = "DocVQA_VAL", "ChartQA_TEST", "TextVQA_VAL"
MMMU_PRO, MMMU_PRO_VISION = "MMMU_Pro_10c", "MMMU_Pro_V"
DOCVQA_SOURCE, MMMU_SOURCE = "builtin-ocrbench", "builtin-mmmu"
DOCVQA_COLUMNS = ("index", "image", "question", "answer")
PEOPLE = 10  # answers to a question of TextVQA


def write_published_forms(folder: Path) -> None:
    """Write one TSV for each of the four benchmarks.

    DocVQA_VAL is made of the rows of OCRBench, which have the same columns and a category more.

    Args:
        folder: created if it does not exist; files in it are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, builtin in FORMS.items():
        (folder / f"{name}.tsv").write_bytes(_unpack(builtin))
    _write(folder / f"{DOCVQA}.tsv", _read(DOCVQA_SOURCE), DOCVQA_COLUMNS)


def write_further_forms(folder: Path) -> None:
    """Write the files of ChartQA and TextVQA, made of OCRBench, and of MMMU-Pro, made of MMMU.

    Args:
        folder: folder of `write_published_forms`.
    """
    rows = _read(DOCVQA_SOURCE)
    for number, row in enumerate(rows):
        row["split"] = "test_augmented" if number % 2 else "test_human"
    _write(folder / f"{CHARTQA}.tsv", rows, (*DOCVQA_COLUMNS, "split"))
    for number, row in enumerate(rows):
        given = 1 + number % PEOPLE
        others = [f"not {row['answer']}"] * (PEOPLE - given)
        row["answer"] = repr([accepted_answers(row["answer"])[0]] * given + others)
    _write(folder / f"{TEXTVQA}.tsv", rows, DOCVQA_COLUMNS)
    closed = [row for row in _read(MMMU_SOURCE) if row["A"]]
    columns = tuple(column for column in closed[0] if column != "split")
    _write(folder / f"{MMMU_PRO}.tsv", closed, columns)
    single = [row for row in closed if not row["image"].startswith("[")]
    _write(folder / f"{MMMU_PRO_VISION}.tsv", single, columns)


def _read(builtin: str) -> list[dict[str, str]]:
    with large_cells():
        lines = _unpack(builtin).decode("utf-8").splitlines(keepends=True)
        return list(csv.DictReader(lines, delimiter="\t"))


def _write(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _unpack(builtin: str) -> bytes:
    return gzip.decompress((DATA / BUILTIN[builtin][1]).read_bytes())
