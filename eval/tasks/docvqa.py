"""DocVQA: questions about scanned documents, scored by the similarity of the answer (ANLS).

Biten et al., "Scene Text Visual Question Answering", ICCV 2019, section 5, with the threshold 0.5;
Mathew et al., "DocVQA: A Dataset for VQA on Document Images", WACV 2021. The details are those of
the challenge's evaluation script and of VLMEvalKit: case and repeated blanks are ignored, the
distance is divided by the length of the longer text before that, and a similarity of exactly 0.5
counts, which is 0 in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .files.answer_cells import accepted_answers
from .files.rows import BenchmarkTable, Findings, Row
from .prompts import QWEN2, SHORT_WORDS, SINGLE_WORD, Content, images_first
from .task import Fields, TaskScore, is_broken, percent, row_answer, row_unit, tabulate_units

METRIC = "ANLS"
REQUIRED = ("question", "answer")
THRESHOLD = 0.5  # smallest similarity that counts


def content(row: Row, style: str) -> Content:
    """Build the user turn: the image, then the question with a request for brevity."""
    return images_first(row, row["question"] + (SHORT_WORDS if style == QWEN2 else SINGLE_WORD))


def fields(row: Row) -> Fields:
    """Return the values of a row that scoring and reports need."""
    return {
        "id": str(row.index),
        "unit": str(row.index),
        "question": row.get("question"),
        "answers": accepted_answers(row.get("answer")),
        "category": row.get("category", "none"),
        "group": row.l2_category or "none",
        "split": row.get("split"),
    }


def check(table: BenchmarkTable, *, published: bool) -> Findings:
    """Check that every row has a question and an answer.

    Args:
        table: the file.
        published: not used; see `mmbench.check`.
    """
    findings = Findings()
    for row in table.rows:
        for column in REQUIRED:
            if column not in row.values:
                findings.faults[row.index] = f"it has no {column}"
    return findings


def anls(answers: Sequence[str], prediction: str) -> float:
    """Similarity of a prediction to the closest accepted answer (ANLS of one question).

    Args:
        answers: accepted answers, at least one.
        prediction: the model's answer.

    Returns:
        0, or a value in [`THRESHOLD`, 1].

    Example:
        >>> anls(["hello world"], "Hello  word"), anls(["1998"], "2007")
        (0.9090909090909091, 0.0)
    """
    similarity = 1 - min(_distance_share(answer, prediction) for answer in answers)
    return similarity if similarity >= THRESHOLD else 0.0


def _distance_share(answer: str, prediction: str) -> float:
    """Levenshtein distance of the normalized texts, over the length of the longer original."""
    length = max(len(answer.upper()), len(prediction.upper()))
    return levenshtein(_normalize(answer), _normalize(prediction)) / length if length else 0.0


def _normalize(text: str) -> str:
    return " ".join(text.lower().split())


def levenshtein(first: str, second: str) -> int:
    """Smallest number of insertions, deletions and replacements that turn one text into another.

    Wagner and Fischer, "The String-to-String Correction Problem", Journal of the ACM 21, 1974.
    """
    row = list(range(len(second) + 1))  # distances of a prefix of `first` to all of `second`
    for count, character in enumerate(first, 1):
        diagonal, row[0] = row[0], count
        for column, other in enumerate(second, 1):
            replaced = diagonal + (character != other)
            diagonal = row[column]
            row[column] = min(replaced, row[column] + 1, row[column - 1] + 1)
    return row[-1]


def score(items: Sequence[Fields], predictions: Mapping[str, str], profile: str) -> TaskScore:
    """Score by ANLS; a question with a similarity of 0 counts as wrong, others as right.

    Args:
        items: fields of all rows, broken ones included.
        predictions: item id -> answer.
        profile: not used; there are no options to extract.
    """
    units = []
    for item in items:
        answer = row_answer(item, predictions)
        points = 0.0 if is_broken(item) else anls(item["answers"], answer)
        units.append(row_unit(item, points > 0, _normalize(answer), points=points))
    return TaskScore(
        metric=METRIC,
        units=tuple(units),
        n_rows=len(items),
        broken=sum(map(is_broken, items)),
        parse_failures=0,
        refusals=0,
        extra={"similar": percent(unit.correct for unit in units)},
        table=tabulate_units(units, [item["split"] for item in items]),
    )
