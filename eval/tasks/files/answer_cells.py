"""Answer cells that may hold several accepted answers."""

from __future__ import annotations

import ast


def accepted_answers(cell: str) -> list[str]:
    """Parse an answer cell: a Python list literal, or one bare answer.

    Example:
        >>> accepted_answers("['12', 12.5]"), accepted_answers("[sic]")
        (['12', '12.5'], ['[sic]'])
    """
    if cell.startswith("[") and cell.endswith("]"):
        try:
            parsed = ast.literal_eval(cell)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return [cell]
        if isinstance(parsed, list) and parsed:
            return [str(answer) for answer in parsed]
    return [cell]
