"""The built-in benchmark files under the names and in the columns of the published ones.

They serve to try a script that needs the published files; their scores say nothing about a model.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

from vlpress.eval.tasks.files.tsv import large_cells
from vlpress.eval.tasks.registry import BUILTIN, DATA

FORMS = {
    "MMBench_DEV_EN": "builtin-mmbench",
    "OCRBench": "builtin-ocrbench",
    "MMMU_DEV_VAL": "builtin-mmmu",
}
"""Published name -> built-in file with the same columns."""
DOCVQA, DOCVQA_SOURCE = "DocVQA_VAL", "builtin-ocrbench"
DOCVQA_COLUMNS = ("index", "image", "question", "answer")


def write_published_forms(folder: Path) -> None:
    """Write one TSV for each of the four benchmarks.

    DocVQA_VAL is made of the rows of OCRBench, which have the same columns and a category more.

    Args:
        folder: created if it does not exist; files in it are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, builtin in FORMS.items():
        (folder / f"{name}.tsv").write_bytes(_unpack(builtin))
    lines = _unpack(DOCVQA_SOURCE).decode("utf-8").splitlines(keepends=True)
    rows = csv.DictReader(lines, delimiter="\t")
    with large_cells(), (folder / f"{DOCVQA}.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, DOCVQA_COLUMNS, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _unpack(builtin: str) -> bytes:
    return gzip.decompress((DATA / BUILTIN[builtin][1]).read_bytes())
