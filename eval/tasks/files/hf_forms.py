"""Layouts of published benchmarks on the Hugging Face hub, renamed to the columns of the TSV form.

| kind | repository | configuration |
|---|---|---|
| mmbench | lmms-lab/MMBench | en, cn |
| ocrbench | echo840/OCRBench | |
| ocrbench_v2 | ling99/OCRBench_v2 | |
| mmmu | lmms-lab/MMMU | |
| mmmu_pro | MMMU/MMMU_Pro | standard (10 options) |
| mmmu_pro_vision | MMMU/MMMU_Pro | vision |
| docvqa | lmms-lab/DocVQA | DocVQA, InfographicVQA |
| chartqa | lmms-lab/ChartQA | |
| textvqa | lmms-lab/textvqa | |
| refcoco | lmms-lab/RefCOCO, lmms-lab/RefCOCOplus, lmms-lab/RefCOCOg | |
"""

from __future__ import annotations

import ast
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .rows import Index

MISSING = "nan"  # empty cell in the MMBench form
_IMAGES = 7  # columns image_1 to image_7 of MMMU
_DISCIPLINES = {
    "Art & Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health & Medicine": "Basic_Medical_Science Clinical_Medicine "
    "Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health",
    "Humanities & Social Science": "History Literature Psychology Sociology",
    "Tech & Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics "
    "Energy_and_Power Materials Mechanical_Engineering",
}
DISCIPLINE_OF = {
    subject: name for name, subjects in _DISCIPLINES.items() for subject in subjects.split()
}

Record = Mapping[str, Any]
Cells = tuple[Index, dict[str, Any], list[Any]]
"""Index, values (None: absent) and image cells of a row."""


@dataclass(frozen=True)
class Form:
    """Layout of a kind of benchmark on the hub."""

    split: str
    columns: tuple[str, ...]  # required
    convert: Callable[[Record, int], Cells]
    expand: Callable[[Record], Sequence[Record]] = lambda record: (record,)
    """Records of the questions of a record."""


def _mmbench(record: Record, number: int) -> Cells:
    cells = {k: v for k, v in record.items() if k not in ("image", "index")}
    values = {k: None if v == MISSING and k != "question" else v for k, v in cells.items()}
    return int(record["index"]), values, [record.get("image")]


def _ocrbench(record: Record, number: int) -> Cells:
    answers = record["answer"]
    values = {
        "question": record["question"],
        "answer": repr(list(answers)) if isinstance(answers, list | tuple) else answers,
        "category": record["question_type"],
    }
    return number, values, [record.get("image")]


def _ocrbench_v2(record: Record, number: int) -> Cells:
    answers = record["answers"]
    values = {
        "question": record["question"],
        "answer": repr(list(answers)) if isinstance(answers, list | tuple) else answers,
        "category": record["type"],
        **{
            column: repr(value) if isinstance(value, list) else value
            for column in ("eval", "bbox", "content")
            if (value := record.get(column)) is not None
        },
    }
    return str(record.get("id", number)), values, [record.get("image")]


def _mmmu(record: Record, number: int) -> Cells:
    name = str(record["id"])
    split, _, rest = name.partition("_")
    subject = rest.rpartition("_")[0]
    values = {
        "question": record["question"],
        "answer": record["answer"],
        "category": subject,
        "l2-category": DISCIPLINE_OF.get(subject),
        "split": split,
    }
    if record.get("question_type") != "open":
        values |= _letter_options(record["options"])
    images = [record.get(f"image_{number}") for number in range(1, _IMAGES + 1)]
    return name, values, [cell for cell in images if cell is not None]


def _mmmu_pro(record: Record, number: int) -> Cells:
    name, subject = str(record["id"]), record["subject"]
    values = {
        "question": record.get("question"),
        "answer": record["answer"],
        "category": subject,
        "l2-category": DISCIPLINE_OF.get(subject),
        **_letter_options(record["options"]),
    }
    images = [record.get("image"), *(record.get(f"image_{n}") for n in range(1, _IMAGES + 1))]
    return name, values, [cell for cell in images if cell is not None]


def _letter_options(options: str | list[str]) -> dict[str, str]:
    """Return letter -> text of options, a list or the literal of one."""
    texts = ast.literal_eval(options) if isinstance(options, str) else options
    if len(texts) > len(string.ascii_uppercase):
        raise ValueError(f"{len(texts)} options; at most {len(string.ascii_uppercase)}")
    return dict(zip(string.ascii_uppercase, texts, strict=False))


def _docvqa(record: Record, number: int) -> Cells:
    values = {
        "question": record["question"],
        "answer": repr(list(record["answers"])),
        "category": ", ".join(record.get("question_types") or ()),
    }
    return str(record["questionId"]), values, [record.get("image")]


def _chartqa(record: Record, number: int) -> Cells:
    answer = record["answer"]
    values = {
        "question": record["question"],
        "answer": repr(answer) if isinstance(answer, list) else answer,
        "type": record["type"],
    }
    return number, values, [record.get("image")]


def _textvqa(record: Record, number: int) -> Cells:
    values = {"question": record["question"], "answer": repr(list(record["answers"]))}
    return str(record["question_id"]), values, [record.get("image")]


def _refcoco_questions(record: Record) -> list[Record]:
    """Return a record for each of the expressions for an object."""
    return [
        {**record, "answer": expression, "question_id": f"{record['question_id']}_{number}"}
        for number, expression in enumerate(record["answer"])
    ]


def _refcoco(record: Record, number: int) -> Cells:
    left, top, width, height = record["bbox"]
    values = {
        "question": record["answer"],
        "split": "val",
        "bbox_x1": left,
        "bbox_y1": top,
        "bbox_x2": left + width,
        "bbox_y2": top + height,
    }
    return record["question_id"], values, [record.get("image")]


FORMS: Mapping[str, Form] = {
    "mmbench": Form("dev", ("index", "question", "answer", "image"), _mmbench),
    "ocrbench": Form("test", ("question", "question_type", "answer", "image"), _ocrbench),
    "ocrbench_v2": Form("test", ("question", "type", "answers", "image"), _ocrbench_v2),
    "docvqa": Form("validation", ("questionId", "question", "answers", "image"), _docvqa),
    "chartqa": Form("test", ("type", "question", "answer", "image"), _chartqa),
    "textvqa": Form("validation", ("question_id", "question", "answers", "image"), _textvqa),
    "mmmu_pro": Form("test", ("id", "question", "options", "answer", "subject"), _mmmu_pro),
    "mmmu_pro_vision": Form("test", ("id", "image", "options", "answer", "subject"), _mmmu_pro),
    "refcoco": Form(
        "val", ("question_id", "answer", "bbox", "image"), _refcoco, _refcoco_questions
    ),
    "mmmu": Form("validation", ("id", "question", "options", "answer", "image_1"), _mmmu),
}
