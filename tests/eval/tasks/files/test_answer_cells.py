from __future__ import annotations

import pytest

from vlpress.eval.tasks.files.answer_cells import accepted_answers


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ("['26.58']", ["26.58"]),
        ("['a', \"b's\"]", ["a", "b's"]),
        ("CENTRE", ["CENTRE"]),
        ("[sic]", ["[sic]"]),
        ("[]", ["[]"]),
        ("[12]", ["12"]),
    ],
)
def test_answer_cells(cell: str, answers: list[str]) -> None:
    assert accepted_answers(cell) == answers
